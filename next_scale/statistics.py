"""What a comparison draws from its figures: distances at infinitely many samples, intervals, fits, and ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from next_scale.errors import UserError
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


def bootstrap(
    groups: Sequence[Sequence[float]],
    statistic: Callable[..., float],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """A statistic of several groups of figures, such as those of several seeds, with its percentile interval.

    Args:
        groups: each is drawn from with replacement, independently of the others.
        statistic: of one array a group.

    Raises:
        UserError: a group without figures.
    """
    arrays = [np.asarray(group, dtype=float) for group in groups]
    if not all(array.size for array in arrays):
        raise UserError("an interval needs at least one figure in every group")
    random = np.random.default_rng(seed)
    found = [statistic(*(random.choice(array, array.size) for array in arrays)) for _ in range(resamples)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(*arrays)), float(low), float(high))


def headline_ratio(
    next_scale_2d: Sequence[float], next_token_2d: Sequence[float], next_scale_1d: Sequence[float],
    next_token_1d: Sequence[float], seed: int = 0,
) -> Interval:  # fmt: skip
    """log(R_2D / R_1D), R being next-scale's figure over next-token's, of which lower is better.

    Below 0 next-scale prediction helps more in 2D than in 1D; 0 is alike. Each argument holds one figure a seed.
    """

    def ratio(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
        return math.log((a.mean() / b.mean()) / (c.mean() / d.mean()))

    return bootstrap((next_scale_2d, next_token_2d, next_scale_1d, next_token_1d), ratio, seed=seed)


class ScalingFit(NamedTuple):
    """loss = floor + factor * compute ** -exponent, with intervals of the exponent and of the floor."""

    floor: float
    factor: float
    exponent: float
    exponent_interval: tuple[float, float]
    floor_interval: tuple[float, float]


def fit_scaling(
    compute: Sequence[float], loss: Sequence[float], resamples: int = 200, seed: int = 0
) -> ScalingFit | None:
    """Fit L = E + A C^-alpha (arXiv 2203.15556, section 3.3) by Huber's loss on the logarithms.

    Returns:
        None where the figures do not tell: fewer than four different amounts of compute, or a loss that does not fall.
    """
    x, y = np.asarray(compute, dtype=float), np.asarray(loss, dtype=float)
    if len(np.unique(x)) < 4 or stats.spearmanr(x, y).statistic > -0.5 or (y <= 0).any():
        return None
    scale = np.exp(np.log(x).mean())  # so that the factor is of the size of the loss

    def fit(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
        def residuals(p: np.ndarray) -> np.ndarray:
            return np.log(np.exp(p[0]) + np.exp(p[1] - np.exp(p[2]) * np.log(a / scale))) - np.log(b)

        best = None
        for start in ((0.9, 0.1, 0.3), (0.5, 0.5, 0.3), (0.5, 0.5, 1.0)):
            p0 = np.log([start[0] * b.min(), start[1] * b.max(), start[2]])
            found = optimize.least_squares(residuals, p0, loss="huber", f_scale=1e-3, max_nfev=2000)
            best = found if best is None or found.cost < best.cost else best
        return np.exp(best.x)

    floor, factor, exponent = fit(x, y)
    random, draws = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = random.integers(len(x), size=len(x))
        if len(np.unique(x[rows])) >= 4:
            draws.append(fit(x[rows], y[rows]))
    if not draws:
        return None
    low, high = np.quantile(np.stack(draws), [0.025, 0.975], axis=0)
    return ScalingFit(
        float(floor), float(factor * scale**exponent), float(exponent),
        (float(low[2]), float(high[2])), (float(low[0]), float(high[0])),
    )  # fmt: skip
