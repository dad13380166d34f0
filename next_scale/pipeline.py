"""The Python interface that the backends share: a model as a function from conditions to samples."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from next_scale.cli import sample_seed
from next_scale.condition import collate_conditions, encode_condition
from next_scale.model import Generator


class Pipeline:
    """A loaded generator.

    Args:
        generator: the model.

    Shape notation: B samples, L tokens.
    """

    def __init__(self, generator: Generator):
        self.generator = generator

    @property
    def condition_spec(self) -> dict[str, list]:
        """Conditions and their values."""
        return self.generator.condition_spec

    def __call__(
        self, count: int = 1, seed: int = 0, sampling: dict | None = None, **condition: str | int | Tensor | None
    ) -> Tensor:
        """Generate samples; the same as the command ``generate`` with the same seed.

        Args:
            count: B.
            seed: same seed, same samples.
            sampling: fields of :class:`next_scale.sampling.SamplingOptions` in place of the checkpoint's own.
            condition: such as ``label="flute", pitch=60``, or a vector (S,) for a field that takes one; what is left
                out is left to the model.

        Returns:
            (B, ...) float32 in [-1, 1].

        Raises:
            UserError: an unknown condition, or a sampling option out of range.
        """
        batch = self._conditions(count, condition)
        options = replace(self.generator.sampling, **(sampling or {}))
        samples, _ = self.generator.generate(batch, [sample_seed(seed, i) for i in range(count)], options)
        return samples

    def _conditions(self, count: int, condition: dict[str, str | int | Tensor | None]) -> dict[str, Tensor]:
        """One condition, B times, as the model takes it: field -> (B,) or (B, S)."""
        vectors = {name: torch.as_tensor(condition[name]) for name in self.generator.vectors if name in condition}
        listed = {name: value for name, value in condition.items() if name not in vectors}
        indices = encode_condition(self.condition_spec, listed)
        return collate_conditions([indices | vectors] * count, self.condition_spec, self.generator.vectors)

    def tokenize(self, samples: Tensor) -> Tensor:
        """(B, ...) float32, of the size that the model makes -> tokens (B, L) int64."""
        return self.generator.tokenizer.encode(samples)

    def detokenize(self, tokens: Tensor, scales: int | None = None) -> Tensor:
        """Tokens (B, L) -> (B, ...), from the first `scales` scales only where given."""
        return self.generator.tokenizer.decode(tokens, scales)
