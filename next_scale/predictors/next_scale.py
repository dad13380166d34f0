"""Next-scale prediction: one transformer step gives a whole token map (VAR, arXiv 2404.02905, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.attention import PrefixAttention
from next_scale.condition import Conditioner, ConditionSpec, VectorSpec, any_given
from next_scale.errors import UserError
from next_scale.predictors.token_predictor import TOLERANCE, TokenPredictor
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import NoiseStreams, SamplingOptions, guide, sample, soften
from next_scale.schedule import Schedule
from next_scale.transformer import Transformer, init_weight


class NextScale(TokenPredictor):
    """Predicts every token of a scale at once from all coarser scales and the condition.

    The input of scale 0 is the condition's embedding; that of scale k the sum of scales < k, resampled to scale k's
    size (:meth:`next_scale.quantizer.MultiScaleQuantizer.teacher_forcing`). Each token also gets a position embedding
    of its place in the pyramid and one of its scale.

    Args:
        schedule: of the quantizer; a text such as "1 2 4 8" will do.
        codebook_size: V.
        latent_channels: C of the inputs: the channels inside the quantizer's pyramid (`quantizer.channels`).
        spec: condition fields and their values; empty for unconditional prediction.
        width, depth, heads, mlp_ratio, shared_modulation, qk_norm, softmax_scale, dropout, drop_path: see
            :class:`next_scale.transformer.Transformer`.
        condition_dropout, field_dropout: see :class:`next_scale.condition.Conditioner`.
        vectors: condition fields that are vectors, see :class:`next_scale.condition.Conditioner`.
        codebook_head: logits of scale k are the dot products with output embeddings of its own codes, which
            :meth:`start_from` sets to the codebook's entries; else one linear layer serves all scales (VAR: its scales
            share one codebook). With a codebook a scale, neighbouring codes share what is learned about either.
        label_smoothing: of the training loss; the losses reported per scale are without.
        scale_power: the training loss weights the mean of scale k by n_k ** scale_power: 1 is the mean over tokens
            (VAR), 0 the mean over scales. Below 1 the few coarse tokens, on which all else hangs, are learned sooner.

    Raises:
        UserError: `width` is not a multiple of `heads`.

    Shape notation: B batch, K scales, n_k tokens of scale k, L tokens in all, C channels, V codes, D width.
    """

    name = "next_scale"
    exact_log_prob = True

    def __init__(
        self,
        schedule: Schedule | str | list,
        codebook_size: int,
        latent_channels: int,
        spec: ConditionSpec | None = None,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        shared_modulation: bool = False,
        qk_norm: bool = False,
        softmax_scale: float | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        condition_dropout: float = 0.1,
        field_dropout: float = 0.0,
        codebook_head: bool = False,
        label_smoothing: float = 0.0,
        scale_power: float = 1.0,
        vectors: VectorSpec | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} is not a multiple of {heads} heads")
        self.schedule = schedule if isinstance(schedule, Schedule) else Schedule.parse(schedule)
        self.codebook_size, self.latent_channels = codebook_size, latent_channels
        self.label_smoothing, self.scale_power = label_smoothing, scale_power
        self.conditioner = Conditioner(spec or {}, width, condition_dropout, field_dropout, vectors)
        self.options = {
            "width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio,
            "shared_modulation": shared_modulation, "qk_norm": qk_norm, "softmax_scale": softmax_scale,
            "dropout": dropout, "drop_path": drop_path, "condition_dropout": condition_dropout,
            "field_dropout": field_dropout, "codebook_head": codebook_head,
            "label_smoothing": label_smoothing, "scale_power": scale_power, "vectors": vectors,
        }  # fmt: skip
        self.previous_embed: nn.Linear | None = None  # of the token before, for families that predict one by one
        self.codes = self.code_bias = None
        if codebook_head:
            self.codes = nn.Parameter(torch.randn(self.schedule.scales, codebook_size, latent_channels))
            self.code_bias = nn.Parameter(torch.zeros(self.schedule.scales, codebook_size))
        self.transformer = Transformer(
            width,
            depth,
            heads,
            latent_channels if codebook_head else codebook_size,
            mlp_ratio,
            shared_modulation,
            qk_norm,
            softmax_scale,
            dropout,
            drop_path,
        )
        self.prefix = PrefixAttention(self.schedule.visible_end)
        self.word_embed = nn.Linear(latent_channels, width)
        self.level_embed = nn.Parameter(torch.empty(self.schedule.scales, width))
        self.position_embed = nn.Parameter(torch.empty(self.schedule.length, width))
        self.start_embed = nn.Parameter(torch.empty(self.schedule.counts[0], width))
        self.register_buffer("level", self.schedule.level, persistent=False)
        std = (3 * width) ** -0.5
        nn.init.zeros_(self.word_embed.bias)
        for weight in (self.word_embed.weight, self.level_embed, self.position_embed, self.start_embed):
            init_weight(weight, std)

    def to_config(self) -> dict:
        """Arguments that build this predictor again, for JSON."""
        return {
            "schedule": self.schedule.to_config(), "codebook_size": self.codebook_size,
            "latent_channels": self.latent_channels, "spec": self.conditioner.spec, **self.options,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: Mapping) -> NextScale:
        """Inverse of :meth:`to_config`."""
        return cls(**{**config, "schedule": Schedule.from_config(config["schedule"])})

    @classmethod
    def for_quantizer(cls, quantizer: MultiScaleQuantizer, spec: ConditionSpec, **options) -> NextScale:
        """See :meth:`next_scale.predictors.interface.Predictor.for_quantizer`."""
        return cls(quantizer.schedule, quantizer.codebook_size, quantizer.channels, spec, **options)

    def inputs(self, quantizer: MultiScaleQuantizer, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        """The latent so far before every scale but the first: (B, L - n_0, C)."""
        return quantizer.teacher_forcing(tokens)

    def steps(self, sampling: SamplingOptions) -> int:
        """K."""
        return self.schedule.scales

    @torch.no_grad()
    def start_from(self, quantizer: MultiScaleQuantizer) -> None:
        """Set the output embeddings of `codebook_head` to the codebooks' entries, centred and at unit spread.

        Raises:
            UserError: the quantizer looks codes up in another number of channels than its pyramid has.
        """
        if self.codes is None:
            return
        for k, codes in enumerate(self.codes):
            entries = quantizer.codebook(k).weight
            if entries.shape != codes.shape:
                raise UserError(
                    "codebook_head needs codes as wide as the pyramid: leave the quantizer's code_channels out"
                )
            entries = entries - entries.mean(0)
            codes.copy_(entries / entries.square().mean().sqrt().clamp_min(1e-8))

    def _logits(self, features: Tensor, k: int) -> Tensor:
        """Head outputs of scale k to logits: (B, n_k, ...) -> (B, n_k, V)."""
        if self.codes is None:
            return features
        return features @ (self.codes[k].T * self.latent_channels**-0.5) + self.code_bias[k]

    def _places(self) -> Tensor:
        """What every token gets for its place and scale: (L, D)."""
        return self.position_embed + self.level_embed[self.level]

    def _first(self, condition: Tensor) -> Tensor:
        """Input of scale 0: (B, D) -> (B, n_0, D)."""
        return condition[:, None] + self.start_embed

    def forward(self, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Logits of the whole pyramid under teacher forcing.

        Args:
            inputs: (B, L - n_0, C), `quantizer.teacher_forcing(tokens)`.
            condition: field -> (B,) int64 index, -1 for not given.

        Returns:
            (B, L, V) float32.
        """
        return self._forward(inputs, condition)

    def _forward(self, inputs: Tensor, condition: Mapping[str, Tensor], own: Tensor | float = 0.0) -> Tensor:
        """As :meth:`forward`; `own` (B, L, D) is what tokens show of their own scale."""
        c = self.conditioner(condition, inputs.shape[0])
        x = torch.cat([self._first(c), self.word_embed(inputs)], dim=1) + self._places() + own
        features = self.transformer(x, self.transformer.modulations(c), self.prefix)
        if self.codes is None:
            return features
        return torch.cat([self._logits(part, k) for k, part in enumerate(self.schedule.split(features))], dim=1)

    @torch.inference_mode()
    def _generate(
        self, quantizer: MultiScaleQuantizer, condition: Mapping[str, Tensor], sampling: SamplingOptions,
        seeds: list[int], kept: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        batch, schedule = len(seeds), self.schedule
        # guidance towards no condition changes nothing
        guided = sampling.guided(0) and any_given(condition)
        c = self.conditioner(condition, batch)
        device = c.device
        if guided:  # the same samples without condition, side by side
            c = torch.cat([c, self.conditioner({}, batch)])
        modulations = self.transformer.modulations(c)
        cache = self.transformer.cache(c.shape[0], schedule.length)
        places = self._places()
        noise = NoiseStreams(seeds)
        latent = quantizer.initial_latent(batch)
        x, tokens = self._first(c), []
        sure = torch.ones(batch, dtype=torch.bool, device=device) if batch > 1 else None
        for k, (start, count) in enumerate(zip(schedule.starts, schedule.counts, strict=True)):
            if guided and not sampling.guided(k):  # from here on without the unconditional half
                guided, x, modulations = False, x[:batch], modulations.keep(batch)
                cache.keep(batch)
            strength = sampling.strength(k, schedule.scales)
            gumbel = None if sampling.greedy else noise.gumbel(count, self.codebook_size, device)
            x = x + places[start : start + count]
            drawn, mixed, before = [], [], None
            step = count if self.previous_embed is None else 1
            for part in (slice(first, first + step) for first in range(0, count, step)):
                h = x[:, part]
                if before is not None:
                    seen = self.previous_embed(before)
                    h = h + (torch.cat([seen, seen]) if guided else seen)
                logits = self._logits(self.transformer(h, modulations, cache=cache), k)
                tolerance = None if sure is None else TOLERANCE * float(logits.abs().amax())
                if guided:
                    logits = guide(*logits.chunk(2), strength)
                weights, certain = None, None
                chance = None if gumbel is None else gumbel[:, part]
                if sampling.smooth and chance is not None:
                    ids, weights = soften(logits, sampling, chance, k / max(schedule.scales - 1, 1))
                else:
                    if tolerance is not None:
                        tolerance *= 1 + 2 * strength  # guidance multiplies what rounding does to the logits
                    ids, certain = sample(logits, sampling, chance, tolerance)
                if kept is not None:
                    known, forced = (each[:, start : start + count][:, part].to(device) for each in kept)
                    ids = torch.where(forced, known, ids)
                    certain = None if certain is None else certain | forced
                    if weights is not None:
                        weights[forced] = F.one_hot(known[forced], self.codebook_size).to(weights.dtype)
                drawn.append(ids)
                mixed.append(weights)
                if sure is not None:
                    sure &= certain.all(1)
                if part.stop < count:
                    before = quantizer.vectors(ids, k, weights)
            tokens += drawn
            ids, weights = torch.cat(drawn, dim=1), None if mixed[0] is None else torch.cat(mixed, dim=1)
            latent, shown = quantizer.step(latent, ids, k, weights)
            if shown is not None:
                x = self.word_embed(shown)
                x = torch.cat([x, x]) if guided else x
        return torch.cat(tokens, dim=1), quantizer.project_out(latent), sure
