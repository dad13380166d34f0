"""What an audio training shows while it runs: clips and spectrograms in TensorBoard."""

from __future__ import annotations

from torch import Tensor

from audio_var.codecs.base import Codec
from audio_var.plots import spectrogram_figure
from next_scale.preview import Preview


class AudioPreview(Preview):
    """Clips and their spectrograms.

    Args:
        count: clips.
    """

    ability = "add_audio"

    def __init__(self, count: int = 4):
        super().__init__(count)

    def show(self, logger, name: str, samples: Tensor, autoencoder: Codec, step: int) -> None:
        rate = autoencoder.sample_rate
        for i, clip in enumerate(samples.cpu().clamp(-1, 1)):
            logger.add_audio(f"{name}/{i}", clip, step, rate)
        sheet = [(str(i), clip.cpu().numpy()) for i, clip in enumerate(samples[:, 0])]  # (n, 1, N) -> n x (N,)
        logger.add_figure(f"{name}/spectrograms", spectrogram_figure(sheet, rate, len(sheet)), step)
