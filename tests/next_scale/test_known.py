"""Evidence: known parts of a latent stay near what they are, whatever is drawn around them."""

import pytest
import torch

from next_scale.errors import UserError
from next_scale.predictors import AnyLength, Delay, Evidence, Flow, Masked, NextScale, NextToken
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule, StrideSchedule

SCHEDULES = ("1 2 4 8 16", "1x1 2x2 4x4 8x8")


def setup(schedule, family, count=4):
    torch.manual_seed(0)
    schedule = Schedule.parse(schedule)
    quantizer = MultiScaleQuantizer(schedule, 3, codebook_size=32, phis=2)
    smooth = torch.randn(256, 3, *[4] * len(schedule.grid))
    latent = torch.nn.functional.interpolate(smooth, size=schedule.grid) + 0.2 * torch.randn(256, 3, *schedule.grid)
    quantizer.start(latent)
    predictor = family.for_quantizer(quantizer.eval(), {}, width=16, depth=1, heads=2).eval()
    return quantizer, predictor, latent[:count]


@pytest.mark.parametrize("family", [NextScale, NextToken, Masked])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_known_whole_is_encoded(family, schedule):
    quantizer, predictor, latent = setup(schedule, family)
    weight = torch.ones(4, *quantizer.schedule.grid)
    drawn = predictor.generate(quantizer, {}, 4, seeds=0, evidence=Evidence(quantizer, latent, weight))
    assert torch.equal(drawn.tokens, quantizer.encode(latent))


@pytest.mark.parametrize("family", [NextScale, NextToken, Masked])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_later_scales_correct_earlier_ones_where_it_is_known(family, schedule):
    """Nearer to the known part than tokens that were kept from an encoding."""
    quantizer, predictor, latent = setup(schedule, family, 32)
    weight = torch.ones(32, *quantizer.schedule.grid)
    half = weight.shape[1] // 2
    weight[:, half:] = 0
    evidence = Evidence(quantizer, latent, weight)
    drawn = predictor.generate(quantizer, {}, 32, seeds=0, evidence=evidence)
    tokens = quantizer.encode(latent)
    forced = quantizer.schedule.shrink_mask(weight > 0)
    assert torch.equal(forced, evidence.forced) and 0 < forced.sum() < forced.numel()
    kept = predictor.generate(quantizer, {}, 32, seeds=0, known=tokens, forced=forced)

    def error(found):
        return (found - latent)[:, :, :half].square().mean().item()

    best = error(quantizer.decode(tokens))
    assert best < error(drawn.latent) < 0.9 * error(kept.latent)
    assert not torch.equal(drawn.tokens[:, -3:], tokens[:, -3:])  # what is unknown is drawn


@pytest.mark.parametrize("family", [NextScale, Masked])
def test_what_is_unknown_and_the_batch_do_not_matter(family):
    quantizer, predictor, latent = setup("1 2 4 8 16", family)
    weight = torch.ones(4, 16)
    weight[:, 5:11] = 0
    other = torch.where(weight[:, None] > 0, latent, torch.randn_like(latent) * 50)
    options = SamplingOptions(top_k=8)
    drawn = [
        predictor.generate(quantizer, {}, 4, options, seeds=3, evidence=Evidence(quantizer, part, weight)).tokens
        for part in (latent, other)
    ]
    assert torch.equal(*drawn)
    for row in range(4):
        alone = Evidence(quantizer, latent[row : row + 1], weight[row : row + 1])
        made = predictor.generate(quantizer, {}, 1, options, seeds=3 + row, evidence=alone).tokens
        assert torch.equal(made[0], drawn[0][row])


def test_nothing_known_changes_nothing_and_half_known_counts_by_area():
    quantizer, predictor, latent = setup("1 2 4 8 16", NextScale)
    nothing = Evidence(quantizer, latent, torch.zeros(4, 16))
    free = predictor.generate(quantizer, {}, 4, seeds=0).tokens
    assert torch.equal(predictor.generate(quantizer, {}, 4, seeds=0, evidence=nothing).tokens, free)
    weight = torch.zeros(4, 16)
    weight[:, :9] = 1
    forced = Evidence(quantizer, latent, weight).forced[0].tolist()
    assert forced == [True, True, False, True, True, False, False] + [True] * 4 + [False] * 4 + [True] * 9 + [False] * 7


def test_any_length():
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(StrideSchedule((4, 2, 1)), 3, codebook_size=32)
    quantizer.start(torch.randn(64, 3, 16))
    predictor = AnyLength.for_quantizer(quantizer, {}, width=16, depth=1, heads=2).eval()
    latent = torch.randn(2, 3, 12)
    evidence = Evidence(quantizer, latent, torch.ones(2, 12))
    drawn = predictor.generate(quantizer, {}, 2, seeds=0, evidence=evidence, grid=(12,))
    assert torch.equal(drawn.tokens, quantizer.encode(latent))


def test_families_that_cannot():
    quantizer, predictor, latent = setup("4 4", Delay)
    evidence = Evidence(quantizer, latent, torch.ones(4, 4))
    with pytest.raises(UserError, match="give known tokens, not a known latent"):
        predictor.generate(quantizer, {}, 4, seeds=0, evidence=evidence)
    flow = Flow.for_quantizer(quantizer, {}, width=16, depth=1, heads=2)
    with pytest.raises(UserError, match="edit with a predictor of tokens"):
        flow.generate(quantizer, {}, 4, seeds=0, evidence=evidence)
    with pytest.raises(ValueError, match="of 3 samples of this schedule"):
        predictor.generate(quantizer, {}, 3, seeds=0, evidence=evidence)
