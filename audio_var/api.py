"""The Python interface: a model as a function from conditions to clips."""

from __future__ import annotations

import torch

from audio_var.cli.models import open_generator
from next_scale.pipeline import Pipeline


class AudioModel(Pipeline):
    """A loaded generator of clips (B, 1, N) float32 in [-1, 1].

    Shape notation: B clips, N samples.
    """

    @property
    def sample_rate(self) -> int:
        """Of the clips, in Hz."""
        return self.generator.tokenizer.autoencoder.sample_rate


def load(checkpoint: str | None = None, device: str | torch.device = "auto") -> AudioModel:
    """Load a generator: the shipped one, or that of a folder, a ``.safetensors`` file or a hub id.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    return AudioModel(open_generator(checkpoint, str(device)))
