"""Statistics on data whose truth is known."""

import math

import numpy as np
import pytest
import torch

from next_scale.metrics import frechet_distance
from next_scale.statistics import Figures, fit_scaling, frechet_infinity, log_ratio


def test_frechet_distance_at_infinity_loses_its_bias():
    torch.manual_seed(0)
    real, truth = torch.randn(20_000, 16), 16 * 0.04
    plain, infinite = [], []
    for seed in range(6):
        generated = 0.2 + torch.randn(600, 16)
        plain.append(frechet_distance(real, generated))
        infinite.append(frechet_infinity(real, generated, seed=seed))
    assert np.mean(plain) - truth > 0.1 and abs(np.mean(infinite) - truth) < 0.4 * (np.mean(plain) - truth)
    assert frechet_infinity(real, generated[:60]) is None


def test_intervals_of_ratios_cover():
    random = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        a, b = (Figures.of(random.normal(mean, 0.1, 12), []) for mean in (3, 2))
        found = log_ratio([(a, b)], resamples=300, seed=seed)
        assert found.low <= found.value <= found.high
        hits += found.low <= math.log(1.5) <= found.high
    assert hits >= 83


def test_ratios_of_ratios():
    def figures(*values):
        return Figures.of(values, [])

    pairs = [(figures(1.0, 1.1), figures(2.0, 2.1)), (figures(3.0, 3.1), figures(3.0, 3.1))]
    found = log_ratio(pairs)
    assert found.value == pytest.approx(math.log(1.05 / 2.05)) and found.high < 0
    assert log_ratio([(figures(1.0), figures(1.0))]) == (0, 0, 0)
    assert log_ratio([(figures(-1.0), figures(1.0))]) is None


def test_what_two_figures_share_in_their_samples_cancels():
    random = np.random.default_rng(0)
    hard = random.normal(0, 0.2, 64)
    a, b = Figures.of([4.0], [5 + hard]), Figures.of([4.0], [7 + hard])
    other = Figures.of([4.0], [5 + random.permutation(hard)])
    assert a.deviations.mean() == pytest.approx(0)
    same, apart = log_ratio([(a, b)]), log_ratio([(a, other)])
    assert same.high - same.low < 1e-9 < 0.1 < apart.high - apart.low


def test_scaling_fit():
    random = np.random.default_rng(0)
    compute = np.logspace(12, 16, 9)
    loss = (1.5 + 40 * compute**-0.12) * np.exp(random.normal(0, 1e-4, 9))
    found = fit_scaling(compute, loss, resamples=40)
    assert found.exponent == pytest.approx(0.12, abs=0.02) and found.floor == pytest.approx(1.5, abs=0.1)
    assert found.exponent_interval[0] <= found.exponent <= found.exponent_interval[1]
    assert found.floor + found.factor * 1e14**-found.exponent == pytest.approx(1.5 + 40 * 1e14**-0.12, rel=1e-3)
    assert fit_scaling(compute[:3], loss[:3]) is None
    assert fit_scaling(compute, loss[::-1]) is None
