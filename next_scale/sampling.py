"""From logits to tokens: guidance, temperature, top-k, top-p, and noise that belongs to the sample, not the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from next_scale.errors import UserError


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn.

    Args:
        cfg: strength t of classifier-free guidance: logits = (1 + t) conditional - t unconditional. 0 is off.
        cfg_ramp: let t rise linearly from 0 at the first scale to `cfg` at the last (VAR), instead of `cfg` throughout.
        temperature: divides the logits. 0, or below 1e-6, takes the most likely code.
        top_k: draw among the k most likely codes. 0 is all.
        top_p: of those, draw among the most likely that together hold this much probability. 0 or 1 is all.
        smooth: what a scale hands on is not the drawn codes but a mixture of the kept ones, see :func:`soften` (VAR's
            `more_smooth`). Nothing is drawn at temperature 0, where it changes nothing.
        cfg_scales: guide the first so many scales only; the rest need half the work. 0 is all.

    Raises:
        UserError: a value out of its range.
    """

    cfg: float = 0.0
    cfg_ramp: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    smooth: bool = False
    cfg_scales: int = 0

    def __post_init__(self) -> None:
        for name, value, most in (
            ("cfg", self.cfg, 100),
            ("temperature", self.temperature, 100),
            ("top-p", self.top_p, 1),
        ):
            if not 0 <= value <= most:
                raise UserError(f"{name} must be from 0 to {most}, got {value}")
        for name, value in (("top-k", self.top_k), ("cfg-scales", self.cfg_scales)):
            if not value >= 0 or value != int(value):
                raise UserError(f"{name} must be a whole number, 0 or more, got {value}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely code is taken and nothing is drawn."""
        return self.temperature < 1e-6

    def guided(self, k: int) -> bool:
        """Whether scale k is guided, so that it needs logits without condition too."""
        return self.cfg > 0 and (self.cfg_scales == 0 or k < self.cfg_scales)

    def strength(self, k: int, scales: int) -> float:
        """Guidance strength t at scale k of `scales`."""
        if not self.guided(k):
            return 0.0
        return self.cfg * k / (scales - 1) if self.cfg_ramp and scales > 1 else self.cfg


class NoiseStreams:
    """One stream of Gumbel noise a sample, so that a sample's draws depend on its seed and on nothing beside it.

    Always drawn on the CPU: the same seed means the same noise on every device and in every batch.

    Args:
        seeds: one integer a sample.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed) % 2**63) for seed in seeds]

    def gumbel(self, tokens: int, codes: int, device: torch.device | str = "cpu") -> Tensor:
        """Standard Gumbel noise for the next `tokens` tokens of every sample: (B, n, V) float32."""
        noise = torch.empty(len(self.generators), tokens, codes)
        for row, generator in zip(noise, self.generators, strict=True):
            row.uniform_(generator=generator)
        # Uniforms are multiples of 2^-24 below 1: only a 0 would make the logarithms infinite.
        return noise.clamp_(min=2**-25).log_().neg_().log_().neg_().to(device)


def guide(conditional: Tensor, unconditional: Tensor, strength: float) -> Tensor:
    """Classifier-free guidance on logits of one shape: (1 + t) conditional - t unconditional."""
    return torch.lerp(unconditional, conditional, 1 + strength)


class Draw(NamedTuple):
    """tokens: (B, n) int64. sure: (B, n) bool, changing every logit by up to half the tolerance keeps the token."""

    tokens: Tensor
    sure: Tensor | None


def sample(
    logits: Tensor, options: SamplingOptions, noise: Tensor | None = None, tolerance: float | None = None
) -> Draw:
    """Draw a token from every row of logits: the greatest of logit + Gumbel noise among the codes that are kept.

    Top-k keeps the values not below the k-th greatest. Of these, top-p drops from the least likely upwards while the
    probability dropped stays within 1 - p, and never the most likely. Equal values are kept or dropped together.

    Args:
        logits: (B, n, V).
        options: temperature, top_k and top_p are used here; guidance comes before (:func:`guide`).
        noise: (B, n, V) standard Gumbel; not needed at temperature 0.
        tolerance: how close a call must be, in logits, for `sure` to be false; None leaves `sure` None.

    Raises:
        ValueError: no noise at a temperature above 0.

    Shape notation: B batch, n tokens, V codes.
    """
    z = logits.float()
    if options.greedy:
        return _greatest(z, tolerance)
    if noise is None:
        raise ValueError("drawing at a temperature above 0 needs noise")
    z = z / options.temperature
    tolerance = None if tolerance is None else tolerance / options.temperature
    if not _filtered(options, z.shape[-1]):
        return _greatest(z + noise, tolerance)
    cut = _cutoffs(z, options, tolerance or 0.0)
    noisy = z + noise
    tokens = noisy.masked_fill(z < cut.least, -math.inf).argmax(-1)
    if tolerance is None:
        return Draw(tokens, None)
    # Neither a code that might just be kept nor the loss of one that might just be dropped may change the outcome.
    rivals, sure = _greatest(noisy.masked_fill_(z < cut.lowest, -math.inf), tolerance)
    inside = z.gather(-1, tokens[..., None]) >= cut.highest
    return Draw(tokens, sure & (rivals == tokens) & inside.squeeze(-1))


class Mixture(NamedTuple):
    """tokens: (B, n) int64, the code of most weight. weights: (B, n, V) float32, of every code; a row sums to 1."""

    tokens: Tensor
    weights: Tensor


def soften(logits: Tensor, options: SamplingOptions, noise: Tensor, ratio: float) -> Mixture:
    """Mix the codes in place of drawing one: softmax((logits (1 + r) + Gumbel) / tau) over the codes that are kept.

    tau = max(0.27 (1 - 0.95 r), 0.005) falls as r rises, so that the mixture nears a single code at the finest scale:
    `more_smooth` in VAR's public code, for looks rather than for measured quality. After the Gumbel-softmax
    distribution (arXiv 1611.01144).

    Args:
        logits: (B, n, V).
        options: temperature (above 0), top_k and top_p, as in :func:`sample`.
        noise: (B, n, V) standard Gumbel.
        ratio: r, from 0 at the first scale to 1 at the last.

    Shape notation: B batch, n tokens, V codes.
    """
    z = logits.float() / options.temperature
    scores = z * (1 + ratio) + noise
    if _filtered(options, z.shape[-1]):
        scores = scores.masked_fill_(z < _cutoffs(z, options, 0.0).least, -math.inf)
    weights = (scores / max(0.27 * (1 - 0.95 * ratio), 0.005)).softmax(-1)
    return Mixture(scores.argmax(-1), weights)


def _filtered(options: SamplingOptions, codes: int) -> bool:
    """Whether top-k or top-p may drop any of so many codes."""
    return 0 < options.top_k < codes or 0 < options.top_p < 1


def _greatest(scores: Tensor, tolerance: float | None) -> Draw:
    """Index of the greatest of the last dimension, and whether it leads by more than the tolerance, if there is one."""
    if tolerance is None:
        return Draw(scores.argmax(-1), None)
    best, tokens = scores.max(-1)
    second = scores.scatter(-1, tokens[..., None], -math.inf).amax(-1)
    return Draw(tokens, best - second > tolerance)


class _Cutoffs(NamedTuple):
    """Smallest kept logit of every row, (B, n, 1), and how low and how high it may lie within the tolerance."""

    least: Tensor
    lowest: Tensor
    highest: Tensor


def _cutoffs(z: Tensor, options: SamplingOptions, tolerance: float) -> _Cutoffs:
    V = z.shape[-1]
    kept = min(options.top_k, V) if options.top_k > 0 else V
    # The kept values and the next one, for how far it is below the cut-off decides whether the two may swap.
    descending = _descending(z, kept + 1) if kept < V else F.pad(_descending(z, V), (0, 1), value=-math.inf)
    counts = [torch.full_like(descending[..., :1], kept, dtype=torch.int64)] * 3
    p = options.top_p
    if 0 < p < 1:
        probability = descending[..., :kept].softmax(-1)
        before = probability.cumsum(-1) - probability  # probability of the more likely codes
        counts = [(before < bound).sum(-1, keepdim=True).clamp_(min=1) for bound in (p, *nucleus_bounds(p, tolerance))]
    least, lowest, highest = (descending.gather(-1, count - 1) for count in counts)
    below = descending.gather(-1, counts[2])
    swaps = highest - below <= tolerance
    return _Cutoffs(least, lowest - tolerance, torch.where(swaps, highest + tolerance, highest))


def nucleus_bounds(p: float, tolerance: float) -> tuple[float, float]:
    """How much and how little of the probability top-p may keep where every logit changes by half the tolerance."""
    odds = p / (1 - p)
    up, down = (odds * e / (1 + odds * e) for e in (math.exp(min(tolerance, 30)), math.exp(-min(tolerance, 30))))
    rounding = 1e-6 if tolerance > 0 else 0.0  # of the sum
    return up + rounding, down - rounding


def _descending(z: Tensor, count: int) -> Tensor:
    """The `count` greatest of the last dimension, greatest first."""
    if z.device.type != "cpu":
        return z.topk(count).values
    # On CPUs numpy's vectorised sort of all takes a third of the time of torch's top-k of some.
    return torch.from_numpy(np.sort(z.detach().numpy(), axis=-1)[..., : -count - 1 : -1].copy())
