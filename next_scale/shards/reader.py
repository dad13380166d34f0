"""A set of shards as a data set: any sample at once, whole batches faster, and an order that reads the disk in a row.

The order and the reading are ours: measured (recipes/benchmarks/LOADER.md), litdata's order is another for every number
of workers, webdataset cannot resume within an epoch, and both read rows of tokens at a tenth of the speed or less.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from next_scale.errors import UserError
from next_scale.shards.index import Shard
from next_scale.shards.place import open_place
from next_scale.shards.shard import CONDITION, LATENT, TOKENS, expected, open_shard

_BLOCK = 1 << 22  # bytes of samples that are read at once
_MOST_OPEN = 512  # shards that are mapped at a time


class TokenSet(Dataset):
    """Items ``{"tokens": (L,) int64, "condition": {field: int}}`` of one split's shards.

    With `latents` also ``"latent": (C, *grid) float32``, what the autoencoder gave and the tokens approximate.

    Args:
        location: folder or URL that holds the split's ``index.json``.
        latents: give the latents too.
        window: shards that are shuffled among each other in training. Where there are no more of them, any order is
            equally likely; else shards are shuffled, and samples within so many of them, which are read in a row.
        cache: see :func:`next_scale.shards.place.open_place`.
        narrow: leave tokens as the file has them, uint16 or int32: a quarter of the bytes, for whoever widens them
            where they are used.

    Raises:
        UserError: no set there, a shard that is missing or cut off, or no latents.

    Shape notation: B batch, L tokens, C latent channels.
    """

    def __init__(
        self,
        location: str | os.PathLike,
        latents: bool = False,
        window: int = 16,
        cache: str | os.PathLike | None = None,
        narrow: bool = False,
    ):
        if window < 1:
            raise UserError(f"a window has 1 shard or more, not {window}")
        self.place = open_place(location, cache)
        self.index = self.place.index
        if latents and self.index.latent is None:
            raise UserError(f"{location} has no latents, which are asked for: tokenize the data with --latents")
        self.latents, self.window, self.narrow = latents, window, narrow
        self._layout = expected(self.index, 1)
        self._open: dict[int, dict[str, np.ndarray]] = {}
        self._turns: list[tuple[int, list[Shard]]] = []  # (place in the order where it ends, shards) of every window

    @property
    def fields(self) -> list[str]:
        """Names of the conditions."""
        return list(self.index.condition)

    def __len__(self) -> int:
        return self.index.samples

    def __getitem__(self, index: int) -> dict:
        batch = self.batch([range(len(self))[index]])
        item = {"tokens": batch["tokens"][0], "condition": {f: int(v[0]) for f, v in batch["condition"].items()}}
        return item | ({"latent": batch["latent"][0]} if self.latents else {})

    @property
    def together(self) -> int:
        """How many samples :meth:`batch` is best asked for at once."""
        latent = 4 * prod(self.index.latent) if self.latents else 0
        token = self.index.token_bytes if self.narrow else 8
        return max(1, _BLOCK // (token * self.index.schedule.length + 8 * len(self.fields) + latent))

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict:
        """The samples of these indices at once.

        Returns:
            ``{"tokens": (B, L) int64, "condition": {field: (B,) int64}}``, and ``"latent": (B, C, *grid) float32``;
            tokens uint16 or int32 where `narrow`.

        Raises:
            UserError: a shard that cannot be had.
        """
        numbers, rows = np.divmod(np.asarray(indices, np.int64), self.index.shard_samples)
        # by shard, for a shard's rows are copied at once; then back in the order that was asked for
        few = len(self.index.shards) <= 1 << 15  # short numbers are sorted faster
        by_shard = np.argsort(numbers.astype(np.int16) if few else numbers, kind="stable")
        numbers, rows = numbers[by_shard], rows[by_shard]
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        parts = [(int(numbers[i]), rows[i:j], slice(i, j)) for i, j in pairwise([*starts.tolist(), len(rows)])]
        back = np.empty_like(by_shard)
        back[by_shard] = np.arange(len(by_shard))

        def gathered(name: str) -> np.ndarray:
            dtype, shape = self._layout[name]
            found = np.empty((len(rows), *shape[1:]), dtype)
            for number, wanted, place in parts:
                self._arrays(number)[name].take(wanted, 0, out=found[place], mode="clip")
            return found.take(back, 0)

        tokens = gathered(TOKENS)
        if not self.narrow:
            tokens = tokens.astype(np.int64)
        condition = gathered(CONDITION).T.astype(np.int64, order="C")  # (B, F) -> (F, B)
        latent = gathered(LATENT).astype(np.float32) if self.latents else None
        batch = {
            "tokens": torch.from_numpy(tokens),
            "condition": {f: torch.from_numpy(v) for f, v in zip(self.index.condition, condition, strict=True)},
        }
        return batch | ({} if latent is None else {"latent": torch.from_numpy(latent)})

    # The order of an epoch

    def order(self, generator: torch.Generator) -> Tensor:
        """All indices (N,) int64 in a random order that depends on the generator alone."""
        count, size = len(self.index.shards), self.index.shard_samples
        if count <= self.window:
            self._turns = [(len(self), list(self.index.shards))]
            return torch.randperm(len(self), generator=generator)
        parts, self._turns, end = [], [], 0
        for group in torch.randperm(count, generator=generator).split(self.window):
            numbers = group.tolist()
            members = torch.cat([torch.arange(n * size, min((n + 1) * size, len(self))) for n in numbers])
            parts.append(members[torch.randperm(len(members), generator=generator)])
            end += len(members)
            self._turns.append((end, [self.index.shards[n] for n in numbers]))
        return torch.cat(parts)

    def reach(self, place: int) -> None:
        """Have the shards read, or fetched, that are next: the order is about to be followed from this place on."""
        while self._turns and self._turns[0][0] <= place:
            self._turns.pop(0)
        due = self._turns[:2] if self._turns else []
        for _, shards in due:
            if shards:
                self.place.ahead(shards)
                shards.clear()

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        """A shard's arrays, mapped when it is first needed."""
        if number not in self._open:
            shard = self.index.shards[number]
            self._open[number] = open_shard(self.place.path(shard), shard, self.index)
            if len(self._open) > _MOST_OPEN:
                del self._open[next(iter(self._open))]  # the one opened first
        return self._open[number]

    def __getstate__(self) -> dict:
        # a loader's worker maps the files itself: pickling maps would copy all of them
        return {**self.__dict__, "_open": {}}
