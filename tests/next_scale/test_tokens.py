"""Token sets: made once by a tokenizer, all or nothing, and read back as batches."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from next_scale import tokens as module
from next_scale.checkpoint import from_pretrained
from next_scale.errors import UserError
from next_scale.model import fingerprint, tokenizer_of
from next_scale.tokenizer import Tokenizer
from next_scale.tokens import TokenDataModule, TokenSet, write_tokens

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
        names.append(folder.name)
        write_tokens(folder, *rest)

    monkeypatch.setattr(module, "write_tokens", counted)
    return names


def batches(count=5, fields=("label", "pitch")):
    noise = Noise(count)
    condition = {name: torch.tensor([noise[i]["condition"][name] for i in range(count)]) for name in fields}
    yield {"sample": noise.samples[:2], "condition": {name: values[:2] for name, values in condition.items()}}
    yield {"sample": noise.samples[2:], "condition": {name: values[2:] for name, values in condition.items()}}


def test_round_trip(tiny_generator, tmp_path):
    tokenizer = tiny_generator.tokenizer
    write_tokens(tmp_path / "a" / "set", batches(), tokenizer, ["label", "pitch"])
    tokens = TokenSet(tmp_path / "a" / "set")
    assert len(tokens) == 5
    want = tokenizer.encode(Noise(5).samples)
    for i in range(5):
        assert torch.equal(tokens[i]["tokens"], want[i]) and tokens[i]["tokens"].dtype == torch.int64
        assert tokens[i]["condition"] == {"label": i % 3, "pitch": i}
    assert tokens.meta["fingerprint"] == fingerprint(tokenizer)
    assert sorted(p.name for p in (tmp_path / "a").rglob("*")) == ["conditions.npy", "meta.json", "set", "tokens.npy"]


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
    write_tokens(tmp_path / "set", batches(fields=()), tiny_generator.tokenizer, [])
    assert TokenSet(tmp_path / "set")[4]["condition"] == {}


@pytest.mark.parametrize("size, stored", [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_large_codebooks_fit(size, stored, tmp_path):
    class Fixed(torch.nn.Module):
        codebook_size = size

        def encode(self, latent):
            return torch.tensor([[0, size - 1]] * len(latent))

    class Same(torch.nn.Module):
        def encode(self, x):
            return x

    tokenizer = Tokenizer(Same(), Fixed())
    write_tokens(tmp_path / "set", batches(), tokenizer, ["label"])
    tokens = TokenSet(tmp_path / "set")
    assert tokens[0]["tokens"].tolist() == [0, size - 1] and tokens.tokens.dtype == stored


def test_all_or_nothing(tiny_generator, tmp_path):
    def broken():
        yield from batches()
        raise RuntimeError("the disk fell over")

    write_tokens(tmp_path / "set", batches(3), tiny_generator.tokenizer, ["label"])
    with pytest.raises(RuntimeError):
        write_tokens(tmp_path / "set", broken(), tiny_generator.tokenizer, ["label"])
    assert len(TokenSet(tmp_path / "set")) == 3
    write_tokens(tmp_path / "set", batches(5), tiny_generator.tokenizer, ["label"])  # another time it works
    assert len(TokenSet(tmp_path / "set")) == 5 and [p.name for p in tmp_path.iterdir()] == ["set"]


def test_refused(tiny_generator, tmp_path):
    with pytest.raises(UserError, match="nothing to tokenize"):
        write_tokens(tmp_path / "set", [], tiny_generator.tokenizer, ["label"])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_tokens(tmp_path / "file" / "set", batches(), tiny_generator.tokenizer, ["label"])


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
        made.append(TokenSet(data.split_folder("train")).tokens)
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


def test_meta_is_json(tiny_generator, tmp_path):
    write_tokens(tmp_path / "set", batches(), tiny_generator.tokenizer, ["pitch"])
    assert json.loads((tmp_path / "set" / "meta.json").read_text())["fields"] == ["pitch"]
