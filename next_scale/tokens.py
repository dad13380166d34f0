"""Tokens as training data: those of another data module's samples, made once and kept, or of shards that are there."""

from __future__ import annotations

import logging
import shutil
from abc import abstractmethod
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader

from next_scale.checkpoint import from_pretrained
from next_scale.cli import progress
from next_scale.condition import ConditionSpec
from next_scale.conditioning.captions import Captioned, Captions
from next_scale.data import SplitDataModule
from next_scale.errors import UserError
from next_scale.exact import HeldOutLoader, TrainingLoader
from next_scale.files import alone
from next_scale.model import fingerprint, tokenizer_of
from next_scale.shards.index import INDEX, ShardIndex
from next_scale.shards.place import open_place
from next_scale.shards.reader import TokenSet
from next_scale.shards.writer import plan_shards, write_shards
from next_scale.splits import SPLITS

logger = logging.getLogger(__name__)


class TokenData(SplitDataModule):
    """Batches ``{"tokens": (B, L) int64, "condition": {field: (B,) int64}}`` of the three splits of a token set.

    A subclass says where the tokens of a split are (`tokens`) and what their conditions may be.

    Args:
        batch_size: pyramids a batch of each process, B.
        seed: of the order of the batches.
        num_workers: loader processes; 0 reads in the training process, which is fast enough for most.

    Shape notation: B batch, L tokens.
    """

    def __init__(self, batch_size: int, seed: int, num_workers: int = 0):
        super().__init__(batch_size, num_workers, seed)

    @abstractmethod
    def tokens(self, split: str) -> TokenSet | None:
        """The tokens of a split, None where it has none."""

    def train_dataloader(self) -> DataLoader:
        return TrainingLoader(self.tokens("train"), self.batch_size, self.seed, **self._reading())

    def _held_out(self, split: str) -> DataLoader | list:
        tokens = self.tokens(split)
        if tokens is None:
            return []
        return HeldOutLoader(tokens, self.batch_size, **self._reading())


class TokenDataModule(TokenData):
    """Tokens of another data module's samples, made by a trained tokenizer and kept for the next run.

    They are made in one process, with a progress bar, when training first asks for them. Large data are tokenized by
    ``tokenize-dataset`` on many, and read by :class:`next_scale.shards.ShardDataModule`; the files are the same.

    Args:
        source: a data module with ``condition_spec`` and ``dataset(split)`` for ``train``, ``validation`` and ``test``.
        tokenizer: checkpoint of the tokenizer.
        folder: where token sets are kept; each tokenizer's in a folder named by its fingerprint.
        batch_size: pyramids a batch, of each process.
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
        super().__init__(batch_size, seed)
        self.latents, self.captions = latents, captions
        self.source, self.checkpoint, self.root = source, tokenizer, Path(folder)
        self.passes = passes
        self._folder: Path | None = None
        self._mark: str | None = None

    @property
    def condition_spec(self) -> ConditionSpec:
        """Fields and values of the conditions."""
        if self.captions is None:
            return self.source.condition_spec
        return self.captions.spec if self.captions.form == "labels" else {}

    def prepare_data(self) -> None:
        with torch.random.fork_rng(devices=[]):  # training draws the same whether or not tokens had to be made
            self._prepare()

    def _prepare(self) -> None:
        tokenizer = tokenizer_of(from_pretrained(self.checkpoint))
        self._mark = fingerprint(tokenizer)
        name = f"{self.source.name}-{self._mark}" + (f"-x{self.passes}" if self.passes > 1 else "")
        self._folder = self.root / name
        for split in SPLITS:
            try:
                dataset = self.source.dataset(split)
            except UserError as error:
                if split == "train":
                    raise
                logger.warning("no %s tokens: %s", split, error)
                continue
            plan = plan_shards(
                dataset, self.source.condition_spec, tokenizer, split, name=self.source.name,
                passes=self.passes if split == "train" else 1, latents=self.latents,
            )  # fmt: skip
            if self._made(plan):
                continue
            self._folder.mkdir(parents=True, exist_ok=True)
            with alone(self._folder / ".lock"):  # of nodes that share the folder one makes the tokens
                if not self._made(plan):
                    self._make(dataset, tokenizer, plan)

    def _made(self, plan: ShardIndex) -> bool:
        """Whether the split lies there already. Latents may lie there too; folders of other data may share a name."""
        try:
            made = open_place(self._folder / plan.split).index
        except UserError:
            return False
        wanted = ("samples", "condition", "schedule", "manifest", "latent" if self.latents else "samples")
        return all(getattr(made, field) == getattr(plan, field) for field in wanted)

    def _make(self, dataset: torch.utils.data.Dataset, tokenizer: torch.nn.Module, plan: ShardIndex) -> None:
        folder = self._folder / plan.split
        try:
            made = write_shards(folder, dataset, tokenizer, plan)
            first = next(made)
        except UserError:  # of other data, or without latents: what is kept here can be made again
            shutil.rmtree(folder, ignore_errors=True)
            made = write_shards(folder, dataset, tokenizer, plan)
            first = next(made)
        with progress(f"tokenizing {plan.split}", plan.samples) as advance:
            advance(first)
            for count in made:
                advance(count)

    def setup(self, stage: str) -> None:
        if self._folder is None:
            self.prepare_data()

    def provenance(self) -> dict:
        """The tokenizer's fingerprint, passes, and what the source of the samples tells of itself."""
        tell = getattr(self.source, "provenance", None)
        return {"tokenizer": self._mark, "passes": self.passes, "source": None if tell is None else tell()}

    def split_folder(self, split: str) -> Path:
        """Where the tokens of a split are, once they have been made."""
        return self._folder / split

    def tokens(self, split: str) -> TokenSet | Captioned | None:
        folder = self.split_folder(split)
        if not (folder / INDEX).is_file():
            return None
        tokens = TokenSet(folder, self.latents)
        if self.captions is None:
            return tokens
        return Captioned(tokens, self.source.condition_spec, self.captions, split)
