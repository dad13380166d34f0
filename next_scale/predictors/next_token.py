"""Next-token prediction over the same pyramids: one transformer step gives one token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.predictors.drawing import Drawer
from next_scale.predictors.known import Known
from next_scale.predictors.token_predictor import TokenPredictor, code_table
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.transformer import init_weight


class NextToken(TokenPredictor):
    """Predicts every token from the condition, all coarser scales, and the tokens before it in its own scale.

    The schedule decides the order: scales from coarse to fine, and in each raster order, or time order in 1D. A
    schedule of one scale is plain raster or time order.

    The input of a token is that of :class:`next_scale.predictors.next_scale.NextScale`, the sum of the coarser scales
    at its place, plus an embedding of the code of the token before it, at a scale's first token the last one of the
    scale before. With causal attention a token so sees every token before it, and, of those that next-scale prediction
    sees, lacks none. So on the same tokens next-scale's cross-entropy minus this one, scale by scale, is what
    predicting the tokens of a scale independently of each other costs.

    Args, errors and notation: see :class:`next_scale.predictors.token_predictor.TokenPredictor`.
    """

    name = "next_token"

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        width, channels = self.transformer.width, self.latent_channels
        self.word_embed = nn.Linear(channels, width)
        self.previous_embed = nn.Linear(channels, width, bias=False)
        self.level_embed = nn.Parameter(torch.empty(self.schedule.scales, width))
        self.position_embed = nn.Parameter(torch.empty(self.schedule.length, width))
        self.register_buffer("level", self.schedule.level, persistent=False)
        nn.init.zeros_(self.word_embed.bias)
        for weight in (self.word_embed.weight, self.previous_embed.weight, self.level_embed, self.position_embed):
            init_weight(weight, (3 * width) ** -0.5)

    @torch.no_grad()
    def inputs(self, quantizer: MultiScaleQuantizer, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        """At every token the latent so far, zero in the first scale, and the code before it: (B, L, 2 C)."""
        coarser = quantizer.teacher_forcing(tokens)
        first = coarser.new_zeros(tokens.shape[0], self.schedule.counts[0], coarser.shape[2])
        codes = [F.embedding(ids, code_table(quantizer, k)) for k, ids in enumerate(self.schedule.split(tokens))]
        before = torch.cat([torch.zeros_like(codes[0][:, :1]), *codes], dim=1)[:, :-1]
        return torch.cat([torch.cat([first, coarser], dim=1), before], dim=2)

    def steps(self, sampling: SamplingOptions) -> int:
        """L."""
        return self.schedule.length

    def _places(self) -> Tensor:
        """What every token gets for its place and scale: (L, D)."""
        return self.position_embed + self.level_embed[self.level]

    def forward(self, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, L, V) float32 under teacher forcing; `inputs` are (B, L, 2 C)."""
        given = self.conditioner.encode(condition, inputs.shape[0])
        coarser, before = inputs.chunk(2, dim=2)
        count = self.schedule.counts[0]  # of the first scale, whose input is the condition
        first = given.vector[:, None].expand(-1, count, -1)
        x = torch.cat([first, self.word_embed(coarser[:, count:])], dim=1)
        x = x + self.previous_embed(before) + self._places()
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
        x, before = c[:, None], c.new_zeros(c.shape[0], 1, self.latent_channels)
        tokens = []
        for k, (start, count) in enumerate(zip(schedule.starts, schedule.counts, strict=True)):
            if guided and not sampling.guided(k):  # from here on without the unconditional half
                guided, x, before, modulations = False, x[:batch], before[:batch], modulations.keep(batch)
                cache.keep(batch)
            drawer.enter(k, latent)
            x = x + places[start : start + count]
            head, table = self._head(k), code_table(quantizer, k)
            strength, ratio = sampling.strength(k, schedule.scales), k / max(schedule.scales - 1, 1)
            drawn, mixtures = [], []
            for i in range(count):  # every operation here counts L times
                step = x[:, i : i + 1] + self.previous_embed(before)
                logits = head(self.transformer(step, modulations, cache=cache))
                ids, weights = drawer.draw(logits, slice(start + i, start + i + 1), strength, ratio)
                before = F.embedding(ids, table) if weights is None else weights @ table
                if guided:
                    before = torch.cat([before, before])
                drawn.append(ids)
                if weights is not None:
                    mixtures.append(weights)
            tokens.append(torch.cat(drawn, dim=1))
            latent, shown = quantizer.step(latent, tokens[-1], k, torch.cat(mixtures, dim=1) if mixtures else None)
            if shown is not None:
                x = self.word_embed(shown)
                x = torch.cat([x, x]) if guided else x
        return torch.cat(tokens, dim=1), quantizer.project_out(latent), drawer.sure
