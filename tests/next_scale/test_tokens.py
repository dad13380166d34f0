"""Token sets: made once by a tokenizer, all or nothing, and read back as batches."""

import lightning as L
import pytest
import torch
from torch.utils.data import Dataset

from next_scale import tokens as module
from next_scale.checkpoint import from_pretrained
from next_scale.errors import UserError
from next_scale.model import fingerprint, tokenizer_of
from next_scale.shards.reader import TokenSet
from next_scale.shards.writer import plan_shards, write_shards
from next_scale.tokens import TokenDataModule

COUNT = {"train": 20, "validation": 6, "test": 3}


class Noise(Dataset):
    """Clips of noise that the tiny models' tokenizer takes."""

    def __init__(self, count, seed=0):
        self.samples = torch.randn(count, 1, 1024, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {"sample": self.samples[index], "condition": {"label": index % 3, "pitch": index}}


class Source(L.LightningDataModule):
    name = "noise"
    condition_spec = {"label": ["a", "b", "c"], "pitch": list(range(20))}

    def __init__(self, counts=COUNT):
        super().__init__()
        self.counts = counts

    def dataset(self, split):
        if not self.counts.get(split):
            raise UserError(f"no {split} clips")
        return Noise(self.counts[split], len(split))


@pytest.fixture
def written(monkeypatch):
    """Names of the folders that were written, as they are."""
    names = []

    def counted(folder, *rest):
        progress = write_shards(folder, *rest)
        yield next(progress)
        names.append(folder.name)
        yield from progress

    monkeypatch.setattr(module, "write_shards", counted)
    return names


def made(folder, tokenizer, count=5, spec=None, **options):
    """A set of so many samples, written in this process."""
    spec = Source.condition_spec if spec is None else spec
    plan = plan_shards(Noise(count), spec, tokenizer, "train", **options)
    for _ in write_shards(folder, Noise(count), tokenizer, plan):
        pass
    return TokenSet(folder, latents=options.get("latents", False))


def test_round_trip(tiny_generator, tmp_path):
    tokenizer = tiny_generator.tokenizer
    tokens = made(tmp_path / "a" / "set", tokenizer)
    assert len(tokens) == 5
    want = tokenizer.encode(Noise(5).samples)
    for i in range(5):
        assert torch.equal(tokens[i]["tokens"], want[i]) and tokens[i]["tokens"].dtype == torch.int64
        assert tokens[i]["condition"] == {"label": i % 3, "pitch": i}
    assert torch.equal(tokens[-1]["tokens"], want[4])
    with pytest.raises(IndexError):
        tokens[5]
    assert tokens.index.fingerprint == fingerprint(tokenizer)
    shard, index = sorted(p.name for p in (tmp_path / "a" / "set").iterdir())
    assert index == "index.json" and shard == tokens.index.shards[0].file


def test_latents_beside_tokens(tiny_checkpoint, tmp_path, written):
    options = {"folder": str(tmp_path / "tokens"), "batch_size": 4}
    TokenDataModule(Source(), tiny_checkpoint, **options).prepare_data()
    data = TokenDataModule(Source(), tiny_checkpoint, latents=True, **options)
    data.prepare_data()
    data.prepare_data()
    assert len(written) == 2 * len(COUNT)  # tokens alone would not do; what is there now does
    batch = next(iter(data.val_dataloader()))
    tokenizer = tokenizer_of(from_pretrained(tiny_checkpoint))
    assert batch["latent"].dtype == torch.float32
    assert torch.equal(tokenizer.quantizer.encode(batch["latent"])[:, 0], batch["tokens"][:, 0])
    expected = tokenizer.autoencoder.encode(Source().dataset("validation").samples[:4])
    assert torch.allclose(batch["latent"], expected, atol=1e-3, rtol=1e-3)


def test_without_conditions(tiny_generator, tmp_path):
    assert made(tmp_path / "set", tiny_generator.tokenizer, spec={})[4]["condition"] == {}


def test_refused(tiny_generator, tmp_path):
    with pytest.raises(UserError, match="nothing to tokenize"):
        made(tmp_path / "set", tiny_generator.tokenizer, 0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        made(tmp_path / "file" / "set", tiny_generator.tokenizer)


def test_data_module(tiny_generator, tiny_checkpoint, tmp_path, written):
    data = TokenDataModule(Source(), str(tiny_checkpoint), str(tmp_path), batch_size=8, seed=1)
    data.prepare_data()
    data.setup("fit")
    assert written == ["train", "validation", "test"]
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"noise-{fingerprint(tiny_generator.tokenizer)}"
    train = list(data.train_dataloader())
    assert [len(batch["tokens"]) for batch in train] == [8, 8]  # equal batches
    assert train[0]["tokens"].shape == (8, 31) and set(train[0]["condition"]) == {"label", "pitch"}
    assert sum(len(batch["tokens"]) for batch in data.val_dataloader()) == 6
    assert sum(len(batch["tokens"]) for batch in data.test_dataloader()) == 3
    assert data.condition_spec == Source.condition_spec

    again = TokenDataModule(Source(), str(tiny_checkpoint), str(tmp_path), batch_size=8, seed=1)
    again.setup("fit")  # as in a process that did not prepare
    assert written == ["train", "validation", "test"]  # kept
    assert torch.equal(next(iter(again.train_dataloader()))["tokens"], train[0]["tokens"])  # the same order


class Cropped(Source):
    """Samples with chance in them, as random crops have."""

    def dataset(self, split):
        class Chance(Noise):
            def __getitem__(self, index):
                item = super().__getitem__(index)
                return item | {"sample": item["sample"] + torch.randn(1, 1024)}

        return Chance(self.counts[split], len(split))


def test_chance_in_tokens_is_their_own(tiny_checkpoint, tmp_path):
    """Neither does a training draw other numbers where it makes its tokens, nor do tokens depend on what was drawn."""
    made, after = [], []
    for folder, seed in ((tmp_path / "a", 0), (tmp_path / "a", 0), (tmp_path / "b", 7)):  # the second finds them made
        data = TokenDataModule(Cropped(), str(tiny_checkpoint), str(folder), batch_size=8, passes=2, seed=1)
        torch.manual_seed(seed)
        data.prepare_data()
        after.append(torch.get_rng_state())
        tokens = TokenSet(data.split_folder("train"))
        made.append(torch.stack([tokens[i]["tokens"] for i in range(len(tokens))]))
    assert torch.equal(after[0], after[1])
    assert (made[0] == made[2]).all()
    assert (made[0][:20] != made[0][20:]).any()


def test_other_tokens_are_made_anew(tiny_checkpoint, other_checkpoint, tmp_path, written):
    TokenDataModule(Source(), str(tiny_checkpoint), str(tmp_path)).prepare_data()
    TokenDataModule(Source(), str(other_checkpoint), str(tmp_path)).prepare_data()  # another tokenizer
    TokenDataModule(Source(), str(tiny_checkpoint), str(tmp_path), passes=3).prepare_data()
    assert len(written) == 9 and len(list(tmp_path.iterdir())) == 3
    sizes = sorted(len(TokenSet(folder / "train")) for folder in tmp_path.iterdir())
    assert sizes == [20, 20, 60]
    del written[:]
    # other data of the same name
    TokenDataModule(Source(COUNT | {"train": 12}), str(tiny_checkpoint), str(tmp_path)).prepare_data()
    assert written == ["train"]


def test_held_out_splits_may_be_missing(tiny_checkpoint, tmp_path):
    data = TokenDataModule(Source({"train": 4}), str(tiny_checkpoint), str(tmp_path))
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 1  # a small set is one small batch
    assert data.val_dataloader() == data.test_dataloader() == []
    with pytest.raises(UserError, match="no train clips"):
        TokenDataModule(Source({"test": 4}), str(tiny_checkpoint), str(tmp_path)).prepare_data()
