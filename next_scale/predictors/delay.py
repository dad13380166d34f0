"""The delay pattern over residual levels at one rate (MusicGen, arXiv 2306.05284, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from next_scale.errors import UserError
from next_scale.predictors.drawing import Drawer
from next_scale.predictors.known import Evidence, Known
from next_scale.predictors.token_predictor import TokenPredictor, code_table
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.transformer import init_weight


class Delay(TokenPredictor):
    """Predicts all levels in one pass over time, each level one step behind the one before it.

    Step s predicts token s - q of every level q at once, independently of each other, from the condition and all
    tokens of the steps before: T + K - 1 steps in place of the K T of next-token prediction. Its input is the sum of
    the embedded codes of step s - 1, that of the first step the condition's embedding; each step also gets a position
    embedding, which tells as well which levels have a token there.

    Args:
        schedule: of the quantizer: K levels of T tokens each, such as "64 64 64 64".
        codebook_head: as of the base class; without it every level has a linear layer of its own.
        others: see :class:`next_scale.predictors.token_predictor.TokenPredictor`.

    Raises:
        UserError: levels of different sizes, or of more than one dimension.

    Shape notation: B batch, K levels, T tokens of each, L = K T tokens in all, S = T + K - 1 steps, C channels,
    V codes, D width.
    """

    name = "delay"

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        width, levels = self.transformer.width, self.schedule.scales
        self.word_embed = nn.Linear(levels * self.latent_channels, width)
        self.position_embed = nn.Parameter(torch.empty(self._steps, width))
        nn.init.zeros_(self.word_embed.bias)
        for weight in (self.word_embed.weight, self.position_embed):
            init_weight(weight, (3 * width) ** -0.5)
        level = self.schedule.level
        step = torch.arange(self.schedule.length) % self.schedule.counts[0] + level
        self.register_buffer("level", level, persistent=False)  # of every token of the pyramid, (L,)
        self.register_buffer("step", step, persistent=False)  # at which it is predicted, (L,)

    @property
    def _steps(self) -> int:
        """S."""
        return self.schedule.counts[0] + self.schedule.scales - 1

    def _tokens_a_place(self) -> int:
        if self.schedule.dim != 1 or len(set(self.schedule.sizes)) > 1:
            raise UserError(
                "the delay pattern needs levels of one size in one dimension, such as '64 64 64 64', and the schedule "
                f"is '{self.schedule}': use next_token"
            )
        return self.schedule.scales

    def _visible_end(self) -> Tensor:
        return torch.arange(1, self._steps + 1)

    @torch.no_grad()
    def inputs(self, quantizer: MultiScaleQuantizer, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        """The codes of every step but the last, level beside level, zero where a level has none: (B, S - 1, K C)."""
        tables = self._tables(quantizer)
        codes = tables.new_zeros(tokens.shape[0], self._steps, *tables.shape[::2])  # (B, S, K, C)
        codes[:, self.step, self.level] = tables[self.level, tokens]
        return codes[:, :-1].flatten(2)

    @staticmethod
    def _tables(quantizer: MultiScaleQuantizer) -> Tensor:
        """All codes of all levels: (K, V, C)."""
        return torch.stack([code_table(quantizer, k) for k in range(quantizer.scales)])

    def steps(self, sampling: SamplingOptions) -> int:
        """S."""
        return self._steps

    def _by_level(self, features: Tensor) -> Tensor:
        """(B, S, K ...) -> (B, S, K, ...)."""
        return features.unflatten(2, (self.schedule.scales, -1))

    def forward(self, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, L, V) float32 under teacher forcing; `inputs` are (B, S - 1, K C)."""
        given = self.conditioner.encode(condition, inputs.shape[0])
        x = torch.cat([given.vector[:, None], self.word_embed(inputs)], dim=1) + self.position_embed
        features = self._by_level(self._whole(x, given))
        return self._all_logits(features[:, self.step, self.level])  # (B, S, K, ...) -> (B, L, ...)

    @torch.inference_mode()
    def _generate(
        self, quantizer: MultiScaleQuantizer, condition: Mapping[str, Tensor], sampling: SamplingOptions,
        seeds: list[int], known: Known | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        batch, levels, length = len(seeds), self.schedule.scales, self.schedule.counts[0]
        if sampling.smooth and not sampling.greedy:
            raise UserError("the delay pattern draws no mixtures of codes: leave smooth out")
        if isinstance(known, Evidence):  # it needs all coarser scales before it knows a token
            raise UserError("the delay pattern draws scales together: give known tokens, not a known latent")
        # a step has tokens of many levels, so that as long as one of them is guided all steps are
        guided, given, modulations = self._conditions(condition, batch, sampling.guided(0))
        cache, c = self._cache(given, modulations, self._steps), given.vector
        drawer = Drawer(sampling, seeds, self.codebook_size, self.schedule.length, c.device, known)
        tables = self._tables(quantizer)
        heads = [self._head(k) for k in range(levels)]
        strength = torch.tensor([[sampling.strength(k, levels)] for k in range(levels)], device=c.device)
        level = torch.arange(levels, device=c.device)
        tokens = torch.empty(batch, self.schedule.length, dtype=torch.int64, device=c.device)
        x = c
        for s in range(self._steps):
            features = self.transformer((x + self.position_embed[s])[:, None], modulations, cache=cache)
            features = self._by_level(features)[:, 0]  # (2 B, 1, K ...) -> (2 B, K, ...)
            here = range(max(0, s - length + 1), min(levels, s + 1))  # levels that have a token in this step
            logits = torch.cat([heads[q](features[:, q : q + 1]) for q in here], dim=1)
            now = level[here.start : here.stop]
            places = now * length + s - now
            ids, _ = drawer.draw(logits, places, strength[here.start : here.stop])
            tokens[:, places] = ids
            codes = tables.new_zeros(batch, levels, tables.shape[2])
            codes[:, now] = tables[now, ids]
            x = self.word_embed(codes.flatten(1))
            x = torch.cat([x, x]) if guided else x
        return tokens, quantizer.decode(tokens), drawer.sure
