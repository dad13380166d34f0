"""The Python interface that the backends share: a model as a function from conditions to samples."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from next_scale.cli import sample_seed
from next_scale.condition import collate_conditions, encode_condition
from next_scale.conditioning import PROMPT, clean_prompt, encode_prompt
from next_scale.model import Generator
from next_scale.sampling import SamplingOptions


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
            condition: such as ``label="flute", pitch=60``, or a vector (S,) for a field that takes one, or, of a model
                that reads words, ``prompt="soft low flute"``; what is left out is left to the model.

        Returns:
            (B, ...) float32 in [-1, 1].

        Raises:
            UserError: an unknown condition, or a sampling option out of range.
        """
        batch, seeds, options = self._asked(count, seed, sampling, condition)
        samples, _ = self.generator.generate(batch, seeds, options)
        return samples

    def _condition(self, condition: dict[str, str | int | Tensor | None]) -> dict[str, int | Tensor]:
        """Values by name to indices and vectors."""
        vectors = {name: torch.as_tensor(condition.pop(name)) for name in self.generator.vectors if name in condition}
        if self.generator.words is not None and condition.get(PROMPT) is not None:
            text = clean_prompt(condition.pop(PROMPT))
            self.generator.words.check(text)
            vectors[PROMPT] = encode_prompt(text)
        return encode_condition(self.condition_spec, condition) | vectors

    def _asked(
        self, count: int, seed: int, sampling: dict | None, condition: dict[str, str | int | Tensor | None]
    ) -> tuple[dict[str, Tensor], list[int], SamplingOptions]:
        """Condition batch, a seed each, and options of `count` samples that are alike but for their seeds."""
        options = replace(self.generator.sampling, **(sampling or {}))
        rows = [self._condition(condition)] * count
        batch = collate_conditions(rows, self.condition_spec, self.generator.vectors)
        return batch, [sample_seed(seed, i) for i in range(count)], options

    def tokenize(self, samples: Tensor) -> Tensor:
        """(B, ...) float32, of the size that the model makes -> tokens (B, L) int64."""
        return self.generator.tokenizer.encode(samples)

    def detokenize(self, tokens: Tensor, scales: int | None = None) -> Tensor:
        """Tokens (B, L) -> (B, ...), from the first `scales` scales only where given."""
        return self.generator.tokenizer.decode(tokens, scales)
