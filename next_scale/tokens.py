"""Token sets: a data set passed through a tokenizer once, then streamed for the training of predictors."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from next_scale.checkpoint import from_pretrained
from next_scale.condition import ConditionSpec
from next_scale.conditioning.captions import Captioned, Captions
from next_scale.errors import UserError
from next_scale.exact import TrainingLoader
from next_scale.model import fingerprint, tokenizer_of
from next_scale.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

LATENTS = "latents.npy"


class TokenSet(Dataset):
    """Items ``{"tokens": (L,) int64, "condition": {field: int}}`` of a folder that :func:`write_tokens` wrote.

    With `latents` also ``"latent": (C, *grid) float32``, what the autoencoder gave and the tokens approximate.
    """

    def __init__(self, folder: str | Path, latents: bool = False):
        folder = Path(folder)
        self.meta = json.loads((folder / "meta.json").read_text())
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        self.conditions = np.load(folder / "conditions.npy", allow_pickle=False)
        self.latents = np.load(folder / LATENTS, mmap_mode="r", allow_pickle=False) if latents else None
        self.fields = self.meta["fields"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict:
        condition = dict(zip(self.fields, self.conditions[index].tolist(), strict=True))
        item = {"tokens": torch.from_numpy(self.tokens[index].astype(np.int64)), "condition": condition}
        if self.latents is not None:
            item["latent"] = torch.from_numpy(self.latents[index].astype(np.float32))
        return item


@torch.no_grad()
def write_tokens(
    folder: str | Path, batches: Iterable[dict], tokenizer: Tokenizer, fields: list[str], latents: bool = False
) -> None:
    """Tokenize batches ``{"sample": (B, ...), "condition": {field: (B,)}}`` into a folder of npy files, all or nothing.

    What was in the folder is replaced.

    Args:
        latents: keep also the latents before quantization, as float16, for predictors of latents.

    Raises:
        UserError: no batches, or the folder cannot be written.
    """
    folder = Path(folder)
    small = np.uint16 if tokenizer.quantizer.codebook_size <= 1 << 16 else np.int32
    tokens, conditions, kept = [], [], []
    for batch in batches:
        latent = tokenizer.autoencoder.encode(batch["sample"])
        tokens.append(tokenizer.quantizer.encode(latent).cpu().numpy().astype(small))
        if latents:
            kept.append(latent.cpu().numpy().astype(np.float16))
        columns = [batch["condition"][name].cpu().numpy() for name in fields]
        conditions.append(np.stack(columns, 1).astype(np.int32) if fields else np.zeros((len(tokens[-1]), 0), np.int32))
    if not tokens:
        raise UserError("there is nothing to tokenize: the data set is empty")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tokens-") as scratch:
            part = Path(scratch, "set")
            part.mkdir()
            np.save(part / "tokens.npy", np.concatenate(tokens))
            np.save(part / "conditions.npy", np.concatenate(conditions))
            if latents:
                np.save(part / LATENTS, np.concatenate(kept))
            (part / "meta.json").write_text(json.dumps({"fields": fields, "fingerprint": fingerprint(tokenizer)}))
            if folder.exists():
                os.replace(folder, Path(scratch, "old"))
            os.replace(part, folder)
    except OSError as error:
        raise UserError(f"cannot write the tokens to {folder}: {error.strerror or error}") from error


class TokenDataModule(L.LightningDataModule):
    """Tokens of another data module's samples, made by a trained tokenizer and kept for the next run.

    Args:
        source: a data module with ``condition_spec`` and ``dataset(split)`` for ``train``, ``validation`` and ``test``.
        tokenizer: checkpoint of the tokenizer.
        folder: where token sets are kept; each tokenizer's in a folder named by its fingerprint.
        batch_size: pyramids a batch.
        passes: times the training split is tokenized; more than one where samples are random crops.
        seed: of the order of the batches.
        latents: keep and give also the latents before quantization, which the family "flow" learns.
        captions: what is said of the samples, in place of their condition fields. Token sets keep the fields.
    """

    def __init__(
        self,
        source: L.LightningDataModule,
        tokenizer: str,
        folder: str = "data/tokens",
        batch_size: int = 32,
        passes: int = 1,
        seed: int = 0,
        latents: bool = False,
        captions: Captions | None = None,
    ):
        super().__init__()
        self.latents, self.captions = latents, captions
        self.source, self.checkpoint, self.root = source, tokenizer, Path(folder)
        self.batch_size, self.passes, self.seed = batch_size, passes, seed
        self._folder: Path | None = None

    @property
    def condition_spec(self) -> ConditionSpec:
        """Fields and values of the conditions."""
        if self.captions is None:
            return self.source.condition_spec
        return self.captions.spec if self.captions.form == "labels" else {}

    def prepare_data(self) -> None:
        tokenizer = tokenizer_of(from_pretrained(self.checkpoint))
        name = f"{self.source.name}-{fingerprint(tokenizer)}" + (f"-x{self.passes}" if self.passes > 1 else "")
        self._folder = self.root / name
        for split in ("train", "validation", "test"):
            try:
                dataset = self.source.dataset(split)
            except UserError as error:
                if split == "train":
                    raise
                logger.warning("no %s tokens: %s", split, error)
                continue
            passes = self.passes if split == "train" else 1
            if self._made(split, passes * len(dataset)):
                continue
            batches = self._batches(dataset, split, passes)
            with torch.random.fork_rng(devices=[]):  # a training is the same whether its tokens are there already
                torch.random.default_generator.manual_seed(self.seed)
                write_tokens(self._folder / split, batches, tokenizer, list(self.source.condition_spec), self.latents)

    def _made(self, split: str, count: int) -> bool:
        """Whether the split lies there already. Folders of data may share a name: the number of samples tells more."""
        folder = self._folder / split
        if not (folder / "meta.json").is_file() or (self.latents and not (folder / LATENTS).is_file()):
            return False
        made = TokenSet(folder)
        return len(made) == count and made.fields == list(self.source.condition_spec)

    def _batches(self, dataset: Dataset, split: str, passes: int) -> Iterable[dict]:
        from rich.progress import track

        loader = DataLoader(dataset, batch_size=64)
        for _ in range(passes):
            yield from track(loader, description=f"tokenizing {split}")

    def setup(self, stage: str) -> None:
        if self._folder is None:
            self.prepare_data()

    def split_folder(self, split: str) -> Path:
        """Where the tokens of a split are, once they have been made."""
        return self._folder / split

    def _set(self, split: str) -> Dataset | None:
        folder = self.split_folder(split)
        if not folder.is_dir():
            return None
        tokens = TokenSet(folder, self.latents)
        if self.captions is None:
            return tokens
        return Captioned(tokens, self.source.condition_spec, self.captions, split)

    def train_dataloader(self) -> DataLoader:
        return TrainingLoader(self._set("train"), self.batch_size, self.seed)

    def _held_out(self, split: str) -> DataLoader | list:
        tokens = self._set(split)
        return [] if tokens is None else DataLoader(tokens, self.batch_size, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader | list:
        return self._held_out("validation")

    def test_dataloader(self) -> DataLoader | list:
        return self._held_out("test")
