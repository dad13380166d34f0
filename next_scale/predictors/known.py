"""What is known of a sample before it is drawn, so that a part of it stays while the rest is drawn anew."""

from __future__ import annotations

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


class Evidence(Known):
    """A latent of which a part is known: at every scale known places take what is still missing there.

    Tokens kept from an encoding were chosen next to coarse tokens that may since have been drawn otherwise. Here the
    token of a known place is the code nearest to what the scales drawn so far leave of the known latent, so that later
    scales correct what earlier ones did to the known part. Only what is known counts: a coarse token that stands for
    known and unknown places gets the mean of the known ones, and is forced where more than half of its area is known.

    Args:
        quantizer: of an absolute schedule.
        latent: (B, C', *grid) float32, as the autoencoder gives it; where unknown, anything finite.
        weight: (B, *grid) in [0, 1], how well each place is known.

    Shape notation: see :class:`Known`.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, latent: Tensor, weight: Tensor) -> None:
        self.quantizer, self.schedule = quantizer, quantizer.schedule_at(tuple(latent.shape[2:]))
        self.weight = weight[:, None].to(latent)  # (B, *grid) -> (B, 1, *grid)
        with torch.no_grad():
            self.target = quantizer.project_in(latent)
        shares = [downsample(self.weight, size).flatten(1) for size in self.schedule.sizes]  # (B, 1, *size) -> (B, n_k)
        forced = torch.cat(shares, dim=1) > _MOST
        super().__init__(torch.zeros_like(forced, dtype=torch.int64), forced)

    def rows(self, rows: slice) -> Evidence:
        part = object.__new__(Evidence)
        part.quantizer, part.schedule = self.quantizer, self.schedule
        part.target, part.weight = self.target[rows], self.weight[rows]
        Known.__init__(part, self.tokens[rows].clone(), self.forced[rows])
        return part

    @torch.no_grad()
    def enter(self, k: int, latent: Tensor) -> None:
        size, start, count = self.schedule.sizes[k], self.schedule.starts[k], self.schedule.counts[k]
        missing = downsample((self.target - latent) * self.weight, size)
        missing = missing / downsample(self.weight, size).clamp_min(1e-6)  # the mean of what is known
        self.tokens[:, start : start + count] = self.quantizer.nearest(missing, k)
