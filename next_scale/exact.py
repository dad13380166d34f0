"""Resuming a training exactly: the same samples in the same order, and the same random numbers.

Batches of an epoch are a function of seed and epoch, and what is random in a sample one of seed, epoch and sample, so
that neither an interruption nor the number of worker processes changes them. (torchdata's StatefulDataLoader 0.11 goes
on with another order in the next epoch, and with other random numbers in its workers.)

Nor do several processes change them, see :mod:`next_scale.ranks`: together their batches are those of one process, with
a batch as large as all of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from next_scale import ranks


class _Order(DistributedSampler):
    """The samples of this process in the epoch's order, as (epoch, indices int64), from the first batch that is due.

    A DistributedSampler, so that Lightning tells it the epoch and leaves it as it is with several processes.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        self.batches_at_once = max(1, getattr(dataset, "together", 1) // batch_size)
        enough = len(dataset) >= batch_size * ranks.count()  # for one whole batch: what is left over waits an epoch
        super().__init__(dataset, ranks.count(), ranks.rank(), shuffle=True, seed=seed, drop_last=enough)
        self.batch_size = min(batch_size, self.num_samples)  # equal batches, but never none
        self.start = 0

    @property
    def batches(self) -> int:
        """Of this process in an epoch."""
        return self.num_samples // self.batch_size

    def __len__(self) -> int:
        return -(-self.batches // self.batches_at_once)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        ordered, reach = getattr(self.dataset, "order", None), getattr(self.dataset, "reach", None)
        order = torch.randperm(len(self.dataset), generator=generator) if ordered is None else ordered(generator)
        order = order.repeat(-(-self.total_size // len(order)))  # as many for every process
        mine = order[self.rank : self.total_size : self.num_replicas]
        for first in range(self.start, self.batches, self.batches_at_once):
            place, end = (self.batch_size * n for n in (first, min(first + self.batches_at_once, self.batches)))
            if reach is not None:
                reach(place * self.num_replicas)
            yield self.epoch, mine[place:end]


class _Batches(Dataset):
    """Many samples of a data set at once; what is random in one is drawn with random numbers of its own."""

    def __init__(self, dataset: Dataset, seed: int, collate: Callable[[list], object]) -> None:
        self.dataset, self.seed, self.collate = dataset, seed, collate
        self.whole = getattr(dataset, "batch", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, due: tuple[int, Tensor]) -> object:
        epoch, indices = due
        if self.whole is not None:
            return self.whole(indices.numpy())
        return self.collate([drawn(self.dataset, index, (self.seed, epoch)) for index in indices.tolist()])


def drawn(dataset: Dataset, index: int, seeds: tuple[int, ...]) -> object:
    """A sample whose random numbers depend on `seeds` and its index alone, whoever reads it and after whichever."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(hash((*seeds, index)) % 2**63)
        return dataset[index]


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
        dataset: of fixed length; what is random in it must come from PyTorch's global generator. It may bring
            ``batch(indices)``, many samples at once of which nothing is random, and ``together``, how many it likes to
            give; ``order(generator)``, an order of its own, and ``reach(place)``, which is told how far that has come.
            :class:`next_scale.shards.reader.TokenSet` does.
        batch_size: B, of this process; all batches are of this size, but where the split is smaller.
        seed: of the order and of what is random in the samples.
        collate: makes a batch of samples.
        options: of :class:`torch.utils.data.DataLoader`.

    Shape notation: B batch.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int,
        collate: Callable[[list], object] = default_collate, **options,
    ) -> None:  # fmt: skip
        sampler = _Order(dataset, batch_size, seed)
        own = torch.Generator()  # of a base seed that nothing uses, but that would be drawn from the global generator
        super().__init__(_Batches(dataset, seed, collate), batch_size=None, sampler=sampler, generator=own, **options)
        self.samples, self.size = dataset, sampler.batch_size
        self._done, self._before, self._left = 0, None, None

    def __iter__(self) -> Iterator:
        order = self.sampler
        if self._before == order.epoch and self._left is None:  # a loop that tells no epochs
            order.set_epoch(order.epoch + 1)
        left, self._left = self._left, None
        self._before = order.epoch
        self._done = left["batches"] if left is not None and left["epoch"] == order.epoch else 0
        order.start = self._done
        for found in super().__iter__():
            for batch in (found,) if order.batches_at_once == 1 else _split(found, order.batch_size):
                self._done += 1
                yield batch

    def __len__(self) -> int:
        return self.sampler.batches

    def state_dict(self) -> dict[str, int]:
        """The epoch, and its batches that were handed out."""
        return {"epoch": self.sampler.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after those batches, if this epoch is the next."""
        self._left = state


def _split(samples: dict, size: int) -> Iterator[dict]:
    """Many samples, a dictionary of tensors and of such dictionaries, as batches of `size` of them."""
    split = {name: list(_split(v, size)) if isinstance(v, dict) else v.split(size) for name, v in samples.items()}
    count = max(map(len, split.values()), default=0)
    for number in range(count):
        yield {name: parts[number] if parts else {} for name, parts in split.items()}


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
