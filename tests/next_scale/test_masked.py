"""Masked prediction: what is masked when, draws, bounds, and learning."""

import pytest
import torch

from next_scale.errors import UserError
from next_scale.predictors import Masked, predictor_class
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule

SIZES = {"width": 48, "depth": 2, "heads": 2, "condition_dropout": 0.0}


def build(schedule="1 2 4 8", codes=16, spec=None, **options):
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(Schedule.parse(schedule), 4, codebook_size=codes, phis=1).eval()
    quantizer.start(torch.randn(128, 4, *quantizer.schedule.grid))
    predictor = Masked.for_quantizer(quantizer, spec or {"label": ["a", "b"]}, **(SIZES | options))
    with torch.no_grad():
        for name, parameter in predictor.named_parameters():
            if "modulation" in name or "head" in name:
                parameter.normal_(std=0.3)
    return quantizer, predictor.eval()


@pytest.mark.parametrize("schedule", ["1 2 4", "1x1 2x2", "8"])
def test_overfits_a_few_samples(schedule):
    """64 pyramids, one a condition: what is drawn for a condition is its pyramid."""
    spec = {"label": list(range(64))}
    quantizer, _ = build(schedule)
    predictor = Masked.for_quantizer(quantizer, spec, width=96, depth=2, heads=2, condition_dropout=0.0)
    tokens = torch.randint(16, (64, quantizer.schedule.length))
    condition = {"label": torch.arange(64)}
    inputs = predictor.inputs(quantizer, tokens)
    optimizer = torch.optim.AdamW(predictor.parameters(), 3e-3, weight_decay=0.0)
    for _ in range(150):
        optimizer.zero_grad()
        predictor.loss(tokens, inputs, condition).loss.backward()
        optimizer.step()
    assert predictor.eval().loss(tokens, inputs, condition).loss < 0.1
    drawn = predictor.generate(quantizer, condition, 64, SamplingOptions(), seeds=0).tokens
    assert (drawn == tokens).float().mean() > 0.95


def test_masks_in_training():
    _, predictor = build()
    masks = predictor._random_masks(4000, torch.device("cpu"), False, None)
    for count, part in zip(predictor.schedule.counts, predictor.schedule.split(masks), strict=True):
        number = part.sum(1)
        assert number.min() == 1 and number.max() == count
        assert part.float().mean(0).std(correction=0) < 0.03  # every place as often
    # the mean of ceil(8 cos(pi u / 2)) over u
    assert number.float().mean() == pytest.approx(8 * 2 / torch.pi + 0.5, abs=0.15)
    even = predictor.schedule.split(predictor._random_masks(4000, torch.device("cpu"), True, None))[-1].sum(1)
    assert torch.bincount(even, minlength=9)[1:].float().std() < 60


def test_every_token_is_fixed_once(monkeypatch):
    quantizer, predictor = build("1 4 16", iterations=4)
    seen = []
    own = predictor._own
    monkeypatch.setattr(predictor, "_own", lambda codes, masked: seen.append(masked.clone()) or own(codes, masked))
    predictor.generate(quantizer, {"label": torch.tensor([1])}, 1, SamplingOptions(top_k=8), seeds=[3])
    assert [mask.shape[1] for mask in seen] == [1, 4, 4, 4, 16, 16, 16, 16]
    assert predictor.steps(SamplingOptions()) == len(seen) == 8
    for before, after in zip(seen, seen[1:], strict=False):
        if before.shape == after.shape:
            assert not (after & ~before).any() and after.sum() < before.sum()
    assert [int(mask.sum()) for mask in seen[4:]] == [16, 14, 11, 6]  # 16 cos(pi i / 8), rounded down


def test_one_iteration_draws_a_scale_at_once():
    quantizer, predictor = build(iterations=1)
    condition, options = {"label": torch.tensor([0])}, SamplingOptions(temperature=0)
    drawn = predictor.generate(quantizer, condition, 1, options, seeds=[0]).tokens
    logits = predictor(predictor.inputs(quantizer, drawn), condition)
    assert torch.equal(logits.argmax(-1), drawn)  # with all masked, as next-scale prediction


def test_samples_depend_on_their_seed_and_condition_only():
    quantizer, predictor = build()
    options = SamplingOptions(cfg=1.0, top_k=8)
    labels = torch.randint(2, (24,))
    many = predictor.generate(quantizer, {"label": labels}, 24, options, seeds=0).tokens
    for row in (0, 7, 23):
        alone = predictor.generate(quantizer, {"label": labels[row : row + 1]}, 1, options, seeds=[row]).tokens
        assert torch.equal(many[row], alone[0])
    assert len(many.unique(dim=0)) == 24


def test_known_tokens_stay():
    quantizer, predictor = build()
    known = torch.randint(16, (2, 15))
    forced = torch.rand(2, 15) < 0.5
    forced[0, 7:] = True  # a whole scale
    drawn = predictor.generate(quantizer, {}, 2, SamplingOptions(), seeds=0, known=known, forced=forced).tokens
    assert torch.equal(drawn[forced], known[forced])
    assert not torch.equal(drawn[~forced], known[~forced])


def test_the_likelihood_is_a_lower_bound(monkeypatch):
    """Over all pyramids of a toy, the exponentials of the bounds sum to less than 1."""
    monkeypatch.setattr("next_scale.predictors.masked._DRAWS", 200)  # so that chance does not lift the sum
    quantizer, predictor = build("1 2", codes=4)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    inputs, condition = predictor.inputs(quantizer, every), {"label": torch.zeros(64, dtype=torch.int64)}
    with torch.no_grad():
        bound = predictor.log_prob(every, inputs, condition)
    assert bound.shape == (64, 2) and 0.5 < bound.sum(1).exp().sum() <= 1.005


def test_configuration_round_trip_and_mistakes():
    quantizer, predictor = build(iterations=3, choice_temperature=1.5, codebook_head=True)
    again = predictor_class("masked").from_config(predictor.to_config()).eval()
    again.load_state_dict(predictor.state_dict())
    tokens = torch.randint(16, (2, 15))
    inputs = predictor.inputs(quantizer, tokens)
    assert torch.equal(again.loss(tokens, inputs, {}).loss, predictor.loss(tokens, inputs, {}).loss)
    with pytest.raises(UserError, match="iterations"):
        Masked.for_quantizer(quantizer, {}, iterations=0, **SIZES)
    with pytest.raises(UserError, match="no mixtures"):
        predictor.generate(quantizer, {}, 1, SamplingOptions(smooth=True))
