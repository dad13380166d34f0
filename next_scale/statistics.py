"""What a comparison draws from its figures: distances at infinitely many samples, intervals, fits, and ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from next_scale.metrics import frechet_distance


def frechet_infinity(real: Tensor, generated: Tensor, points: int = 8, seed: int = 0) -> float | None:
    """Frechet distance at infinitely many generated samples (arXiv 1911.07023): a line in 1 / N, followed to 0.

    Args:
        real: (N, E). generated: (M, E) float.
        points: subset sizes, evenly from a quarter of M to M.

    Returns:
        None where M is below 4 E: covariances of so few samples follow no line.

    Shape notation: N, M samples, E features.
    """
    count, features = generated.shape
    if count < 4 * features:
        return None
    sizes = np.linspace(count // 4, count, points).round().astype(int)
    generator = torch.Generator().manual_seed(seed)
    distances = [
        frechet_distance(real, generated[torch.randperm(count, generator=generator)[: int(size)]]) for size in sizes
    ]
    return float(stats.linregress(1 / sizes, distances).intercept)


class Interval(NamedTuple):
    """A figure with the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float


class Figures(NamedTuple):
    """A figure of one predictor: a value a seed, and what other held-out samples would have added to it.

    Shape notation: S seeds, R draws of the held-out samples.
    """

    values: np.ndarray  # (S,)
    deviations: np.ndarray  # (S, R); R is 0 where samples were not drawn anew

    @classmethod
    def of(cls, values: Sequence[float], draws: Sequence[Sequence[float]]) -> Figures:
        """From values (S,) and the figures of draws (S, R), of which only the differences among themselves count.

        A draw with repetitions is farther from the real samples than one without, whatever the predictor.
        """
        count = min(map(len, draws), default=0)
        drawn = np.asarray([row[:count] for row in draws], dtype=float).reshape(len(values), count)
        return cls(np.asarray(values, dtype=float), drawn - drawn.mean(1, keepdims=True) if count else drawn)


def log_ratio(
    pairs: Sequence[tuple[Figures, Figures]], weights: Sequence[float] | None = None, level: float = 0.95,
    resamples: int = 4000, seed: int = 0,
) -> Interval | None:  # fmt: skip
    """w_1 log(a_1 / b_1) + w_2 log(a_2 / b_2) + ... of pairs (a, b), each figure the mean over its seeds.

    The interval is a bootstrap in two stages: the seeds of each figure with replacement, and one draw of the held-out
    samples a pair, the same for both of it, so that what they share cancels. Of one seed the samples alone move it.

    Args:
        pairs: what is set in ratio.
        weights: of the pairs' logarithms; None is 1 for the first and -1 for the others.

    Returns:
        None where a figure is not positive, so that it has no ratio.
    """
    if any((figures.values <= 0).any() for pair in pairs for figures in pair):
        return None
    random = np.random.default_rng(seed)

    def drawn(figures: Figures, draws: np.ndarray | None) -> np.ndarray:
        seeds = random.integers(len(figures.values), size=(resamples, len(figures.values)))
        found = figures.values[seeds]
        if draws is not None:
            found = found + figures.deviations[seeds, draws[:, None]]
        return np.maximum(found, np.finfo(float).tiny).mean(1)

    value, spread = 0.0, np.zeros(resamples)
    weights = (1, *[-1] * (len(pairs) - 1)) if weights is None else weights
    for weight, (a, b) in zip(weights, pairs, strict=True):
        count = min(a.deviations.shape[1], b.deviations.shape[1])
        draws = random.integers(count, size=resamples) if count else None
        value += weight * math.log(a.values.mean() / b.values.mean())
        spread += weight * np.log(drawn(a, draws) / drawn(b, draws))
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


class ScalingFit(NamedTuple):
    """loss = floor + factor * compute ** -exponent, with intervals of the exponent and of the floor."""

    floor: float
    factor: float
    exponent: float
    exponent_interval: tuple[float, float]
    floor_interval: tuple[float, float]


def fit_scaling(
    compute: Sequence[float], loss: Sequence[float], resamples: int = 100, seed: int = 0
) -> ScalingFit | None:
    """Fit L = E + A C^-alpha (arXiv 2203.15556, section 3.3) by Huber's loss on the logarithms.

    Returns:
        None where the figures do not tell: fewer than four different amounts of compute, or a loss that does not fall.
    """
    x, y = np.asarray(compute, dtype=float), np.asarray(loss, dtype=float)
    if len(np.unique(x)) < 4 or stats.spearmanr(x, y).statistic > -0.5 or (y <= 0).any():
        return None
    scale = np.exp(np.log(x).mean())  # so that the factor is of the size of the loss

    def fit(a: np.ndarray, b: np.ndarray, starts: Sequence[np.ndarray], evaluations: int) -> np.ndarray:
        log_a, log_b = np.log(a / scale), np.log(b)

        def residuals(p: np.ndarray) -> np.ndarray:
            return np.log(np.exp(p[0]) + np.exp(p[1] - np.exp(min(p[2], 3.0)) * log_a)) - log_b

        found = [
            optimize.least_squares(residuals, start, loss="huber", f_scale=1e-3, max_nfev=evaluations)
            for start in starts
        ]
        return min(found, key=lambda result: result.cost).x

    starts = [
        np.log([floor * y.min(), factor * y.max(), exponent])
        for floor, factor, exponent in ((0.9, 0.1, 0.3), (0.5, 0.5, 0.3), (0.5, 0.5, 1.0))
    ]
    best = fit(x, y, starts, 500)
    floor, factor, exponent = np.exp(best)
    random, draws = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = random.integers(len(x), size=len(x))
        if len(np.unique(x[rows])) >= 4:
            draws.append(np.exp(fit(x[rows], y[rows], [best], 50)))
    if not draws:
        return None
    low, high = np.quantile(np.stack(draws), [0.025, 0.975], axis=0)
    return ScalingFit(
        float(floor), float(factor * scale**exponent), float(exponent),
        (float(low[2]), float(high[2])), (float(low[0]), float(high[0])),
    )  # fmt: skip
