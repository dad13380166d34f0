"""Audio as a modality of the comparison: short clips, as a line of latent frames or as a grid of time and pitch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from audio_var.codecs.mel_grid import MelGridCodec
from audio_var.codecs.spectral import SpectralCodec
from audio_var.data.datamodule import AudioDataModule
from audio_var.evaluator import load_evaluator
from audio_var.io import write_audio
from audio_var.losses import MelDistance
from audio_var.metrics import multi_resolution_convergence
from audio_var.objective import AudioObjective
from audio_var.plots import spectrogram_thumbnail
from next_scale.commands.backend import Backend
from next_scale.compare.modality import Modality
from next_scale.errors import UserError

_CODECS = {"1d": SpectralCodec, "2d": MelGridCodec}


class AudioModality(Modality):
    """Notes of 1.024 s at 16 kHz."""

    name = "audio"
    features_name = "embedding of the shipped note evaluator, 128 features"
    sample_rate = 16_000
    dims = 16_384
    seconds = dims / sample_rate

    def __init__(self) -> None:
        self._evaluator = load_evaluator()
        self._mel = MelDistance(self.sample_rate)

    @classmethod
    def backend(cls) -> Backend:
        from audio_var.cli.backend import BACKEND  # a command line's; what compares needs none

        return BACKEND

    def data(self, **options) -> AudioDataModule:
        return AudioDataModule(**{"data": "data/notes", **options})

    def autoencoder(self, dimension: str, **options) -> nn.Module:
        if dimension not in _CODECS:
            raise UserError(f"audio has latents in 1d and 2d, not in {dimension}")
        return _CODECS[dimension](**{"sample_rate": self.sample_rate, **options})

    def objective(self, dimension: str, **options) -> nn.Module:
        return AudioObjective(**options)

    def features(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        judged = self._evaluator.judge(samples)
        return judged.embedding, judged.label

    def distortion(self, samples: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        a, b = samples[:, 0], decoded[:, 0]
        return {"log-mel": self._mel(a, b), "spectral convergence": multi_resolution_convergence(a, b)}

    def write(self, folder: Path, names: Sequence[str], samples: Tensor) -> list[dict]:
        found = []
        for name, sample in zip(names, samples, strict=True):
            write_audio(folder / f"{name}.flac", sample[0].numpy(), self.sample_rate)
            spectrogram_thumbnail(folder / f"{name}.png", sample[0].numpy(), self.sample_rate)
            found.append({"file": f"{name}.flac", "picture": f"{name}.png", "kind": "sound"})
        return found
