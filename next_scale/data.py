"""What the data modules of all modalities share: batches of the three splits of a data set."""

import logging
from abc import abstractmethod

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from next_scale.condition import ConditionSpec
from next_scale.errors import UserError
from next_scale.exact import HeldOutLoader, TrainingLoader

logger = logging.getLogger(__name__)


class SplitDataModule(lightning.LightningDataModule):
    """What loaders of the three splits of a data set share, whatever is in them.

    A subclass says what its conditions may be, and gives the loaders of the training and of a held-out split.

    Args:
        batch_size: B, of each process. num_workers: loader processes; 0 reads in the training process.
        seed: of the order of the batches, and of what is random in the samples.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int):
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    @property
    @abstractmethod
    def condition_spec(self) -> ConditionSpec:
        """Field name -> its values, in the order of the indices in a batch."""

    @abstractmethod
    def _held_out(self, split: str) -> DataLoader | list:
        """The loader of "validation" or "test"; no batches where there is no such split."""

    def val_dataloader(self) -> DataLoader | list:
        return self._held_out("validation")

    def test_dataloader(self) -> DataLoader | list:
        return self._held_out("test")

    def _reading(self) -> dict:
        """Options of loaders."""
        workers = self.num_workers
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


class SampleDataModule(SplitDataModule):
    """Batches {"sample": float32 (B, ...), "condition": {field: int64 (B,)}} of the three splits of a data set.

    A subclass says how a split is opened (`_open`) and what the data is called (`name`).

    Args:
        batch_size: B, of each process. num_workers: loader processes; 0 reads in the training process.
        seed: of the order of the batches, and of what is random in the samples.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int):
        super().__init__(batch_size, num_workers, seed)
        self._datasets: dict[str, Dataset] = {}
        self._checksum: str | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the data, for files made from it."""

    @abstractmethod
    def _open(self, split: str) -> Dataset:
        """The data set of a split, with ``condition_spec``. Raises UserError where there is none."""

    @property
    def condition_spec(self) -> ConditionSpec:
        """Field name -> its values, in the order of the indices in a batch."""
        return self.dataset("train").condition_spec

    def dataset(self, split: str) -> Dataset:
        """The data set of "train", "validation" or "test", opened once."""
        if split not in self._datasets:
            self._datasets[split] = self._open(split)
        return self._datasets[split]

    def provenance(self) -> dict[str, str | None]:
        """Name of the data, and the checksum that its data set gives, where it gives one."""
        if self._checksum is None:
            self._checksum = getattr(self.dataset("train"), "manifest_sha256", None)
        return {"name": self.name, "sha256": self._checksum}

    def train_dataloader(self) -> DataLoader:
        return TrainingLoader(self.dataset("train"), self.batch_size, self.seed, **self._reading())

    def _held_out(self, split: str) -> DataLoader | list:
        try:
            return HeldOutLoader(self.dataset(split), self.batch_size, **self._reading())
        except UserError as error:
            # A small folder may leave a held-out split empty: that is no reason not to train on it.
            self.dataset("train")
            logger.warning("no %s data: %s", split, error)
            return []
