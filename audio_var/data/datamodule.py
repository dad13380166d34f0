"""The audio data sets as a LightningDataModule, for training from a YAML file."""

import logging
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from audio_var.data.folder import AudioFolder
from audio_var.data.notes import Notes
from next_scale.errors import UserError

logger = logging.getLogger(__name__)


class AudioDataModule(lightning.LightningDataModule):
    """Batches {"sample": float32 (B, 1, T), "condition": {field: int64 (B,)}} for training, validation and test.

    Args:
        data: a folder of notes (it holds a `manifest.json`), or of audio files, one sub-folder a class.
        batch_size: B. num_workers: loader processes; 0 reads in the training process.
        sample_rate: Hz. clip_samples: T. Notes must have been rendered with just these.
        seed: of the order of the batches and of random crops.
    Raises UserError for a missing folder or one whose notes have another rate or length.
    """

    def __init__(
        self,
        data: str,
        batch_size: int = 16,
        num_workers: int = 0,
        sample_rate: int = 16_000,
        clip_samples: int = 16_384,
        seed: int = 0,
    ):
        super().__init__()
        self.data, self.batch_size, self.num_workers = Path(data), batch_size, num_workers
        self.sample_rate, self.clip_samples, self.seed = sample_rate, clip_samples, seed
        self._datasets: dict[str, Dataset] = {}

    @property
    def name(self) -> str:
        """Name of the data, for files made from it."""
        return self.data.resolve().name

    @property
    def condition_spec(self) -> dict[str, list]:
        """Field name -> its values, in the order of the indices in a batch."""
        return self.dataset("train").condition_spec

    def dataset(self, split: str) -> Notes | AudioFolder:
        """The data set of "train", "validation" or "test", opened once."""
        if split not in self._datasets:
            self._datasets[split] = self._open(split)
        return self._datasets[split]

    def _open(self, split: str) -> Notes | AudioFolder:
        if not self.data.is_dir():
            raise UserError(f"there is no data folder {self.data}: check data.data, or render the notes there")
        if not (self.data / "manifest.json").is_file():
            return AudioFolder(self.data, self.sample_rate, self.clip_samples, split)
        notes = Notes(self.data, split)
        found, asked = (notes.sample_rate, notes.clip_samples), (self.sample_rate, self.clip_samples)
        if found != asked:
            cause = f"{self.data} holds clips of {found[1]} samples at {found[0]} Hz, not {asked[1]} at {asked[0]}"
            raise UserError(f"{cause}: set clip_samples and sample_rate to those")
        return notes

    def train_dataloader(self) -> DataLoader:
        dataset = self.dataset("train")
        # The generator also seeds each worker's crops, anew each epoch.
        generator = torch.Generator().manual_seed(self.seed)
        drop_last = len(dataset) >= self.batch_size  # equal batches, but never none
        return self._loader(dataset, shuffle=True, drop_last=drop_last, generator=generator)

    def val_dataloader(self) -> DataLoader | list:
        return self._held_out("validation")

    def test_dataloader(self) -> DataLoader | list:
        return self._held_out("test")

    def _held_out(self, split: str) -> DataLoader | list:
        try:
            return self._loader(self.dataset(split), shuffle=False)
        except UserError as error:
            # A small folder may leave a held-out split empty: that is no reason not to train on it.
            self.dataset("train")
            logger.warning("no %s data: %s", split, error)
            return []

    def _loader(self, dataset: Dataset, **options) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )
