"""A family of predictors from outside: every token by how often it occurs at its place, whatever the others are.

The least that a predictor can be: what it lacks of the others' likelihood is what they know about the other tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.condition import Conditioner
from next_scale.predictors.interface import Generated, LossOutput, Predictor
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule


class Marginal(Predictor):
    """Logits (L, V), and nothing else; conditions change nothing.

    Shape notation: B batch, K scales, L tokens, V codes.
    """

    name = "marginal"
    exact_log_prob = True

    def __init__(self, schedule: Schedule, codebook_size: int, spec: dict) -> None:
        super().__init__()
        self.schedule, self.codebook_size = schedule, codebook_size
        self.conditioner = Conditioner(spec, 1)
        self.logits = nn.Parameter(torch.zeros(schedule.length, codebook_size))

    @classmethod
    def for_quantizer(cls, quantizer, spec, **options) -> Marginal:
        """Options of transformers, such as a width, mean nothing here."""
        return cls(quantizer.schedule, quantizer.codebook_size, spec)

    def inputs(self, quantizer, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        return tokens.new_zeros(len(tokens), 0)

    def _log_prob(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, L)."""
        logits = self.logits.expand(len(tokens), -1, -1)
        return -F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")

    def loss(self, tokens: Tensor, inputs: Tensor, condition) -> LossOutput:
        found = self._log_prob(tokens)
        hits = (self.logits.argmax(1) == tokens).float().mean(0)
        each = [[part.mean() for part in self.schedule.split(row[None])] for row in (-found.detach().mean(0), hits)]
        return LossOutput(-found.mean(), torch.stack(each[0]), torch.stack(each[1]))

    def log_prob(self, tokens: Tensor, inputs: Tensor, condition) -> Tensor:
        return torch.stack([part.sum(1) for part in self.schedule.split(self._log_prob(tokens))], dim=1)

    @torch.inference_mode()
    def generate(self, quantizer, condition, batch, sampling=None, generator=None, seeds=None, known=None, forced=None):
        rows = []
        for seed in seeds:
            draw = torch.Generator().manual_seed(int(seed))
            rows.append(torch.multinomial(self.logits.softmax(1), 1, generator=draw)[:, 0])
        tokens = torch.stack(rows)
        return Generated(tokens, quantizer.decode(tokens))

    def steps(self, sampling: SamplingOptions) -> int:
        return 1

    def to_config(self) -> dict:
        return {"schedule": self.schedule.to_config(), "codebook_size": self.codebook_size,
                "spec": self.conditioner.spec}  # fmt: skip

    @classmethod
    def from_config(cls, config) -> Marginal:
        return cls(**{**config, "schedule": Schedule.from_config(config["schedule"])})

    def pack(self, int8: bool = False) -> None:
        return
