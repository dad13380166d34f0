"""What is known of a sample before it is drawn, so that a part of it stays while the rest is drawn anew."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from next_scale.quantizer import MultiScaleQuantizer
from next_scale.resample import downsample

_MOST = 0.5 + 1e-6  # of a token's area; half is not more than half, whatever the rounding


class Known:
    """Tokens that stay as they are while the others are drawn (zero-shot editing as in VAR, section 4.4).

    Args:
        tokens: (B, L) int64 of something that exists.
        forced: (B, L) bool, the places that keep theirs.

    Shape notation: B batch, L tokens, n_k tokens of scale k, C channels of the pyramid.
    """

    def __init__(self, tokens: Tensor, forced: Tensor) -> None:
        self.tokens, self.forced = tokens, forced

    def rows(self, rows: slice) -> Known:
        """The same of some samples."""
        return Known(self.tokens[rows], self.forced[rows])

    def enter(self, k: int, latent: Tensor) -> None:
        """Told before scale k is drawn, with the sum of the scales before it: (B, C, *grid)."""

    def bias(self, places: slice) -> Tensor | None:
        """What is added to the logits of these tokens of the scale being drawn, (B, n, V); None for nothing."""
        return None


class Evidence(Known):
    """A latent of which a part is known: at every scale known places take what is still missing there.

    Tokens kept from an encoding were chosen next to coarse tokens that may since have been drawn otherwise. Here the
    token of a known place is the code nearest to what the scales drawn so far leave of the known latent, so that later
    scales correct what earlier ones did to the known part. Only what is known counts: a coarse token that stands for
    known and unknown places gets the mean of the known ones, and is forced where more than half of its area is known.

    With `doubt` the latent also says something where it forces nothing: it counts as the truth plus Gaussian noise of
    that spread, and tokens are drawn from the product of the model's probability and the likelihood of what is missing.
    So a degraded sample is re-encoded as something that the model holds likely, and a gap is drawn near a first guess.
    Little doubt comes near forcing, much near free drawing.

    Args:
        quantizer: of an absolute schedule.
        latent: (B, C', *grid) float32, as the autoencoder gives it; where unknown, a guess, or anything finite.
        weight: (B, *grid) in [0, 1], how well each place is known.
        whole: the first so many scales take all of the latent as known, whatever the weight.
        doubt: standard deviation of the noise, as a share of that of each sample's latent; 0 is to force only.
        guess: from 0 to 1, how much an unknown place counts beside a known one in what is doubtful.

    Shape notation: see :class:`Known`; V codes.
    """

    def __init__(
        self, quantizer: MultiScaleQuantizer, latent: Tensor, weight: Tensor, whole: int = 0, doubt: float = 0.0,
        guess: float = 1.0,
    ) -> None:  # fmt: skip
        self.quantizer, self.schedule = quantizer, quantizer.schedule_at(tuple(latent.shape[2:]))
        self.weight = weight[:, None].to(latent)  # (B, *grid) -> (B, 1, *grid)
        self.whole, self.doubt, self.guess = whole, doubt, guess
        self._scale: tuple[int, Tensor] | None = None  # first token of the scale being drawn, and its bias
        with torch.no_grad():
            self.target = quantizer.project_in(latent)
        self.variance = (doubt * self.target.flatten(1).std(1)).square().clamp_min(1e-12)[:, None, None]  # (B, 1, 1)
        shares = [
            downsample(self._known(k), size).flatten(1)  # (B, 1, *size) -> (B, n_k)
            for k, size in enumerate(self.schedule.sizes)
        ]
        forced = torch.cat(shares, dim=1) > _MOST
        super().__init__(torch.zeros_like(forced, dtype=torch.int64), forced)

    def rows(self, rows: slice) -> Evidence:
        part = copy.copy(self)
        part.target, part.weight, part.variance = self.target[rows], self.weight[rows], self.variance[rows]
        part._scale = None
        Known.__init__(part, self.tokens[rows].clone(), self.forced[rows])
        return part

    def _known(self, k: int) -> Tensor:
        """How well scale k takes each place as known: (B, 1, *grid)."""
        return torch.ones_like(self.weight) if k < self.whole else self.weight

    def _missing(self, latent: Tensor, weight: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The weighted mean of what is missing from a token's area, (B, C, *size), and its weight, (B, 1, *size)."""
        share = downsample(weight, size)
        return downsample((self.target - latent) * weight, size) / share.clamp_min(1e-6), share

    @torch.no_grad()
    def enter(self, k: int, latent: Tensor) -> None:
        size, start, count = self.schedule.sizes[k], self.schedule.starts[k], self.schedule.counts[k]
        missing, _ = self._missing(latent, self._known(k), size)
        self.tokens[:, start : start + count] = self.quantizer.nearest(missing, k)
        if not self.doubt:
            return
        parts = self._missing(latent, self._known(k).clamp_min(self.guess), size)
        missing, share = (part.flatten(2).transpose(1, 2) for part in parts)  # (B, C, *size) -> (B, n, C)
        codes = self.quantizer.vectors(torch.arange(self.quantizer.codebook_size, device=latent.device), k)
        self._scale = start, torch.cdist(missing, codes[None]).square() * share / (-2 * self.variance)

    def bias(self, places: slice) -> Tensor | None:
        if self._scale is None:
            return None
        start, bias = self._scale
        return bias[:, places.start - start : places.stop - start]
