"""Drawing the tokens of one generation: guidance, a sample's own noise, known tokens, and what rounding may decide."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from next_scale.kernels.guided_sample import guided_sample
from next_scale.predictors.known import Known
from next_scale.sampling import NoiseStreams, SamplingOptions, guide, sample, soften

# Logits of a sample alone and in a batch differ by rounding, up to 8e-7 of the greatest logit in the models at hand. A
# draw decided by less than this share of it is taken from the sample alone.
TOLERANCE = 2e-6

_BLOCK = 16  # tokens whose noise is made at once


class Drawer:
    """Draws tokens step by step; how many a step is up to the caller, and does not change a sample's noise.

    Args:
        sampling: see :class:`next_scale.sampling.SamplingOptions`.
        seeds: one a sample.
        codes: V.
        length: tokens that every sample draws in all, L.
        device: of the logits.
        known: what is given; :meth:`enter` must be called before each scale.

    Attributes:
        sure: (B,) bool, whether rounding decided none of a sample's draws so far; None for a sample alone.

    Shape notation: B batch, n tokens of this step, L tokens in all, V codes.
    """

    def __init__(
        self, sampling: SamplingOptions, seeds: Sequence[int], codes: int, length: int,
        device: torch.device | str = "cpu", known: Known | None = None,
    ) -> None:  # fmt: skip
        self.sampling, self.codes, self.device = sampling, codes, device
        self.batch = len(seeds)
        self.known = known
        self.sure = torch.ones(self.batch, dtype=torch.bool, device=device) if self.batch > 1 else None
        self._streams = None if sampling.greedy else NoiseStreams(seeds)
        self._left = length  # tokens whose noise is still to come
        self._noise: Tensor | None = None

    def enter(self, k: int, latent: Tensor) -> None:
        """Begin scale k, with the sum of the scales before it: (B, C, *grid)."""
        if self.known is not None:
            self.known.enter(k, latent)

    def draw(
        self, logits: Tensor, places: slice | Tensor, strength: float | Tensor, ratio: float = 0.0
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens of one step.

        Args:
            logits: (B, n, V); with guidance (2 B, n, V), those without condition after those with.
            places: of the tokens in the pyramid, n of L.
            strength: of guidance; (n, 1) where it differs between the tokens.
            ratio: how far generation is, from 0 to 1, see :func:`next_scale.sampling.soften`.

        Returns:
            Tokens (B, n) int64, and with `sampling.smooth` the weights (B, n, V) of all codes.
        """
        tolerance = None
        if self.sure is not None:  # guidance multiplies what rounding does to the logits
            most = float(strength.amax() if isinstance(strength, Tensor) else strength)
            tolerance = TOLERANCE * float(logits.abs().amax()) * (1 + 2 * most)
        conditional, unconditional = logits.chunk(2) if logits.shape[0] > self.batch else (logits, None)
        bias = None if self.known is None or not isinstance(places, slice) else self.known.bias(places)
        if bias is not None:  # to both sides alike, so that guidance leaves it as it is
            bias = bias.to(self.device)
            conditional = conditional + bias
            unconditional = None if unconditional is None else unconditional + bias
        noise = None if self._streams is None else self._next_noise(logits.shape[1])
        weights, certain = None, None
        smooth = self.sampling.smooth and noise is not None
        if not smooth and not isinstance(strength, Tensor):
            tokens, certain = guided_sample(conditional, self.sampling, noise, unconditional, strength, tolerance)
        else:
            logits = conditional if unconditional is None else guide(conditional, unconditional, strength)
            if smooth:
                tokens, weights = soften(logits, self.sampling, noise, ratio)
            else:
                tokens, certain = sample(logits, self.sampling, noise, tolerance)
        if self.known is not None:
            known, forced = (part[:, places].to(self.device) for part in (self.known.tokens, self.known.forced))
            tokens = torch.where(forced, known, tokens)
            certain = None if certain is None else certain | forced
            if weights is not None:
                weights[forced] = F.one_hot(known[forced], self.codes).to(weights.dtype)
        if self.sure is not None:
            self.sure &= certain.all(1)
        return tokens, weights

    def _next_noise(self, count: int) -> Tensor:
        """Of the next tokens, (B, n, V); made in blocks, for a step may have a single token."""
        ready = 0 if self._noise is None else self._noise.shape[1]
        if ready < count:
            block = max(count - ready, min(_BLOCK, self._left))
            self._left -= block
            fresh = self._streams.gumbel(block, self.codes, self.device)
            self._noise = fresh if ready == 0 else torch.cat([self._noise, fresh], dim=1)
        noise, self._noise = self._noise[:, :count], self._noise[:, count:]
        return noise
