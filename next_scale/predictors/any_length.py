"""Next-scale prediction at any length: scales as strides of a grid that each call may choose."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from next_scale.condition import ConditionSpec
from next_scale.errors import UserError
from next_scale.predictors.interface import Generated, LossOutput, Predictor
from next_scale.predictors.next_scale import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule, StrideSchedule

_LONGEST = 4096  # frames of the slowest position wave
_KEPT = 16  # lengths whose attention blocks are kept


class AnyLength(Predictor):
    """A next-scale predictor over a `StrideSchedule`: one set of weights, pyramids of any length.

    It is :class:`next_scale.predictors.next_scale.NextScale` with positions that are computed instead of stored: the
    place of a token's centre in frames of the finest scale, as sines and cosines of geometrically spaced periods
    (arXiv 1706.03762, section 3.5), through one linear layer. So tokens of different scales that stand for the same
    frames share a position, and the level embedding tells them apart. It works at lengths like those it was trained on:
    train on clips of several lengths, or on random crops, to use it on several.

    Args:
        strides: of the scales, coarse to fine, ending at 1, such as (8, 4, 2, 1).
        codebook_size, latent_channels, spec, options: see :class:`next_scale.predictors.next_scale.NextScale`.
        grid: size of the full grid where generation is asked for none.
        waves: number of periods.

    Raises:
        UserError: strides that are no schedule, a grid that does not fit them, or more than one dimension.

    Shape notation: B batch, K scales, n_k tokens of scale k, L tokens in all, C channels, V codes, D width.
    """

    name = "any_length"
    exact_log_prob = True

    def __init__(
        self,
        strides: StrideSchedule | Sequence[int],
        codebook_size: int,
        latent_channels: int,
        spec: ConditionSpec | None = None,
        grid: Sequence[int] | None = None,
        waves: int = 32,
        **options,
    ) -> None:
        super().__init__()
        self.strides = strides if isinstance(strides, StrideSchedule) else StrideSchedule(tuple(strides))
        self.grid = tuple(grid or (self.strides.strides[0],))
        if len(self.grid) != 1:
            raise UserError(f"a predictor of any length has a grid of one dimension, got {self.grid}")
        smallest = self.strides.at((self.strides.strides[0],))
        self.strides.at(self.grid)  # raises where it does not fit
        self.shared = NextScale(smallest, codebook_size, latent_channels, spec, **options)
        for name in ("position_embed", "start_embed"):
            del self.shared._parameters[name]
        self.waves = waves
        self.place = nn.Linear(2 * waves, self.shared.level_embed.shape[1])
        nn.init.normal_(self.place.weight, std=(3 * self.place.out_features * waves) ** -0.5)
        nn.init.zeros_(self.place.bias)
        self._masks: dict[tuple[int, ...], nn.Module] = {}

    @property
    def conditioner(self) -> nn.Module:
        """Its fields and values are in ``.spec``."""
        return self.shared.conditioner

    @property
    def schedule(self) -> Schedule:
        """That of the length used where a call names none."""
        return self.strides.at(self.grid)

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.shared.codebook_size

    def to_config(self) -> dict:
        """Arguments that build this predictor again, for JSON."""
        config = self.shared.to_config()
        del config["schedule"]
        return {"strides": list(self.strides.strides), "grid": list(self.grid), "waves": self.waves, **config}

    @classmethod
    def for_quantizer(cls, quantizer: MultiScaleQuantizer, spec: ConditionSpec, **options) -> AnyLength:
        """See :meth:`next_scale.predictors.interface.Predictor.for_quantizer`."""
        return cls(quantizer.schedule, quantizer.codebook_size, quantizer.channels, spec, **options)

    def inputs(self, quantizer: MultiScaleQuantizer, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        """As :meth:`next_scale.predictors.next_scale.NextScale.inputs`."""
        return quantizer.teacher_forcing(tokens)

    def steps(self, sampling: SamplingOptions) -> int:
        """K."""
        return self.strides.scales

    def start_from(self, quantizer: MultiScaleQuantizer) -> None:
        """See :meth:`next_scale.predictors.next_scale.NextScale.start_from`."""
        self.shared.start_from(quantizer)

    def pack(self, int8: bool = False) -> None:
        """See :meth:`next_scale.transformer.Transformer.pack`."""
        self.shared.pack(int8)

    def at(self, grid: Sequence[int] | None = None) -> NextScale:
        """A predictor of fixed length that shares all weights with this one, and its gradients.

        Raises:
            UserError: the coarsest stride does not divide the grid.
        """
        grid = tuple(grid or self.grid)
        schedule = self.strides.at(grid)
        device = self.place.weight.device
        if grid not in self._masks:
            while len(self._masks) >= _KEPT:
                del self._masks[next(iter(self._masks))]
            with torch.inference_mode(False):  # what generation caches must serve training too
                self._masks[grid] = self.shared._attention(schedule.visible_end)
        fixed = copy.copy(self.shared)
        fixed.__dict__ = dict(self.shared.__dict__)
        fixed._modules = {**self.shared._modules, "prefix": self._masks[grid].to(device)}
        fixed._buffers = {"level": schedule.level.to(device)}
        fixed.schedule = schedule
        fixed.position_embed = self.place(self._waves(schedule, device))
        fixed.start_embed = fixed.position_embed.new_zeros(schedule.counts[0], 1)  # the place tells enough
        return fixed

    def _waves(self, schedule: Schedule, device: torch.device) -> Tensor:
        """Sines and cosines of every token's centre: (L, 2 waves)."""
        centres = [(torch.arange(count) + 0.5) * (schedule.grid[0] / count) for count in schedule.counts]
        periods = torch.logspace(1, math.log2(_LONGEST), self.waves, base=2)
        phase = 2 * math.pi * torch.cat(centres)[:, None] / periods
        return torch.cat([phase.sin(), phase.cos()], 1).to(device)

    def forward(self, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`next_scale.predictors.next_scale.NextScale.forward`, at the length of the inputs."""
        return self.at(self.strides.of_length(inputs.shape[1], without_first=True).grid)(inputs, condition)

    def loss(self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor]) -> LossOutput:
        """As :meth:`next_scale.predictors.next_scale.NextScale.loss`, at the length of the tokens."""
        return self.at(self.strides.of_length(tokens.shape[1]).grid).loss(tokens, inputs, condition)

    def log_prob(self, tokens: Tensor, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`next_scale.predictors.next_scale.NextScale.log_prob`, at the length of the tokens."""
        return self.at(self.strides.of_length(tokens.shape[1]).grid).log_prob(tokens, inputs, condition)

    def generate(
        self,
        quantizer: MultiScaleQuantizer,
        condition: Mapping[str, Tensor],
        batch: int,
        sampling: SamplingOptions | None = None,
        grid: Sequence[int] | None = None,
        **options,
    ) -> Generated:
        """As :meth:`next_scale.predictors.next_scale.NextScale.generate`, at any length.

        Args:
            quantizer: of the same strides.
            grid: size of the full grid; the predictor's own by default.
        """
        with torch.no_grad():
            fixed = self.at(grid)
        pyramid = copy.copy(quantizer)  # shares all weights
        pyramid.schedule = fixed.schedule
        return fixed.generate(pyramid, condition, batch, sampling, **options)
