"""Statistics on data whose truth is known."""

import math

import numpy as np
import pytest
import torch

from next_scale.errors import UserError
from next_scale.metrics import frechet_distance
from next_scale.statistics import bootstrap, fit_scaling, frechet_infinity, headline_ratio


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


def test_intervals_cover_and_need_figures():
    random = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        found = bootstrap([random.normal(3, 1, 12)], np.mean, resamples=300, seed=seed)
        assert found.low <= found.value <= found.high
        hits += found.low <= 3 <= found.high
    assert hits >= 83
    with pytest.raises(UserError, match="at least one figure"):
        bootstrap([[]], np.mean)


def test_headline_ratio():
    found = headline_ratio([1.0, 1.1], [2.0, 2.1], [3.0, 3.1], [3.0, 3.1])
    assert found.value == pytest.approx(math.log(1.05 / 2.05)) and found.high < 0
    assert headline_ratio([1.0], [1.0], [1.0], [1.0]) == (0, 0, 0)


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
