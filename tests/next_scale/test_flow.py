"""Flow matching: a distribution that is known is recovered, the solvers are of their order, latents are learned."""

import math

import pytest
import torch

from next_scale.errors import UserError
from next_scale.predictors import Flow, predictor_class
from next_scale.predictors.flow import solve
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule

SIZES = {"width": 48, "depth": 2, "heads": 2, "condition_dropout": 0.0}


def quantizer_of(schedule, channels=4):
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(Schedule.parse(schedule), channels, codebook_size=16, phis=1).eval()
    quantizer.start(torch.randn(64, channels, *quantizer.schedule.grid))
    return quantizer


def train(flow, latent, condition, steps, lr=3e-3, batch=None):
    optimizer = torch.optim.AdamW(flow.parameters(), lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    flow.train()
    for _ in range(steps):
        rows = slice(None) if batch is None else torch.randint(len(latent), (batch,))
        optimizer.zero_grad()
        here = {name: value[rows] for name, value in condition.items()}
        flow.loss(None, latent[rows], here).loss.backward()
        optimizer.step()
        schedule.step()
    return flow.eval()


@pytest.mark.parametrize("schedule", ["1 2 4", "1x1 2x2"])
def test_overfits_a_few_samples(schedule):
    """64 latents, one a condition: what is drawn for a condition is its latent."""
    quantizer = quantizer_of(schedule)
    flow = Flow.for_quantizer(quantizer, {"label": list(range(64))}, width=96, depth=2, heads=2, condition_dropout=0.0)
    latent = 3 * torch.randn(64, 4, *quantizer.schedule.grid) + 1
    condition = {"label": torch.arange(64)}
    train(flow, latent, condition, 500)
    drawn = flow.generate(quantizer, condition, 64, seeds=0)
    error = (drawn.latent - latent).square().mean() / latent.var()
    assert error < 0.1
    assert torch.equal(drawn.tokens, quantizer.encode(drawn.latent))


def test_two_modes_are_recovered():
    """A mixture of two Gaussians, 0.3 at -2 and 0.7 at 1, of spread 0.3: weights, means and spreads."""
    quantizer = quantizer_of("1", channels=1)
    torch.manual_seed(1)
    flow = Flow.for_quantizer(quantizer, {}, width=64, depth=2, heads=2)
    left = torch.rand(4096) < 0.3
    latent = (torch.where(left, -2.0, 1.0) + 0.3 * torch.randn(4096)).view(-1, 1, 1)
    train(flow, latent, {}, 600, batch=512)
    drawn = flow.generate(quantizer, {}, 2000, seeds=0).latent.flatten()
    low, high = drawn[drawn < -0.5], drawn[drawn >= -0.5]
    assert len(low) / 2000 == pytest.approx(0.3, abs=0.05)
    assert float(low.mean()) == pytest.approx(-2, abs=0.1) and float(high.mean()) == pytest.approx(1, abs=0.1)
    assert float(low.std()) == pytest.approx(0.3, abs=0.1) and float(high.std()) == pytest.approx(0.3, abs=0.1)


def test_solvers_are_of_first_and_second_order():
    """From noise N(0, 1) to N(m, s^2) the velocity is known, and so is where a point ends: m + s x."""
    mean, spread = 1.5, 0.4

    def velocity(x, t):
        variance = (1 - t) ** 2 + (t * spread) ** 2
        return mean + (t * spread**2 - (1 - t)) / variance * (x - t * mean)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    error = {
        solver: [float((solve(velocity, x, steps, solver) - (mean + spread * x)).abs().max()) for steps in (20, 40)]
        for solver in ("euler", "heun")
    }
    assert 1.7 < error["euler"][0] / error["euler"][1] < 2.4
    assert 3.4 < error["heun"][0] / error["heun"][1] < 4.8
    assert error["heun"][1] < error["euler"][1] / 10


def test_samples_depend_on_their_seed_and_condition_only():
    quantizer = quantizer_of("1x1 2x2 4x4")
    flow = Flow.for_quantizer(quantizer, {"label": ["a", "b"]}, patch=2, **SIZES).eval()
    torch.nn.init.normal_(flow.transformer.head.weight, std=0.3)
    condition = {"label": torch.tensor([0, 1, 1])}
    options = SamplingOptions(cfg=1.0)
    three = flow.generate(quantizer, condition, 3, options, seeds=[5, 6, 7]).latent
    one = flow.generate(quantizer, {"label": torch.tensor([1])}, 1, options, seeds=[6]).latent
    torch.testing.assert_close(three[1:2], one, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(three[1], three[2], atol=0.01)
    again = flow.generate(quantizer, condition, 3, options, seeds=[5, 6, 7]).latent
    assert torch.equal(three, again)


@pytest.mark.parametrize("schedule, patch", [("8", 2), ("4x6", 2), ("4x6", 1)])
def test_patches_and_scale_are_undone(schedule, patch):
    flow = Flow.for_quantizer(quantizer_of(schedule), {}, patch=patch, **SIZES)
    latent = torch.randn(2, 4, *flow.grid)
    patches = flow._to_patches(latent)
    assert patches.shape == (2, math.prod(flow.grid) // patch ** len(flow.grid), 4 * patch ** len(flow.grid))
    assert torch.equal(flow._from_patches(patches), latent)
    flow._watch(5 * latent + 2)
    normal = flow.normalize(5 * latent + 2)
    assert normal.mean().abs() < 1e-4 and normal.std() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(flow.denormalize(normal), 5 * latent + 2, atol=1e-4, rtol=1e-4)


def test_configuration_round_trip_and_mistakes():
    quantizer = quantizer_of("1x1 2x2 4x4")
    flow = Flow.for_quantizer(quantizer, {"label": ["a"]}, patch=2, solver="euler", solver_steps=5, **SIZES)
    again = predictor_class("flow").from_config(flow.to_config())
    again.load_state_dict(flow.state_dict())
    assert again.steps(SamplingOptions()) == 5 and again.to_config() == flow.to_config()
    assert flow.loss(None, torch.randn(3, 4, 4, 4), {}).accuracy.shape == (0,)
    tokens = torch.zeros(2, 21, dtype=torch.int64)
    torch.testing.assert_close(flow.inputs(quantizer, tokens), quantizer.decode(tokens))
    with pytest.raises(UserError, match="no probability"):
        flow.log_prob(tokens, None, {})
    with pytest.raises(UserError, match="do not divide"):
        Flow.for_quantizer(quantizer, {}, patch=3, **SIZES)
    with pytest.raises(UserError, match="solver"):
        Flow.for_quantizer(quantizer, {}, solver="rk4", **SIZES)
    with pytest.raises(UserError, match="keeps no tokens"):
        flow.generate(quantizer, {}, 2, known=tokens, forced=tokens.bool())
