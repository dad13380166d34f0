"""The audio data sets as a LightningDataModule, for training from a YAML file."""

from pathlib import Path

from audio_var.data.folder import AudioFolder
from audio_var.data.notes import Notes
from next_scale.data import SampleDataModule
from next_scale.errors import UserError


class AudioDataModule(SampleDataModule):
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
        super().__init__(batch_size, num_workers, seed)
        self.data, self.sample_rate, self.clip_samples = Path(data), sample_rate, clip_samples

    @property
    def name(self) -> str:
        """Name of the data, for files made from it."""
        return self.data.resolve().name

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
