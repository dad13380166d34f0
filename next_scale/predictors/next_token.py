"""Next-token prediction over the same pyramids: one transformer step gives one token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from next_scale.attention import PrefixAttention
from next_scale.predictors.next_scale import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.transformer import init_weight


class NextToken(NextScale):
    """Predicts every token from all coarser scales, the tokens before it in its own scale, and the condition.

    Scales come from coarse to fine, the tokens of each in raster order; of one scale alone that is plain raster order,
    or time order in 1D. A token's input is that of :class:`next_scale.predictors.next_scale.NextScale`, the sum of the
    coarser scales at its place, plus an embedding of the code before it. So it sees all that next-scale prediction
    sees, and more: on the same tokens, the difference of their likelihoods is what predicting the tokens of a scale
    independently of each other costs.

    Args: as of :class:`next_scale.predictors.next_scale.NextScale`.

    Shape notation: B batch, K scales, n_k tokens of scale k, L tokens in all, C channels, V codes, D width.
    """

    name = "next_token"

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        width = self.word_embed.out_features
        self.prefix = PrefixAttention(torch.arange(1, self.schedule.length + 1))
        self.previous_embed = nn.Linear(self.latent_channels, width, bias=False)
        init_weight(self.previous_embed.weight, (3 * width) ** -0.5)

    def steps(self, sampling: SamplingOptions) -> int:
        """L."""
        return self.schedule.length

    @torch.no_grad()
    def inputs(self, quantizer: MultiScaleQuantizer, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        """The latent so far at every token's place, zero in the first scale, and the code before it: (B, L, 2 C)."""
        coarser = quantizer.teacher_forcing(tokens)
        first = coarser.new_zeros(tokens.shape[0], self.schedule.counts[0], coarser.shape[2])
        before = []
        for k, ids in enumerate(self.schedule.split(tokens)):
            codes = quantizer.vectors(ids, k)  # (B, n_k, C)
            before += [torch.zeros_like(codes[:, :1]), codes[:, :-1]]
        return torch.cat([torch.cat([first, coarser], dim=1), torch.cat(before, dim=1)], dim=2)

    def forward(self, inputs: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, L, V) float32 under teacher forcing, from :meth:`inputs`."""
        coarser, before = inputs.chunk(2, dim=2)
        return self._forward(coarser[:, self.schedule.counts[0] :], condition, self.previous_embed(before))
