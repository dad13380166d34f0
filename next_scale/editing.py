"""Editing what exists: which part of a latent stays, and how all else is drawn anew around it.

One mechanism serves every verb and any number of dimensions. A latent and how well each of its places is known make
:class:`next_scale.predictors.known.Evidence`; the predictor draws what is missing, scale by scale.

Shape notation: B batch, C latent channels, L tokens, K scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from next_scale.cli import sample_seed
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.predictors.known import Evidence
from next_scale.predictors.token_predictor import TokenPredictor, entropy_of
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.resample import downsample
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule, StrideSchedule

DOUBT, GUESS = 0.3, 0.1
"""Of a first guess for what is hidden, from what is around it: see :func:`redraw`. Set on held-out notes."""
DEGRADED = 1.5
"""Doubt of a sample that is degraded everywhere."""


def grid_weight(hidden: Tensor, grid: Sequence[int]) -> Tensor:
    """Which places of the full grid are known, from what is hidden of a sample.

    A place of which anything is hidden is unknown: its latent tells of what was put there in its stead.

    Args:
        hidden: (B, *size) bool, of the sample; `size` is a multiple of the grid.
        grid: size of the full grid.

    Returns:
        (B, *grid) float32, 0 or 1. Coarser scales weight places by area.
    """
    known = downsample((~hidden)[:, None].float(), tuple(grid))[:, 0]  # (B, 1, *size) -> (B, *grid)
    return (known > 1 - 1e-6).float()


def scales_kept(scales: int, strength: float) -> int:
    """How many of K scales a variation of this strength keeps: all at 0, none at 1.

    Raises:
        UserError: a strength outside 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"the strength of a variation must be from 0, nothing, to 1, everything; got {strength:g}")
    return scales - round(strength * scales)


def kept_tokens(schedule: Schedule, batch: int, count: int, keep: str = "coarse") -> Tensor:
    """The tokens of `count` scales, the coarsest or the finest: (B, L) bool."""
    level = schedule.level.expand(batch, -1)
    return level < count if keep == "coarse" else level >= schedule.scales - count


def vary(
    model: Generator, latent: Tensor, condition: Mapping[str, Tensor], seeds: Sequence[int], strength: float,
    keep: str = "coarse", sampling: SamplingOptions | None = None,
) -> Tensor:  # fmt: skip
    """Keep the coarse scales of latents and draw the fine ones anew, or the reverse.

    Fine tokens that are kept add what they added to the original, whatever coarse tokens are drawn below them.

    Args:
        latent: (B, C, *grid) float32, as the autoencoder gives it.
        condition: field -> (B,) int64.
        seeds: B integers.
        strength: share of the scales that is drawn, from 0 to 1.
        keep: ``coarse`` or ``fine``.

    Returns:
        (B, C, *grid) float32, for the autoencoder to decode.

    Raises:
        UserError: a strength out of range, or a predictor that keeps no tokens.
    """
    quantizer = model.tokenizer.quantizer
    schedule = quantizer.schedule_at(tuple(latent.shape[2:]))
    tokens = quantizer.encode(latent)
    forced = kept_tokens(schedule, len(latent), scales_kept(schedule.scales, strength), keep).to(tokens.device)
    return _generate(model, condition, seeds, sampling, schedule, known=tokens, forced=forced)[1]


def redraw(
    model: Generator, latent: Tensor, weight: Tensor, condition: Mapping[str, Tensor], seeds: Sequence[int],
    sampling: SamplingOptions | None = None, doubt: float = 0.0, guess: float = 1.0, candidates: int = 1,
    passes: int = 1,
) -> Tensor:  # fmt: skip
    """Draw what is unknown of latents so that it fits what is known.

    Args:
        latent: (B, C, *grid) float32, as the autoencoder gives it; where unknown, a guess, or anything finite.
        weight: (B, *grid) in [0, 1], how well each place is known.
        condition: field -> (B,) int64.
        seeds: B integers.
        doubt: where it is not known, the latent counts as the truth plus noise of this share of its own standard
            deviation, see :class:`next_scale.predictors.known.Evidence`; 0 is to know nothing there.
        guess: how much an unknown place counts beside a known one in that, from 0 to 1.
        candidates: draw so many, and take the one under which the tokens that are known are the likeliest: a coarse
            token that was drawn badly makes the known ones below it unlikely (importance sampling).
        passes: after the first, the coarser half of the scales is taken from the whole result, and the finer half is
            drawn again: so what is drawn and what is known agree on the coarse tokens that stand for both (after the
            resampling of RePaint, arXiv 2201.09865, section 4.2, by scales in place of noise levels).

    Returns:
        (B, C, *grid) float32, for the autoencoder to decode.

    Raises:
        UserError: a predictor that takes no evidence.
    """
    quantizer = model.tokenizer.quantizer
    schedule = quantizer.schedule_at(tuple(latent.shape[2:]))
    if candidates > 1:
        latent, weight = (x.repeat_interleave(candidates, 0) for x in (latent, weight))
        condition = {name: value.repeat_interleave(candidates, 0) for name, value in condition.items()}
        seeds = [sample_seed(seed, number) for seed in seeds for number in range(candidates)]
    evidence = Evidence(quantizer, latent, weight, doubt=doubt, guess=guess)
    tokens, found = _generate(model, condition, seeds, sampling, schedule, evidence=evidence)
    for number in range(1, passes):
        again = [sample_seed(seed, -number) for seed in seeds]
        known = weight.view(len(weight), 1, *weight.shape[1:])
        mixed = torch.lerp(found, latent, known.to(latent))
        evidence = Evidence(quantizer, mixed, weight, schedule.scales // 2, doubt, guess)
        tokens, found = _generate(model, condition, again, sampling, schedule, evidence=evidence)
    if candidates == 1:
        return found
    score = known_log_prob(model, tokens, evidence.forced, condition).unflatten(0, (-1, candidates))
    return found.unflatten(0, (-1, candidates))[torch.arange(len(score)), score.argmax(1)]


@torch.no_grad()
def between(model: Generator, first: Tensor, second: Tensor, amount: float) -> Tensor:
    """What lies between two latents (B, C, *grid), through the quantizer: (B, C, *grid).

    Args:
        amount: 0 is the first, 1 the second.
    """
    quantizer = model.tokenizer.quantizer
    tokens = quantizer.encode(torch.lerp(first, second, amount))
    return quantizer.decode(tokens, grid=tuple(first.shape[2:]))


@torch.no_grad()
def known_log_prob(model: Generator, tokens: Tensor, forced: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
    """Log-probability of the forced ones among tokens (B, L), given all coarser tokens: (B,), in nats."""
    predictor = model.predictor
    if not isinstance(predictor, TokenPredictor) or not predictor.exact_log_prob:
        raise UserError(f"{predictor.name} gives known tokens no likelihood to choose by: draw one candidate")
    logits = predictor(predictor.inputs(model.tokenizer.quantizer, tokens), condition)
    return -(entropy_of(logits, tokens) * forced).sum(1)


def _generate(
    model: Generator, condition: Mapping[str, Tensor], seeds: Sequence[int], sampling: SamplingOptions | None,
    schedule: Schedule, **known: Tensor | Evidence,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    quantizer: MultiScaleQuantizer = model.tokenizer.quantizer
    grid = {"grid": schedule.grid} if isinstance(quantizer.schedule, StrideSchedule) else {}
    drawn = model.predictor.generate(
        quantizer, condition, len(seeds), sampling or model.sampling, seeds=seeds, **known, **grid
    )
    return drawn.tokens, drawn.latent
