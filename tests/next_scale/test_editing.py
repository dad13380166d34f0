"""Editing latents: what is known, what stays of a variation, candidates, passes, and doubt; in 1D and 2D."""

import pytest
import torch

from next_scale.cli import sample_seed
from next_scale.editing import grid_weight, kept_tokens, known_log_prob, redraw, scales_kept, vary
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.predictors import Evidence, Flow, Masked, NextScale, NextToken
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer

SCHEDULES = ("1 2 4 8 16", "1x1 2x2 4x4 8x8")


def build(schedule, family=NextScale, count=4):
    """A generator whose samples are its latents, and some latents."""
    torch.manual_seed(0)
    schedule = Schedule.parse(schedule)
    quantizer = MultiScaleQuantizer(schedule, 3, codebook_size=32, phis=2)
    smooth = torch.randn(256, 3, *[4] * len(schedule.grid))
    latent = torch.nn.functional.interpolate(smooth, size=schedule.grid) + 0.2 * torch.randn(256, 3, *schedule.grid)
    quantizer.start(latent)
    predictor = family.for_quantizer(quantizer.eval(), {"label": ["a", "b"]}, width=16, depth=1, heads=2).eval()
    return Generator(Tokenizer(torch.nn.Identity(), quantizer), predictor, SamplingOptions()), latent[:count]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_places_of_which_anything_is_hidden_are_unknown(schedule):
    grid = Schedule.parse(schedule).grid
    hidden = torch.zeros(2, *(4 * side for side in grid), dtype=torch.bool)
    hidden[0, 9:13] = True
    weight = grid_weight(hidden, grid)
    assert weight.shape == (2, *grid) and weight[1].min() == 1
    assert [float(row.min()) for row in weight[0]] == [1, 1, 0, 0] + [1] * (grid[0] - 4)


@pytest.mark.parametrize("family", [NextScale, NextToken, Masked])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_variations_keep_their_scales(family, schedule):
    model, latent = build(schedule, family)
    quantizer = model.tokenizer.quantizer
    scales, tokens = quantizer.scales, quantizer.encode(latent)
    everything = vary(model, latent, {}, [0, 1, 2, 3], 0.0)
    torch.testing.assert_close(everything, quantizer.decode(tokens))
    coarse = vary(model, latent, {}, [0, 1, 2, 3], 2 / scales)
    kept = quantizer.decode(tokens, scales=scales - 2)
    assert (coarse - kept).abs().mean() < (vary(model, latent, {}, [0, 1, 2, 3], 1.0) - kept).abs().mean()
    fine = vary(model, latent, {}, [0, 1, 2, 3], 2 / scales, keep="fine")
    assert not torch.allclose(fine, coarse) and not torch.allclose(fine, everything)


def test_which_tokens_stay():
    schedule = Schedule.parse("1 2 4")
    assert kept_tokens(schedule, 1, 2)[0].tolist() == [True] * 3 + [False] * 4
    assert kept_tokens(schedule, 1, 1, "fine")[0].tolist() == [False] * 3 + [True] * 4
    assert [scales_kept(5, strength) for strength in (0, 0.4, 1)] == [5, 3, 0]
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="from 0, nothing, to 1"):
            scales_kept(5, strength)


@pytest.mark.parametrize(
    "schedule, family", [(SCHEDULES[0], NextScale), (SCHEDULES[0], Masked), (SCHEDULES[1], NextScale)]
)
def test_doubt_lies_between_encoding_and_drawing(schedule, family):
    """With little doubt the latent is encoded; the more of it, the farther the result may be from it."""
    model, latent = build(schedule, family, 8)
    quantizer = model.tokenizer.quantizer
    nothing = torch.zeros(8, *quantizer.schedule.grid)

    def error(found):
        return (found - latent).square().mean().item()

    errors = [error(redraw(model, latent, nothing, {}, range(8), doubt=doubt)) for doubt in (1e-3, 0.3, 1.0, 1e4)]
    assert errors[0] == pytest.approx(error(quantizer.decode(quantizer.encode(latent))), rel=0.02)
    assert errors[0] < errors[1] < errors[2] < errors[3]
    free = model.predictor.generate(quantizer, {}, 8, seeds=list(range(8))).latent
    assert errors[3] == pytest.approx(error(free), rel=0.05)
    assert torch.equal(redraw(model, latent, nothing, {}, range(8)), free)  # no doubt is no word at all


def test_a_guess_draws_the_unknown_towards_itself_and_forces_the_known():
    model, latent = build("1 2 4 8 16", count=16)
    weight = torch.ones(16, 16)
    weight[:, 8:] = 0
    free, near = (redraw(model, latent, weight, {}, range(16), doubt=doubt) for doubt in (0.0, 0.3))

    def error(found, part):
        return (found - latent)[:, :, part].square().mean().item()

    assert error(near, slice(9, 16)) < 0.7 * error(free, slice(9, 16))
    assert error(near, slice(0, 7)) < 1.1 * error(free, slice(0, 7))
    alone = redraw(model, latent[2:3], weight[2:3], {}, [2], doubt=0.3)
    assert torch.equal(alone[0], near[2])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_candidates_are_chosen_by_what_is_known(schedule):
    model, latent = build(schedule)
    with torch.no_grad():
        for name, parameter in model.predictor.named_parameters():
            if "modulation" in name or "head" in name:
                parameter.normal_(std=0.3)  # an opinion
    weight = torch.ones(4, *model.tokenizer.quantizer.schedule.grid)
    weight[:, weight.shape[1] // 2 :] = 0
    many = redraw(model, latent, weight, {}, [0, 1, 2, 3], candidates=8)
    quantizer = model.tokenizer.quantizer
    for row in range(4):
        evidence = Evidence(quantizer, *(x[row : row + 1].expand(8, *x.shape[1:]) for x in (latent, weight)))
        seeds = [sample_seed(row, number) for number in range(8)]
        drawn = model.predictor.generate(quantizer, {}, 8, model.sampling, seeds=seeds, evidence=evidence)
        likelihood = known_log_prob(model, drawn.tokens, evidence.forced, {})
        assert likelihood.unique().numel() > 1
        torch.testing.assert_close(many[row], drawn.latent[likelihood.argmax()])


def test_passes_change_what_is_drawn_and_keep_what_is_known():
    model, latent = build("1 2 4 8 16", count=32)
    weight = torch.ones(32, 16)
    weight[:, 8:] = 0
    one, three = (redraw(model, latent, weight, {}, range(32), passes=n) for n in (1, 3))
    assert not torch.allclose(one[:, :, 8:], three[:, :, 8:])
    kept = [(found - latent)[:, :, :7].square().mean().item() for found in (one, three)]
    assert kept[1] < 1.2 * kept[0]


def test_families_that_cannot():
    model, latent = build("1 2 4 8 16", Flow)
    weight = torch.ones(4, 16)
    with pytest.raises(UserError, match="edit with a predictor of tokens"):
        redraw(model, latent, weight, {}, range(4))
    with pytest.raises(UserError, match="edit with a predictor of tokens"):
        vary(model, latent, {}, range(4), 0.5)
    model, latent = build("1 2 4 8 16", Masked)
    with pytest.raises(UserError, match="draw one candidate"):
        redraw(model, latent, weight, {}, range(4), candidates=2)
