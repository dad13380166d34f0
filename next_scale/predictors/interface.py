"""What every family of predictors offers, so that training, checkpoints and programs need not know which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from next_scale.condition import Conditioner, ConditionSpec
from next_scale.predictors.known import Evidence
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule


class LossOutput(NamedTuple):
    """loss: scalar to minimise. per_scale: (K,) mean cross-entropy in nats. accuracy: (K,) share of top-1 hits.

    A family that predicts no tokens has one entry in `per_scale`, its loss, and none in `accuracy`.
    """

    loss: Tensor
    per_scale: Tensor
    accuracy: Tensor


class Generated(NamedTuple):
    """tokens: (B, L) int64. latent: (B, C, *grid) float32, what the autoencoder decodes: that of the tokens, or, with
    `SamplingOptions.smooth`, of the mixtures of which they are the heaviest codes, or, where the latent itself was
    predicted, that one, of which the tokens are the nearest codes."""

    tokens: Tensor
    latent: Tensor


class Predictor(nn.Module, ABC):
    """Learns the distribution of a frozen tokenizer's pyramids, or of the latents behind them, and draws from it.

    Attributes:
        name: of the family, in checkpoints and recipes.
        exact_log_prob: whether :meth:`log_prob` is exact in eval mode; else it is a lower bound or missing.
        conditioner: its fields and values are in ``.spec``.
        schedule: of the pyramids.
        codebook_size: V.

    Shape notation: B batch, K scales, L tokens, C latent channels.
    """

    name: ClassVar[str]
    exact_log_prob: ClassVar[bool]
    conditioner: Conditioner
    schedule: Schedule
    codebook_size: int

    @classmethod
    @abstractmethod
    def for_quantizer(cls, quantizer: MultiScaleQuantizer, spec: ConditionSpec, **options) -> Predictor:
        """A new predictor of a quantizer's pyramids.

        Args:
            spec: condition fields and their values.
            options: further arguments of the family's constructor.

        Raises:
            UserError: the family does not fit such pyramids.
        """

    @abstractmethod
    def inputs(self, quantizer: MultiScaleQuantizer, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        """What the loss needs beside the tokens; no gradient passes.

        Args:
            tokens: (B, L) int64.
            latent: (B, C, *grid) float32, what the autoencoder gave and the tokens approximate, where it is at hand.
        """

    @abstractmethod
    def loss(self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor]) -> LossOutput:
        """What training minimises, for tokens (B, L), their :meth:`inputs`, and condition fields."""

    @abstractmethod
    def log_prob(self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Natural log-probability of tokens (B, L), summed within each scale: (B, K).

        Raises:
            UserError: the family has none.
        """

    @abstractmethod
    def generate(
        self,
        quantizer: MultiScaleQuantizer,
        condition: Mapping[str, Tensor],
        batch: int,
        sampling: SamplingOptions | None = None,
        generator: torch.Generator | None = None,
        seeds: int | Sequence[int] | Tensor | None = None,
        known: Tensor | None = None,
        forced: Tensor | None = None,
        evidence: Evidence | None = None,
    ) -> Generated:
        """Draw B samples, see :meth:`next_scale.predictors.next_scale.NextScale.generate`."""

    @abstractmethod
    def steps(self, sampling: SamplingOptions) -> int:
        """How often the network is evaluated for one sample, guidance not counted."""

    @abstractmethod
    def to_config(self) -> dict:
        """Arguments that build this predictor again, for JSON."""

    @classmethod
    def from_config(cls, config: Mapping) -> Predictor:
        """Inverse of :meth:`to_config`."""
        return cls(**config)

    def start_from(self, quantizer: MultiScaleQuantizer) -> None:  # noqa: B027
        """Take from a new quantizer what helps the start of training; nothing by default."""

    @abstractmethod
    def pack(self, int8: bool = False) -> None:
        """See :meth:`next_scale.transformer.Transformer.pack`."""
