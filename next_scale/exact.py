"""Resuming a training exactly: the same samples in the same order, and the same random numbers.

Batches of an epoch are a function of seed and epoch, and what is random in a sample one of seed, epoch and sample, so
that neither an interruption nor the number of worker processes changes them. (torchdata's StatefulDataLoader 0.11 goes
on with another order in the next epoch, and with other random numbers in its workers.)

Nor do several processes change them, see :mod:`next_scale.ranks`: together their batches are those of one process, with
a batch as large as all of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from next_scale import ranks


class _Order(DistributedSampler):
    """Indices of this process's samples in the epoch's order, each with its seed, from the first that is still due.

    A DistributedSampler, so that Lightning tells it the epoch and leaves it as it is with several processes.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        enough = len(dataset) >= batch_size * ranks.count()  # for one whole batch: what is left over waits an epoch
        super().__init__(dataset, ranks.count(), ranks.rank(), shuffle=True, seed=seed, drop_last=enough)
        self.start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        indices = list(super().__iter__())
        for index in indices[self.start :]:
            yield index, hash((self.seed, self.epoch, index)) % 2**63


class _Seeded(Dataset):
    """Samples drawn with random numbers of their own."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> object:
        index, seed = place
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            return self.dataset[index]


class _Rest(DistributedSampler):
    """Indices of this process's samples in their order, none of them twice in all processes together.

    Processes whose samples do not suffice for as many batches as others have get one more sample, which does not count.
    """

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        super().__init__(dataset, ranks.count(), ranks.rank(), shuffle=False)
        self.indices = list(range(self.rank, len(dataset), self.num_replicas))
        most = -(-len(dataset) // self.num_replicas)  # samples of the first process
        self.short = -(-len(self.indices) // batch_size) < -(-most // batch_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices + [0] * self.short)

    def __len__(self) -> int:
        return len(self.indices) + self.short


class HeldOutLoader(DataLoader):
    """Batches of a split that is looked at in order, by several processes each sample once.

    A batch is a dictionary; one that is there only because other processes have one more has the entry ``"counts": 0``.

    Args:
        dataset: of fixed length.
        batch_size: B.
        options: of :class:`torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset, batch_size: int, **options) -> None:
        # a generator of its own: from the global one it would draw as often as its workers are started
        own = torch.Generator()
        super().__init__(dataset, batch_size, sampler=_Rest(dataset, batch_size), generator=own, **options)

    def __iter__(self) -> Iterator[dict]:
        last = len(self) - 1
        for i, batch in enumerate(super().__iter__()):
            yield batch | {"counts": 0} if self.sampler.short and i == last else batch


class TrainingLoader(DataLoader):
    """Batches of a training split, which a checkpoint of Lightning's can go on with in the middle of an epoch.

    Args:
        dataset: of fixed length; what is random in it must come from PyTorch's global generator.
        batch_size: B, of this process; all batches are of this size, but where the split is smaller.
        seed: of the order and of what is random in the samples.
        options: of :class:`torch.utils.data.DataLoader`.

    Shape notation: B batch.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, **options) -> None:
        sampler = _Order(dataset, batch_size, seed)
        drop_last = sampler.drop_last  # equal batches, but never none
        own = torch.Generator()  # of a base seed that nothing uses, but that would be drawn from the global generator
        super().__init__(_Seeded(dataset), batch_size, sampler=sampler, drop_last=drop_last, generator=own, **options)
        self.samples, self._done, self._before, self._left = dataset, 0, None, None

    def __iter__(self) -> Iterator:
        order = self.sampler
        if self._before == order.epoch and self._left is None:  # a loop that tells no epochs
            order.set_epoch(order.epoch + 1)
        left, self._left = self._left, None
        self._before = order.epoch
        self._done = left["batches"] if left is not None and left["epoch"] == order.epoch else 0
        order.start = self._done * self.batch_size
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and its batches that were handed out."""
        return {"epoch": self.sampler.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after those batches, if this epoch is the next."""
        self._left = state


class RandomState(L.Callback):
    """Keeps the state of PyTorch's random numbers with every checkpoint and goes on from it.

    What a training draws besides its samples (dropout, masks, conditions left out) then is what it would have drawn
    without the interruption. Of several processes all go on from the first one's state, which they share from the
    start.
    """

    def __init__(self) -> None:
        self._resumed: dict[str, Tensor | list[Tensor]] | None = None

    def state_dict(self) -> dict[str, Tensor | list[Tensor]]:
        return {
            "cpu": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of this process's device
        }

    def load_state_dict(self, state_dict: dict) -> None:
        self._resumed = state_dict

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """After everything that is built has drawn its first weights, and before the first batch is read."""
        if self._resumed is None:
            return
        torch.set_rng_state(self._resumed["cpu"].cpu())
        if torch.cuda.is_available() and self._resumed["cuda"]:
            torch.cuda.set_rng_state(self._resumed["cuda"][0].cpu())
        self._resumed = None
