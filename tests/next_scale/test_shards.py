"""Shards: always the same bytes, whole or not at all, and read in one order whatever happens."""

import functools
import http.server
import json
import os
import pickle
import threading
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from next_scale.errors import UserError
from next_scale.exact import RandomState, TrainingLoader
from next_scale.model import fingerprint
from next_scale.shards import ShardDataModule
from next_scale.shards.index import MOST_INDEX, parse_index
from next_scale.shards.reader import TokenSet
from next_scale.shards.shard import expected
from next_scale.shards.writer import PLAN, ShardWriter, encode, plan_shards, write_shards
from next_scale.tokens import TokenDataModule
from next_scale.training import PredictorModule

SPEC = {"label": ["a", "b", "c"], "pitch": list(range(30))}


class Noise(Dataset):
    """Clips of noise with chance in them, as random crops have."""

    def __init__(self, count, seed=0):
        self.samples = torch.randn(count, 1, 1024, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[range(len(self))[index]].roll(int(torch.randint(1024, ())))
        return {"sample": sample, "condition": {"label": index % 3, "pitch": index % 30}}


class Source(L.LightningDataModule):
    name, condition_spec = "noise", SPEC

    def dataset(self, split):
        return Noise({"train": 27, "validation": 6, "test": 3}[split], len(split))


def plan_of(tokenizer, count=27, split="train", **options):
    options = {"shard_samples": 6, "batch_size": 4} | options
    return plan_shards(Noise(count, len(split)), SPEC, tokenizer, split, **options)


def write(folder, tokenizer, count=27, split="train", **options):
    plan = plan_of(tokenizer, count, split, **options)
    return sum(write_shards(folder, Noise(count, len(split)), tokenizer, plan))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def written(tiny_generator, tmp_path_factory):
    """A set of three splits; the training split has 27 samples in 5 shards. Do not change it."""
    folder = tmp_path_factory.mktemp("shards")
    for split, count in (("train", 27), ("validation", 6), ("test", 3)):
        assert write(folder / split, tiny_generator.tokenizer, count, split, latents=True) == count
    return folder


@pytest.fixture
def copied(written, tmp_path):
    """The same, to be changed."""
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        for name, data in files(written / split).items():
            (tmp_path / split / name).write_bytes(data)
    return tmp_path


# Writing


def test_index(written, tiny_generator):
    index = TokenSet(written / "train").index
    assert [shard.samples for shard in index.shards] == [6, 6, 6, 6, 3] == index.shard_sizes
    assert (index.fingerprint, index.condition) == (fingerprint(tiny_generator.tokenizer), SPEC)
    assert index.schedule == tiny_generator.tokenizer.quantizer.schedule and index.latent == (4, 16)
    assert {"torch", "numpy"} < set(index.versions)
    text = (written / "train" / "index.json").read_text()
    assert parse_index(text.encode(), "it") == index and index.to_json() == text
    assert json.loads(text)["shards"][0]["file"] == index.shards[0].file


@pytest.mark.parametrize("codes, stored", [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_large_codebooks_fit(codes, stored, written):
    index = replace(TokenSet(written / "train").index, codebook_size=codes)
    assert expected(index, 2)["tokens"][0] == stored and index.sample_bytes == 31 * stored().nbytes + 8 + 128


def test_any_process_in_any_order(written, tiny_generator, tmp_path):
    """Two processes that share the work, the second starting from the end."""
    tokenizer, data = tiny_generator.tokenizer, Noise(27, 5)
    one, other = (ShardWriter(tmp_path, plan_of(tokenizer, latents=True), data) for _ in range(2))
    missing = one.begin()
    assert missing == [0, 1, 2, 3, 4] and PLAN in os.listdir(tmp_path)
    for number in reversed(missing):
        writer = (one, other)[number % 2]
        parts = [encode(tokenizer, writer.read(samples), writer.plan) for samples in writer.batches(number)]
        writer.write(number, parts)
    with pytest.raises(UserError, match="2 shards are missing"):
        one.finish()
    one.made |= other.made
    one.finish()
    assert files(tmp_path) == files(written / "train")


def test_interrupted_and_damaged(written, copied, tiny_generator):
    """Whatever is missing, cut off, changed or left over: the same bytes in the end, and whole shards stay."""
    folder, plan = copied / "train", plan_of(tiny_generator.tokenizer, latents=True)
    shards = [folder / shard.file for shard in TokenSet(folder).index.shards]
    (folder / "index.json").unlink()
    (folder / PLAN).write_text(plan.to_json())
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-9])
    shards[2].write_bytes(shards[2].read_bytes()[:-1] + b"!")
    (folder / f".{'0' * 32}.part").write_bytes(b"half")
    kept = shards[4].stat().st_mtime_ns
    counts = list(write_shards(folder, Noise(27, 5), tiny_generator.tokenizer, plan))
    assert counts == [9, 4, 2, 4, 2, 4, 2] and shards[4].stat().st_mtime_ns == kept
    assert files(folder) == files(written / "train")


def test_passes_draw_anew(tiny_generator, tmp_path):
    write(tmp_path / "a", tiny_generator.tokenizer, passes=2)
    twice = TokenSet(tmp_path / "a").batch(range(54))["tokens"]
    assert (twice[:27] != twice[27:]).any()
    write(tmp_path / "b", tiny_generator.tokenizer)
    assert torch.equal(TokenSet(tmp_path / "b").batch(range(27))["tokens"], twice[:27])


def test_other_shards_are_left_alone(copied, tiny_generator, tmp_path):
    before = files(copied / "train")
    with pytest.raises(UserError, match="shards of another tokenization .seed: 0 there, 1 asked for"):
        write(copied / "train", tiny_generator.tokenizer, latents=True, seed=1)
    (tmp_path / "lost").mkdir()
    name = next(name for name in before if name.endswith("safetensors"))
    (tmp_path / "lost" / name).write_bytes(before[name])
    with pytest.raises(UserError, match="nothing says of what"):
        write(tmp_path / "lost", tiny_generator.tokenizer)
    assert files(copied / "train") == before and list(files(tmp_path / "lost")) == [name]


def test_full_disk(tiny_generator, full_disk):
    with pytest.raises(UserError, match="free space"):
        write(full_disk / "train", tiny_generator.tokenizer, 200, shard_samples=50)
    left = files(full_disk / "train")
    assert PLAN in left and "index.json" not in left and not [name for name in left if name.endswith(".part")]


# What nobody should trust


def changed(text, path, value):
    values = json.loads(text)
    place = values
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    "path, value",
    [
        (["shards", 0, "file"], "../../etc/passwd"),
        (["shards", 0, "file"], "/etc/passwd"),
        (["shards", 0, "file"], "000000-../abcdefabcdef.safetensors"),
        (["shards", 0, "file"], "000000-0123456789abcdef.safetensors\n"),
        (["shards", 0, "file"], 7),
        (["shards", 0, "sha256"], "0" * 64),
        (["shards", 0, "samples"], 7),
        (["shards", 0, "bytes"], 1),
        (["shards", 0, "bytes"], 1 << 60),
        (["shards", 0], []),
        (["shards"], []),
        (["shards"], {}),
        (["samples"], 1 << 47),
        (["samples"], 0),
        (["samples"], True),
        (["samples"], 26.0),
        (["shard_samples"], 1 << 31),
        (["schedule"], [[1 << 20], [1 << 20]]),
        (["schedule"], [[1 << 40]]),
        (["schedule"], [[2], [1]]),
        (["schedule"], [[]]),
        (["schedule"], "1 2 4"),
        (["codebook_size"], -1),
        (["latent"], [1 << 24, 1 << 24]),
        (["latent"], [4]),
        (["condition"], {"label": 3}),
        (["condition"], {"label": [[1]]}),
        (["fingerprint"], "../x"),
        (["versions"], 3),
        (["seed"], KeyError),
        (["version"], 2),
        (["format"], "other"),
    ],
    ids=str,
)
def test_absurd_indices(path, value, written):
    text = (written / "train" / "index.json").read_text()
    with pytest.raises(UserError, match="the.json") as caught:
        parse_index(changed(text, path, value), "the.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b"9" * 5000, b" " * (MOST_INDEX + 1)])
def test_no_indices(text):
    with pytest.raises(UserError, match="the.json"):
        parse_index(text, "the.json")


def test_damage_is_told(copied, tiny_checkpoint):
    data = ShardDataModule(str(copied))
    data.prepare_data()
    path = copied / "train" / data.tokens("train").index.shards[3].file
    whole = path.read_bytes()
    for found, said in (whole[:-1], "cut off"), (whole[:-1] + b"!", "damaged, its check"), (whole + b"!", "too long"):
        path.write_bytes(found)
        with pytest.raises(UserError, match=f"{path.name} is {said}.*tokenize-dataset again"):
            ShardDataModule(str(copied)).prepare_data()
    ShardDataModule(str(copied), verify=False).tokens("train").batch([0])  # another shard
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        ShardDataModule(str(copied), verify=False).prepare_data()
    (copied / "train" / "index.json").unlink()
    with pytest.raises(UserError, match="holds no index.json"):
        ShardDataModule(str(copied)).prepare_data()


def test_codes_that_do_not_exist(copied):
    text = (copied / "train" / "index.json").read_text()
    (copied / "train" / "index.json").write_bytes(changed(text, ["codebook_size"], 3))
    with pytest.raises(UserError, match="holds the code"):
        ShardDataModule(str(copied)).prepare_data()


def test_other_tokenizer(written, other_checkpoint):
    data = ShardDataModule(str(written))
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="were made by the tokenizer .* but the model's is"):
        trainer.fit(PredictorModule(str(other_checkpoint), data.condition_spec), data)


def test_no_latents(tiny_generator, tmp_path):
    write(tmp_path / "train", tiny_generator.tokenizer)
    with pytest.raises(UserError, match="has no latents.*--latents"):
        ShardDataModule(str(tmp_path), latents=True).prepare_data()
    data = ShardDataModule(str(tmp_path))
    assert data.val_dataloader() == data.test_dataloader() == []


# Reading


def test_batches_are_samples(written):
    tokens = TokenSet(written / "train", latents=True)
    batch = tokens.batch([26, 0, 7, 7])
    for place, index in enumerate((26, 0, 7, 7)):
        item = tokens[index]
        assert torch.equal(item["tokens"], batch["tokens"][place]) and item["tokens"].dtype == torch.int64
        assert torch.equal(item["latent"], batch["latent"][place]) and item["latent"].dtype == torch.float32
        assert item["condition"] == {field: int(values[place]) for field, values in batch["condition"].items()}
    assert len(pickle.dumps(tokens)) < 10_000  # without the maps


def seen(loader, count=None):
    batches = []
    for batch in loader:
        batches.append(batch["tokens"])
        if len(batches) == count:
            break
    return batches


@pytest.mark.parametrize("window", [2, 16])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_in_the_middle(written, window, workers):
    """The same samples in the same order, however many workers, and after an interruption in any epoch."""

    def loader(workers=workers):
        return TrainingLoader(TokenSet(written / "train", window=window), 4, 3, num_workers=workers)

    whole = loader(0)
    epochs = [seen(whole), seen(whole)]
    assert [len(epoch) for epoch in epochs] == [6, 6]
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    for epoch in range(2):
        resumed = loader()
        resumed.load_state_dict({"epoch": epoch, "batches": 4})
        resumed.sampler.set_epoch(epoch)
        rest = seen(resumed)
        assert torch.equal(torch.cat(rest), torch.cat(epochs[epoch][4:]))
        assert resumed.state_dict() == {"epoch": epoch, "batches": 6}


def test_order_goes_through_windows(written):
    """Every sample once; a window of 2 shards is done before the next begins, and both are asked for before."""
    tokens = TokenSet(written / "train", window=2)
    asked = []
    tokens.place.ahead = lambda shards: asked.append({int(shard.file[:6]) for shard in shards})
    order = tokens.order(torch.Generator().manual_seed(1))
    assert sorted(order.tolist()) == list(range(27))
    ends = [end for end, _ in tokens._turns]
    tokens.reach(0)
    assert len(asked) == 2
    tokens.reach(ends[0] - 1)
    assert len(asked) == 2
    tokens.reach(ends[0])
    assert sorted(map(len, asked)) == [1, 2, 2] and set.union(*asked) == set(range(5))
    for start, end, shards in zip([0, *ends], ends, asked, strict=False):
        assert {i // 6 for i in order[start:end].tolist()} == shards
    assert torch.equal(order, TokenSet(written / "train", window=2).order(torch.Generator().manual_seed(1)))


def fit(module_data, checkpoint, folder, steps=9, resume=None):
    """Train a small predictor; returns its weights."""
    torch.manual_seed(0)
    options = {"width": 16, "depth": 1, "heads": 1}
    module = PredictorModule(str(checkpoint), module_data.condition_spec, options)
    keep = L.pytorch.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, callbacks=[RandomState(), keep],
    )  # fmt: skip
    trainer.fit(module, module_data, ckpt_path=resume, weights_only=True)
    return {name: value.clone() for name, value in module.predictor.state_dict().items()}


@pytest.mark.filterwarnings("ignore")
def test_training(tiny_checkpoint, tmp_path):
    """Bit for bit what TokenDataModule gives, with other shards and workers, and where it was interrupted."""
    source = TokenDataModule(Source(), str(tiny_checkpoint), str(tmp_path / "kept"), 4, seed=2)
    direct = fit(source, tiny_checkpoint, tmp_path / "a")
    tokens = source.tokens("train")
    plan = replace(tokens.index.plan, shard_samples=6)
    writer = ShardWriter(tmp_path / "train", plan, tokens)
    for number in writer.begin():
        rows = range(6 * number, min(6 * number + 6, len(tokens)))
        batch = tokens.batch(rows)
        condition = torch.stack(list(batch["condition"].values()), 1)
        writer.write(number, [{"tokens": batch["tokens"].numpy(), "condition": condition.numpy()}])
    writer.finish()
    shards = fit(ShardDataModule(str(tmp_path), 4, seed=2), tiny_checkpoint, tmp_path / "b")
    again = ShardDataModule(str(tmp_path), 4, seed=2, num_workers=2)
    resumed = fit(again, tiny_checkpoint, tmp_path / "c", resume=tmp_path / "b" / "step=8.ckpt")  # in the second epoch
    for name, value in direct.items():
        assert torch.equal(value, shards[name]) and torch.equal(value, resumed[name]), name


# From a URL


class _Counting(http.server.SimpleHTTPRequestHandler):
    asked: list = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def served(copied):
    """A server of the set on this machine: its URL, and the paths that were asked for."""
    handler = type("Handler", (_Counting,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(copied)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
    server.shutdown()
    server.server_close()


def test_from_a_url(served, copied, written, tmp_path):
    url, asked = served
    cache = tmp_path / "cache"
    local = seen(TrainingLoader(TokenSet(written / "train", window=2), 4, 3))
    for workers in (0, 2):
        loader = TrainingLoader(TokenSet(f"{url}/train", window=2, cache=cache), 4, 3, num_workers=workers)
        assert torch.equal(torch.cat(seen(loader)), torch.cat(local))
    assert sum(path.endswith("safetensors") for path in asked) == 5  # each once
    assert not list(cache.glob(".*"))
    data = ShardDataModule(f"{url}/", cache=str(cache))
    data.prepare_data()
    assert data.condition_spec == SPEC and len(list(data.val_dataloader())) == 1
    (copied / "test" / "index.json").unlink()
    assert ShardDataModule(url, cache=str(cache)).test_dataloader() == []


def test_what_a_server_sends_is_checked(served, copied, tmp_path):
    url, _ = served
    tokens = TokenSet(f"{url}/train", cache=tmp_path / "cache")
    first, second, third = tokens.index.shards[:3]
    damaged = (copied / "train" / first.file).read_bytes()[:-1] + b"!"
    (copied / "train" / first.file).write_bytes(damaged)
    with pytest.raises(UserError, match=f"{url}/train/{first.file} is damaged"):
        tokens.batch([0])
    with open(copied / "train" / second.file, "ab") as file:
        file.write(b"!" * 3_000_000)
    with pytest.raises(UserError, match="has more than its"):
        tokens.batch([6])
    (copied / "train" / third.file).unlink()
    with pytest.raises(UserError, match=f"cannot fetch {url}/train/{third.file}"):
        tokens.batch([12])
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []
    with pytest.raises(UserError, match="there is no .*/nowhere/index.json"):
        TokenSet(f"{url}/nowhere")
    with pytest.raises(UserError, match="cannot fetch"):
        TokenSet("http://127.0.0.1:9/train")
