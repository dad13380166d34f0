"""Next-scale prediction: one transformer step gives a whole token map (VAR, arXiv 2404.02905, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from next_scale.predictors.drawing import Drawer
from next_scale.predictors.known import Known
from next_scale.predictors.token_predictor import TokenPredictor
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.transformer import init_weight


class NextScale(TokenPredictor):
    """Predicts every token of a scale at once from all coarser scales and the condition.

    The input of scale 0 is the condition's embedding; that of scale k the sum of scales < k, resampled to scale k's
    size (:meth:`next_scale.quantizer.MultiScaleQuantizer.teacher_forcing`). Each token also gets a position embedding
    of its place in the pyramid and one of its scale.

    Args, errors and notation: see :class:`next_scale.predictors.token_predictor.TokenPredictor`.
    """

    name = "next_scale"

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        width = self.transformer.width
        self.word_embed = nn.Linear(self.latent_channels, width)
        self.level_embed = nn.Parameter(torch.empty(self.schedule.scales, width))
        self.position_embed = nn.Parameter(torch.empty(self.schedule.length, width))
        self.start_embed = nn.Parameter(torch.empty(self.schedule.counts[0], width))
        self.register_buffer("level", self.schedule.level, persistent=False)
        std = (3 * width) ** -0.5
        nn.init.zeros_(self.word_embed.bias)
        for weight in (self.word_embed.weight, self.level_embed, self.position_embed, self.start_embed):
            init_weight(weight, std)

    def _visible_end(self) -> Tensor:
        return self.schedule.visible_end

    def inputs(self, quantizer: MultiScaleQuantizer, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        """The latent so far before every scale but the first: (B, L - n_0, C)."""
        return quantizer.teacher_forcing(tokens)

    def steps(self, sampling: SamplingOptions) -> int:
        """K."""
        return self.schedule.scales

    def _places(self) -> Tensor:
        """What every token gets for its place and scale: (L, D)."""
        return self.position_embed + self.level_embed[self.level]

    def _first(self, condition: Tensor) -> Tensor:
        """Input of scale 0: (B, D) -> (B, n_0, D)."""
        return condition[:, None] + self.start_embed

    def forward(self, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, L, V) float32 under teacher forcing; `inputs` are (B, L - n_0, C)."""
        given = self.conditioner.encode(condition, inputs.shape[0])
        x = torch.cat([self._first(given.vector), self.word_embed(inputs)], dim=1) + self._places()
        return self._all_logits(self._whole(x, given))

    @torch.inference_mode()
    def _generate(
        self, quantizer: MultiScaleQuantizer, condition: Mapping[str, Tensor], sampling: SamplingOptions,
        seeds: list[int], known: Known | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        batch, schedule = len(seeds), self.schedule
        guided, given, modulations = self._conditions(condition, batch, sampling.guided(0))
        cache, c = self._cache(given, modulations, schedule.length), given.vector
        drawer = Drawer(sampling, seeds, self.codebook_size, schedule.length, c.device, known)
        places = self._places()
        latent = quantizer.initial_latent(batch)
        x, tokens = self._first(c), []
        for k, (start, count) in enumerate(zip(schedule.starts, schedule.counts, strict=True)):
            here = slice(start, start + count)
            drawer.enter(k, latent)
            if guided and not sampling.guided(k):  # from here on without the unconditional half
                guided, x, modulations = False, x[:batch], modulations.keep(batch)
                cache.keep(batch)
            logits = self._logits(self.transformer(x + places[here], modulations, cache=cache), k)
            strength, ratio = sampling.strength(k, schedule.scales), k / max(schedule.scales - 1, 1)
            ids, weights = drawer.draw(logits, here, strength, ratio)
            tokens.append(ids)
            latent, shown = quantizer.step(latent, ids, k, weights)
            if shown is not None:
                x = self.word_embed(shown)
                x = torch.cat([x, x]) if guided else x
        return torch.cat(tokens, dim=1), quantizer.project_out(latent), drawer.sure
