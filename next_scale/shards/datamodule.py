"""Shards that are there as training data: no sample is read, and no tokenizer runs."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from next_scale.cli import progress
from next_scale.condition import ConditionSpec
from next_scale.errors import UserError
from next_scale.model import fingerprint
from next_scale.shards.place import Folder, NoShards, is_url
from next_scale.shards.reader import TokenSet
from next_scale.shards.shard import check_shard, check_size
from next_scale.splits import SPLITS
from next_scale.tokens import TokenData

logger = logging.getLogger(__name__)


class ShardDataModule(TokenData):
    """Tokens that ``tokenize-dataset`` wrote, from a folder or a URL.

    A training that was interrupted goes on with the very next batch, whatever the number of workers. Where the model in
    training has a tokenizer, the tokens must be its own.

    Args:
        folder: of the set, with a folder a split in it; or a URL of the same: https, s3, gs, hf, ...
        batch_size: pyramids a batch, of each process.
        seed: of the order of the batches.
        latents: give also the latents before quantization, which the family "flow" learns.
        num_workers: loader processes; 0 reads in the training process.
        window: shards that are shuffled among each other, see :class:`next_scale.shards.reader.TokenSet`.
        verify: read all shards in a folder before training and compare their checksums; those of a URL are always
            compared when they are fetched.
        cache: folder for shards from a URL; default ``NEXT_SCALE_SHARD_CACHE``, else one in the user's cache.

    Raises:
        UserError: no set there, or one that is damaged or of another tokenizer.
    """

    def __init__(
        self,
        folder: str,
        batch_size: int = 32,
        seed: int = 0,
        latents: bool = False,
        num_workers: int = 0,
        window: int = 16,
        verify: bool = True,
        cache: str | None = None,
    ):
        super().__init__(batch_size, seed, num_workers)
        self.folder, self.latents, self.window, self.verify, self.cache = folder, latents, window, verify, cache
        self._sets: dict[str, TokenSet] = {}

    @property
    def condition_spec(self) -> ConditionSpec:
        """Fields and values of the conditions, from the index."""
        return self._open("train").index.condition

    def provenance(self) -> dict:
        """What the index says of the tokenizer and of the data it was given."""
        index = self._open("train").index
        source = {"name": index.data, "sha256": index.manifest}
        return {"tokenizer": index.fingerprint, "passes": index.passes, "source": source}

    def prepare_data(self) -> None:
        for split in SPLITS:
            tokens = self.tokens(split)
            if tokens is not None and isinstance(tokens.place, Folder):
                _check(tokens, split, self.verify)

    def setup(self, stage: str) -> None:
        """Raise UserError where the model in training has another tokenizer than these tokens."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        tokenizer = getattr(module, "frozen", None)
        if tokenizer is None:
            return
        made, own = self._open("train").index.fingerprint, fingerprint(tokenizer)
        if made != own:
            raise UserError(
                f"the tokens in {self.folder} were made by the tokenizer {made}, but the model's is {own}: name the "
                "checkpoint that made them as model.tokenizer, or tokenize the data again"
            )

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Widen tokens to int64 on the device that trains."""
        return batch | {"tokens": batch["tokens"].long()}

    def tokens(self, split: str) -> TokenSet | None:
        try:
            return self._open(split)
        except NoShards as error:
            if split == "train":
                raise
            # a small set may have no held-out split: that is no reason not to train on it
            logger.warning("no %s tokens: %s", split, error)
            return None

    def _open(self, split: str) -> TokenSet:
        if split not in self._sets:
            place = f"{str(self.folder).rstrip('/')}/{split}" if is_url(self.folder) else Path(self.folder, split)
            self._sets[split] = TokenSet(place, self.latents, self.window, self.cache, narrow=True)
        return self._sets[split]


def _check(tokens: TokenSet, split: str, verify: bool) -> None:
    """Raise UserError where a shard is missing, cut off or, if asked for, damaged."""
    place, index = tokens.place, tokens.index
    for shard in index.shards:
        check_size(place.path(shard), shard)
    if not verify:
        return
    threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    with threads as pool, progress(f"checking {split}", index.samples) as advance:
        checked = pool.map(lambda shard: check_shard(place.path(shard), shard, index), index.shards)
        for shard, _ in zip(index.shards, checked, strict=True):
            advance(shard.samples)
