"""The delay pattern: which tokens a token may see, exact likelihood, learning, and the schedules that it refuses."""

import itertools
import json
import math

import pytest
import torch

from next_scale.errors import UserError
from next_scale.predictors import Delay, predictor_class
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule

SPEC = {"label": ["a", "b", "c"], "pitch": list(range(30))}
SIZES = {"width": 32, "depth": 2, "heads": 2}


def setup(schedule="5 5 5", codes=16, lively=True, **options):
    """A quantizer and a predictor; `lively` opens the gates and sharpens the head as training would."""
    torch.manual_seed(1)
    schedule = Schedule.parse(schedule)
    quantizer = MultiScaleQuantizer(schedule, 4, codes, phis=0).eval()
    quantizer.start(torch.randn(256, 4, *schedule.grid))
    model = Delay.for_quantizer(quantizer, SPEC, **{**SIZES, **options}).eval()
    if lively:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modulation" in name or "head" in name:
                    parameter.normal_(std=0.3)
    return schedule, quantizer, model


def conditions(batch):
    torch.manual_seed(3)
    return {name: torch.randint(-1, len(values), (batch,)) for name, values in SPEC.items()}


@pytest.mark.parametrize("codebook_head", [False, True])
def test_overfits_64_samples(codebook_head):
    """64 pyramids told apart by their condition: from log 16 to below 0.3, and greedy generation recalls them."""
    schedule, quantizer, model = setup(lively=False, width=64, condition_dropout=0.0, codebook_head=codebook_head)
    model.start_from(quantizer)
    tokens = torch.randint(16, (64, schedule.length))
    inputs = model.inputs(quantizer, tokens)
    condition = {"label": torch.arange(64) // 30, "pitch": torch.arange(64) % 30}
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=0.0)
    model.train()
    for _ in range(150):
        loss = model.loss(tokens, inputs, condition).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    again = model.generate(quantizer, condition, 64, SamplingOptions(temperature=0)).tokens
    assert (again == tokens).float().mean() > 0.9


@pytest.mark.parametrize("schedule", ["5 5 5", "2 2 2 2", "6"])
def test_a_token_sees_the_steps_before_its_own(schedule):
    """Token t of level q sees token u of level p where u + p < t + q."""
    schedule, quantizer, model = setup(schedule)
    tokens, condition = torch.randint(16, (1, schedule.length)), conditions(1)
    changed = tokens.repeat(schedule.length, 1)
    changed.diagonal().add_(7).remainder_(16)  # row j differs in token j
    with torch.no_grad():
        base = model(model.inputs(quantizer, tokens), condition)
        other = model(model.inputs(quantizer, changed), {n: i.expand(schedule.length) for n, i in condition.items()})
    moved = (other - base).abs().amax(-1)  # (changed token, predicted token)
    step = torch.tensor([t + q for q, count in enumerate(schedule.counts) for t in range(count)])
    after = step[:, None] < step
    assert moved[after].min() > 1e-4
    assert moved[~after].max() < 1e-5


@pytest.mark.parametrize("schedule", ["2 2", "3", "1 1 1"])
def test_probabilities_of_all_pyramids_sum_to_one(schedule):
    """... and generation draws from them."""
    codes = 3
    schedule, quantizer, model = setup(schedule, codes)
    tokens = torch.tensor(list(itertools.product(range(codes), repeat=schedule.length)))
    condition = {"label": torch.full((len(tokens),), 1), "pitch": torch.full((len(tokens),), 4)}
    with torch.no_grad():
        log_prob = model.log_prob(tokens, model.inputs(quantizer, tokens), condition)
    assert log_prob.shape == (len(tokens), schedule.scales)
    total = log_prob.double().sum(1).exp()
    assert abs(total.sum() - 1) < 1e-5
    assert total.max() > 2 * total.min()
    many = {name: index[:1].expand(4000) for name, index in condition.items()}
    drawn = model.generate(quantizer, many, 4000, seeds=0).tokens
    place = codes ** torch.arange(schedule.length).flip(0)
    counts = torch.bincount(drawn @ place, minlength=len(tokens)) / 4000
    assert (counts - total).abs().max() < 0.03


@pytest.mark.parametrize("cfg, ramp", [(0.0, False), (2.0, False), (2.0, True)])
@pytest.mark.parametrize("codebook_head", [False, True])
def test_generation_agrees_with_teacher_forcing(cfg, ramp, codebook_head):
    schedule, quantizer, model = setup(codebook_head=codebook_head)
    condition = conditions(3)
    sampling = SamplingOptions(temperature=0, cfg=cfg, cfg_ramp=ramp)
    tokens = model.generate(quantizer, condition, 3, sampling).tokens
    inputs = model.inputs(quantizer, tokens)
    with torch.no_grad():
        with_it, without = model(inputs, condition), model(inputs, {})
    t = torch.tensor([sampling.strength(k, schedule.scales) for k in schedule.level.tolist()])[:, None]
    assert torch.equal(tokens, ((1 + t) * with_it - t * without).argmax(-1))


def test_steps_and_bits(monkeypatch):
    schedule, quantizer, model = setup("8 8 8 8")
    calls = []
    forward = model.transformer.forward
    monkeypatch.setattr(
        model.transformer, "forward", lambda x, *args, **kwargs: calls.append(x.shape[1]) or forward(x, *args, **kwargs)
    )
    made = model.generate(quantizer, {}, 1, seeds=0)
    assert calls == [1] * 11 and model.steps(SamplingOptions()) == 11
    torch.testing.assert_close(made.latent, quantizer.decode(made.tokens))
    fresh = setup("8 8 8 8", lively=False)[2]
    tokens = torch.randint(16, (4, 32))
    out = fresh.loss(tokens, fresh.inputs(quantizer, tokens), {})
    assert out.loss.item() == pytest.approx(math.log(16), abs=0.05) and out.per_scale.shape == (4,)


def test_config_round_trip():
    schedule, quantizer, model = setup(qk_norm=True, codebook_head=True)
    again = predictor_class("delay").from_config(json.loads(json.dumps(model.to_config()))).eval()
    again.load_state_dict(model.state_dict())
    inputs = model.inputs(quantizer, torch.randint(16, (2, schedule.length)))
    assert torch.equal(again(inputs, conditions(2)), model(inputs, conditions(2)))


@pytest.mark.parametrize("schedule", ["1 2 4", "4x4 4x4", "4 4 8"])
def test_other_schedules_are_refused(schedule):
    with pytest.raises(UserError, match="levels of one size in one dimension.*use next_token"):
        Delay(schedule, 16, 4, **SIZES)


def test_mixtures_are_refused():
    schedule, quantizer, model = setup()
    with pytest.raises(UserError, match="leave smooth out"):
        model.generate(quantizer, {}, 1, SamplingOptions(smooth=True))
