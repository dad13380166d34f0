"""The Python interface: a model as a function from conditions to clips."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from audio_var.cli.models import open_generator
from next_scale.cli import sample_seed
from next_scale.condition import collate_conditions, encode_condition
from next_scale.model import Generator


class AudioModel:
    """A loaded generator.

    Shape notation: B clips, N samples, L tokens.
    """

    def __init__(self, generator: Generator):
        self.generator = generator

    @property
    def sample_rate(self) -> int:
        """Of the clips, in Hz."""
        return self.generator.tokenizer.autoencoder.sample_rate

    @property
    def condition_spec(self) -> dict[str, list]:
        """Conditions and their values."""
        return self.generator.condition_spec

    def __call__(
        self, count: int = 1, seed: int = 0, sampling: dict | None = None, **condition: str | int | None
    ) -> Tensor:
        """Generate clips; the same as ``audio-var generate`` with the same seed.

        Args:
            count: B.
            seed: same seed, same clips.
            sampling: fields of :class:`next_scale.sampling.SamplingOptions` in place of the checkpoint's own.
            condition: such as ``label="flute", pitch=60``; what is left out is left to the model.

        Returns:
            (B, 1, N) float32 in [-1, 1].

        Raises:
            UserError: an unknown condition, or a sampling option out of range.
        """
        indices = encode_condition(self.condition_spec, condition)
        options = replace(self.generator.sampling, **(sampling or {}))
        batch = collate_conditions([indices] * count, self.condition_spec)
        clips, _ = self.generator.generate(batch, [sample_seed(seed, i) for i in range(count)], options)
        return clips

    def tokenize(self, waveform: Tensor) -> Tensor:
        """(B, 1, N) float32 at `sample_rate`, N of one clip -> tokens (B, L) int64."""
        return self.generator.tokenizer.encode(waveform)

    def detokenize(self, tokens: Tensor, scales: int | None = None) -> Tensor:
        """Tokens (B, L) -> (B, 1, N), from the first `scales` scales only where given."""
        return self.generator.tokenizer.decode(tokens, scales)


def load(checkpoint: str | None = None, device: str | torch.device = "auto") -> AudioModel:
    """Load a generator: the shipped one, or that of a folder, a ``.safetensors`` file or a hub id.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    return AudioModel(open_generator(checkpoint, str(device)))
