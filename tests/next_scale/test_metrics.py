"""Distances and code statistics against values known in closed form."""

import math

import pytest
import torch

from next_scale.errors import UserError
from next_scale.metrics import (
    bits_per_scale,
    codebook_usage,
    frechet_distance,
    gaussian_frechet,
    kernel_distance,
    manifold_metrics,
)
from next_scale.schedule import Schedule


def _random(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_of_commuting_gaussians_is_that_of_their_axes():
    # N(m, diag(s^2)): |m_a - m_b|^2 + sum (s_a - s_b)^2, and a common rotation changes nothing
    mean_a, mean_b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 4.0, 3.5])
    scale_a, scale_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 0.0])
    wanted = float((mean_a - mean_b).square().sum() + (scale_a - scale_b).square().sum())
    turn = torch.linalg.qr(_random(3, 3, 0)).Q
    a = (turn @ mean_a.double(), turn @ torch.diag(scale_a.double() ** 2) @ turn.T)
    b = (turn @ mean_b.double(), turn @ torch.diag(scale_b.double() ** 2) @ turn.T)
    assert gaussian_frechet(*a, *b) == pytest.approx(wanted, rel=1e-7)  # a root of a zero rounded to 1e-16 is 1e-8


def test_frechet_of_gaussians_that_do_not_commute_matches_the_matrix_square_root():
    from scipy.linalg import sqrtm

    a, b = (x @ x.T + torch.eye(5) for x in (_random(5, 5, 1), _random(5, 5, 2)))
    wanted = float(a.trace() + b.trace()) - 2 * sqrtm((a @ b).numpy()).real.trace()
    zero = torch.zeros(5)
    assert gaussian_frechet(zero, a, zero, b) == pytest.approx(wanted, rel=1e-8)


def test_frechet_of_features():
    x = _random(400, 6, 3)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(4 * 6, rel=1e-9)
    scaled = 3 * (x - x.mean(0)) + x.mean(0)
    assert frechet_distance(x, scaled) == pytest.approx(4 * float(torch.cov(x.T).trace()), rel=1e-9)
    # fewer samples than features: singular covariances
    assert frechet_distance(x[:4], x[:4] + 1) == pytest.approx(6, rel=1e-6)


def test_frechet_agrees_in_order_of_arguments_and_precision():
    a, b = _random(300, 8, 4), _random(200, 8, 5) * 1.5 + 0.3
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(frechet_distance(a, b), rel=1e-5)


def test_kernel_distance_of_one_dimension():
    # kernel (xy + 1)^3 over {0, 1} against {1, 2}
    real, generated = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distance(real, generated) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)
    assert abs(kernel_distance(_random(2000, 4, 6), _random(2000, 4, 7))) < 0.02


def test_manifold_metrics_of_points_on_a_line():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # k = 1: radii 1, 1, 1, 8
    generated = torch.tensor([[0.5], [2.5], [50.0]])  # radii 2, 2, 47.5
    found = manifold_metrics(real, generated, neighbours=1)
    assert found.precision == pytest.approx(2 / 3)  # 50 lies 40 from 10
    assert found.recall == 1  # 50's ball holds 10
    assert found.density == pytest.approx((2 + 2) / 3)  # 0.5 in two balls, 2.5 in those of 2 and 10
    assert found.coverage == 1


def test_manifold_metrics_of_equal_and_of_distant_sets():
    x = _random(100, 5, 8)
    assert manifold_metrics(x, x)[:2] == (1, 1)
    assert manifold_metrics(x, x + 1000) == (0, 0, 0, 0)
    half = manifold_metrics(torch.cat([x, x + 1000]), torch.cat([x, x + 1e-6]))
    assert half.precision == 1 and half.recall == 0.5 and half.coverage == 0.5


def test_manifold_metrics_of_the_same_distribution():
    found = manifold_metrics(_random(1000, 3, 9), _random(1000, 3, 10), neighbours=5)
    assert found.density == pytest.approx(1, abs=0.1)
    assert found.coverage == pytest.approx(1 - 2**-5, abs=0.02)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, manifold_metrics])
def test_bad_features_are_reported(measure):
    x = _random(20, 3, 11)
    with pytest.raises(UserError, match="at least"):
        measure(x[:1], x)
    with pytest.raises(UserError, match="finite"):
        measure(x, torch.full_like(x, math.nan))


@pytest.mark.parametrize(("text", "first"), [("1 2 4", 1), ("1x1 2x2", 1)])
def test_codebook_usage(text, first):
    schedule = Schedule.parse(text)
    tokens = torch.zeros(8, schedule.length, dtype=torch.int64)
    tokens[:, 0] = torch.arange(8)
    tokens[4:, 1 : 1 + schedule.counts[1]] = 5
    usage = codebook_usage(tokens, schedule, codebook_size=16)
    assert [entry.tokens for entry in usage] == list(schedule.counts)
    assert usage[0].perplexity == pytest.approx(8) and usage[0].used == 8
    assert usage[0].bits == 4 and usage[0].entropy == pytest.approx(3)
    assert usage[0].expected == pytest.approx(16 * (1 - (15 / 16) ** 8))
    assert usage[1].perplexity == pytest.approx(2) and usage[1].used == 2
    assert usage[1].bits == 4 * schedule.counts[1] and usage[1].entropy == pytest.approx(schedule.counts[1])
    assert sum(entry.bits for entry in usage) == schedule.bits(16)


def test_bits_per_scale():
    log_prob = torch.log(torch.tensor([[0.5, 0.25], [0.125, 0.25]]))
    assert bits_per_scale(log_prob).tolist() == pytest.approx([2, 2])
