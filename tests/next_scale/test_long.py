"""Long samples: windows that fit together, drawn around what is there, in memory that does not grow."""

import pytest
import torch
from torch import nn

from next_scale.errors import UserError
from next_scale.long import Plan, cross_fade, draw_long
from next_scale.model import Generator
from next_scale.predictors import AnyLength, Flow, NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule, StrideSchedule
from next_scale.tokenizer import Tokenizer


@pytest.mark.parametrize("length", [1, 40, 64, 65, 88, 89, 500, 3750])
def test_windows_cover_the_whole(length):
    plan = Plan.of(length, 64)
    assert plan.count == len(plan.starts) == len(plan.ends) and plan.ends[-1] == length
    assert plan.starts[0] == 0 and plan.starts[-1] == max(0, length - 64)
    for start, end, after in zip(plan.starts, plan.ends, plan.starts[1:], strict=False):
        assert end - start == 48 and after + plan.head + plan.overlap <= end < after + 64
    assert len(plan.joins) == plan.count - 1 and all(b - a == 15 for a, b in plan.joins)


def test_windows_that_add_nothing():
    for sizes in ((100, 64, 16, 32, 16), (100, 64, 8, 0, 16), (0, 64, 8, 16, 16)):
        with pytest.raises(UserError, match="cannot overlap"):
            Plan(*sizes)


def test_the_fade_keeps_what_agrees_and_the_power_of_what_does_not():
    torch.manual_seed(0)
    a, b = torch.randn(2, 2, 4096, 16)
    assert torch.allclose(cross_fade(a, a), a, atol=1e-5)
    for other in (b, 0.6 * a + 0.8 * b):
        power = cross_fade(a, other).square().mean((0, 1))
        assert (power.sqrt() - 1).abs().max() < 0.05
    joined = cross_fade(a, b)
    assert (joined - a)[..., 0].norm() < 0.1 * a[..., 0].norm() and (joined - b)[..., -1].norm() < 0.1 * b[
        ..., -1
    ].norm()


def model(schedule="1 2 4 8 16", family=NextScale):
    torch.manual_seed(0)
    schedule = schedule if isinstance(schedule, StrideSchedule) else Schedule.parse(schedule)
    grid = (16,) if isinstance(schedule, StrideSchedule) else schedule.grid
    quantizer = MultiScaleQuantizer(schedule, 3, codebook_size=32, phis=2)
    quantizer.start(torch.randn(256, 3, *grid))
    predictor = family.for_quantizer(quantizer.eval(), {"label": ["a", "b"]}, width=16, depth=1, heads=2)
    return Generator(Tokenizer(nn.Identity(), quantizer), predictor, SamplingOptions()).eval()


def draw(generator, length, seeds=(1, 2, 3), size=16):
    labels = {"label": torch.zeros(len(seeds), dtype=torch.int64)}
    return list(draw_long(generator, labels, seeds, Plan.of(length, size)))


@pytest.mark.parametrize("schedule", ["1 2 4 8 16", "1x1 2x2 4x4 16x8"])
def test_pieces(schedule):
    generator = model(schedule)
    pieces = draw(generator, 70)
    rest = generator.predictor.schedule.grid[1:]
    assert all(piece.shape[:2] == (3, 3) and piece.shape[3:] == rest for piece in pieces)
    assert sum(piece.shape[2] for piece in pieces) == 70 and max(piece.shape[2] for piece in pieces) <= 16
    whole = torch.cat(pieces, 2)
    labels = {"label": torch.zeros(3, dtype=torch.int64)}
    first = generator.predictor.generate(generator.tokenizer.quantizer, labels, 3, generator.sampling, seeds=[1, 2, 3])
    assert torch.equal(whole[:, :, :8], first.latent[:, :, :8])
    assert torch.equal(torch.cat(draw(generator, 70), 2), whole)
    alone = torch.cat(draw(generator, 70, (2,)), 2)
    assert torch.allclose(alone[0], whole[1], atol=1e-4)
    assert not torch.equal(whole[:, :, 20:30], whole[:, :, 26:36])


def test_a_window_is_drawn_around_what_is_there():
    """Where windows meet, cells change no more than elsewhere."""
    latent = torch.cat(draw(model(), 400, tuple(range(8))), 2)
    plan = Plan.of(400, 16)
    change = (latent[:, :, 1:] - latent[:, :, :-1]).square().sum(1).mean(0)
    at = torch.tensor([cell for a, b in plan.joins for cell in range(a, b - 1)])
    elsewhere = torch.ones(399, dtype=torch.bool)
    elsewhere[at] = False
    assert change[at].mean() < 1.1 * change[elsewhere].mean()


def test_a_short_one_is_one_window():
    assert [piece.shape[2] for piece in draw(model(), 10)] == [10]
    assert [piece.shape[2] for piece in draw(model(), 16)] == [16]


def test_families():
    pieces = draw(model(StrideSchedule((8, 4, 2, 1)), AnyLength), 100, size=24)
    assert sum(piece.shape[2] for piece in pieces) == 100
    with pytest.raises(UserError):
        draw(model(family=Flow), 40)
