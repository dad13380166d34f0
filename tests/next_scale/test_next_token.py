"""The next-token predictor: what a token may see, exact likelihood beside next-scale's, and repeatable draws."""

import itertools
import json
import math

import pytest
import torch

from next_scale.errors import UserError
from next_scale.predictors import Delay, NextScale, NextToken, predictor_class
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule, StrideSchedule

SPEC = {"label": ["a", "b", "c"], "pitch": list(range(30))}
SCHEDULES = ["1 2 4 8", "1x1 2x2 3x3", "12", "4x3"]
SIZES = {"width": 32, "depth": 2, "heads": 2}


def quantizer_for(schedule, codes=16, channels=4, **options):
    torch.manual_seed(1)
    quantizer = MultiScaleQuantizer(schedule, channels, codes, **options).eval()
    quantizer.start(torch.randn(256, channels, *schedule.grid))
    return quantizer


def setup(schedule, family=NextToken, codes=16, lively=True, **options):
    """A quantizer and a predictor; `lively` opens the gates and sharpens the head as training would."""
    schedule = Schedule.parse(schedule)
    quantizer = quantizer_for(schedule, codes)
    torch.manual_seed(2)
    model = family.for_quantizer(quantizer, SPEC, **{**SIZES, **options}).eval()
    if lively:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modulation" in name or "head" in name:
                    parameter.normal_(std=0.3)
    return schedule, quantizer, model


def conditions(batch):
    torch.manual_seed(3)
    return {name: torch.randint(-1, len(values), (batch,)) for name, values in SPEC.items()}


@pytest.mark.parametrize("options", [{}, {"codebook_head": True, "shared_modulation": True, "qk_norm": True}])
@pytest.mark.parametrize("schedule", ["1 2 4 8", "1x1 2x2 4x4"])
def test_overfits_64_samples(schedule, options):
    """64 pyramids told apart by their condition: from log 16 to below 0.3, and greedy generation recalls them."""
    schedule, quantizer, model = setup(schedule, lively=False, width=64, condition_dropout=0.0, **options)
    model.start_from(quantizer)
    tokens = torch.randint(16, (64, schedule.length))
    inputs = model.inputs(quantizer, tokens)
    condition = {"label": torch.arange(64) // 30, "pitch": torch.arange(64) % 30}
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=0.0)
    model.train()
    first = model.loss(tokens, inputs, condition).loss.item()
    for _ in range(120):
        loss = model.loss(tokens, inputs, condition).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(first - math.log(16)) < 0.4
    assert loss.item() < 0.3
    again = model.generate(quantizer, condition, 64, SamplingOptions(temperature=0)).tokens
    assert (again == tokens).float().mean() > 0.9


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cfg", [0.0, 2.0])
@pytest.mark.parametrize("codebook_head", [False, True])
def test_generation_agrees_with_teacher_forcing(schedule, cfg, codebook_head, monkeypatch):
    schedule, quantizer, model = setup(schedule, codebook_head=codebook_head)
    condition, seen = conditions(3), []
    forward = model.transformer.forward

    def spy(*args, **kwargs):
        seen.append(forward(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(model.transformer, "forward", spy)
    # known and forced: every row is drawn in one batch, no close call is drawn again
    everywhere = torch.ones(3, schedule.length, dtype=torch.bool)
    tokens = torch.randint(16, (3, schedule.length))
    made = model.generate(quantizer, condition, 3, SamplingOptions(cfg=cfg), seeds=0, known=tokens, forced=everywhere)
    assert torch.equal(made.tokens, tokens) and len(seen) == schedule.length == model.steps(SamplingOptions())
    stepped = torch.cat(seen, 1)
    inputs = model.inputs(quantizer, tokens)
    with torch.no_grad():
        model(inputs, condition)
        whole = seen[-1]
        if cfg:
            model(inputs, {})
            whole = torch.cat([whole, seen[-1]])
    torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("schedule", [*SCHEDULES, "1 2 4"])
@pytest.mark.parametrize("upsampling", ["nearest", None])
def test_a_token_sees_all_tokens_before_it_and_no_other(schedule, upsampling):
    """Also those of the scale before whose code lies elsewhere in the grid, as they do with nearest upsampling."""
    schedule = Schedule.parse(schedule)
    quantizer = quantizer_for(schedule, upsampling=upsampling, phis=0)
    _, _, model = setup(str(schedule))
    tokens, condition = torch.randint(16, (1, schedule.length)), conditions(1)
    changed = tokens.repeat(schedule.length, 1)
    changed.diagonal().add_(7).remainder_(16)  # row j differs in token j
    with torch.no_grad():
        base = model(model.inputs(quantizer, tokens), condition)
        other = model(model.inputs(quantizer, changed), {n: i.expand(schedule.length) for n, i in condition.items()})
    moved = (other - base).abs().amax(-1)  # (changed token, predicted token)
    after = torch.ones_like(moved).triu(1).bool()
    assert moved[after].min() > 1e-4
    assert moved[~after].max() < 1e-5


@pytest.mark.parametrize("family", [NextToken, NextScale])
@pytest.mark.parametrize("schedule", ["1 2", "1x1 1x2", "3"])
def test_probabilities_of_all_pyramids_sum_to_one(schedule, family):
    """Of 3 tokens of 4 codes; they are products of what the steps draw from, and generation draws so."""
    schedule, quantizer, model = setup(schedule, family, codes=4)
    tokens = torch.tensor(list(itertools.product(range(4), repeat=3)))
    condition = {"label": torch.tensor([1]), "pitch": torch.tensor([4])}
    with torch.no_grad():
        log_prob = model.log_prob(
            tokens, model.inputs(quantizer, tokens), {n: i.expand(64) for n, i in condition.items()}
        )
    assert log_prob.shape == (64, schedule.scales)
    total = log_prob.double().sum(1).exp()
    assert abs(total.sum() - 1) < 1e-5
    assert total.max() > 2 * total.min()
    for row in range(0, 64, 9):
        assert stepwise(model, quantizer, condition, tokens[row]) == pytest.approx(log_prob[row].sum().item(), abs=1e-4)
    many = {name: index.expand(4000) for name, index in condition.items()}
    drawn = model.generate(quantizer, many, 4000, seeds=0).tokens
    counts = torch.bincount(drawn @ torch.tensor([16, 4, 1]), minlength=64) / 4000
    assert (counts - total).abs().max() < 0.03


def stepwise(model, quantizer, condition, tokens) -> float:
    """Log-probability of tokens (L,) by the logits that generation draws them from."""
    steps = []
    head = model._head
    model._head = lambda k: lambda features: steps.append(head(k)(features)) or steps[-1]
    try:
        everywhere = torch.ones(1, len(tokens), dtype=torch.bool)
        model.generate(quantizer, condition, 1, seeds=0, known=tokens[None], forced=everywhere)
    finally:
        del model._head
    logits = torch.cat(steps, dim=1)[0]
    return logits.log_softmax(-1).gather(1, tokens[:, None]).sum().item()


def test_within_scale_dependence_is_what_next_scale_cannot_learn():
    """Two tokens of a scale that are always equal: next-token halves the bits, next-scale pays for both."""
    nats = {}
    for family in (NextToken, NextScale):
        schedule, quantizer, model = setup("1 2", family, lively=False)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(150):
            tokens = torch.randint(16, (64, 1)).expand(64, 3).clone()
            tokens[:, 0] = 0
            loss = model.loss(tokens, model.inputs(quantizer, tokens), {}).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        nats[family] = -model.log_prob(tokens, model.inputs(quantizer, tokens), {}).mean(0)[1].item()
    assert nats[NextToken] == pytest.approx(math.log(16), rel=0.1)
    assert nats[NextScale] == pytest.approx(2 * math.log(16), rel=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loss_is_the_mean_log_prob(schedule):
    schedule, quantizer, model = setup(schedule)
    tokens, condition = torch.randint(16, (3, schedule.length)), conditions(3)
    inputs = model.inputs(quantizer, tokens)
    out, log_prob = model.loss(tokens, inputs, condition), model.log_prob(tokens, inputs, condition)
    torch.testing.assert_close(out.loss, -log_prob.sum(1).mean() / schedule.length)
    torch.testing.assert_close(out.per_scale, -log_prob.mean(0) / torch.tensor(schedule.counts))


def test_every_parameter_gets_a_gradient():
    schedule, quantizer, model = setup("1 2 4", qk_norm=True, codebook_head=True)
    model.train()
    tokens = torch.randint(16, (30, 7))
    condition = {"label": torch.arange(30) % 4 - 1, "pitch": torch.arange(30) - 1}
    condition["pitch"][0] = 29
    model.loss(tokens, model.inputs(quantizer, tokens), condition).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("family, schedule", [*((NextToken, s) for s in SCHEDULES), (Delay, "5 5 5")])
@pytest.mark.parametrize("options", [{}, {"top_k": 9, "top_p": 0.9, "cfg": 1.0}, {"cfg": 3.0, "cfg_scales": 1},
                                     {"temperature": 0}])  # fmt: skip
def test_same_seed_same_pyramids_in_any_batch(family, schedule, options):
    schedule, quantizer, model = setup(schedule, family)
    condition, sampling = conditions(12), SamplingOptions(**options)
    whole = model.generate(quantizer, condition, 12, sampling, seeds=5)
    assert torch.equal(whole.latent, torch.cat([quantizer.decode(row) for row in whole.tokens.split(1)]))
    for size in (1, 5):
        for start in range(0, 12, size):
            part = {name: index[start : start + size] for name, index in condition.items()}
            count = len(part["label"])
            made = model.generate(quantizer, part, count, sampling, seeds=5 + start)
            assert torch.equal(made.tokens, whole.tokens[start : start + size])
            torch.testing.assert_close(made.latent, whole.latent[start : start + size])


@pytest.mark.parametrize("family, schedule", [*((NextToken, s) for s in SCHEDULES), (Delay, "5 5 5")])
@pytest.mark.parametrize("options", [{}, {"cfg": 2.0, "temperature": 0}])
def test_forced_tokens_stay_and_the_others_follow(family, schedule, options):
    schedule, quantizer, model = setup(schedule, family)
    condition, sampling = conditions(6), SamplingOptions(**options)
    known = torch.randint(16, (6, schedule.length))
    free = model.generate(quantizer, condition, 6, sampling, seeds=1).tokens
    nothing = torch.zeros(known.shape, dtype=torch.bool)
    first, last = nothing.clone(), nothing.clone()
    first[:, 0], last[:, -1] = True, True
    made = [
        model.generate(quantizer, condition, 6, sampling, seeds=1, known=known, forced=forced).tokens
        for forced in (nothing, first, last)
    ]
    assert torch.equal(made[0], free)
    assert torch.equal(made[1][:, 0], known[:, 0]) and not torch.equal(made[1][:, 1:], free[:, 1:])
    assert torch.equal(made[2], torch.where(last, known, free))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_smooth_hands_on_mixtures(schedule):
    schedule, quantizer, model = setup(schedule)
    condition, sampling = conditions(3), SamplingOptions(smooth=True, cfg=2.0, top_k=9)
    whole = model.generate(quantizer, condition, 3, sampling, seeds=2)
    assert (quantizer.decode(whole.tokens) - whole.latent).abs().amax((1, *range(2, whole.latent.dim()))).min() > 1e-3
    alone = model.generate(quantizer, {n: i[1:2] for n, i in condition.items()}, 1, sampling, seeds=3)
    assert torch.equal(alone.latent[0], whole.latent[1])


def test_the_noise_is_that_of_next_scale():
    """Only how many tokens are drawn a step differs: with logits that see nothing, both families draw the same."""
    drawn = []
    for family in (NextToken, NextScale):
        schedule, quantizer, model = setup("1 2 4 8 32", family, lively=False)
        with torch.no_grad():
            model.transformer.head.weight.zero_()
        drawn.append(model.generate(quantizer, {}, 4, SamplingOptions(top_k=9), seeds=7).tokens)
    assert torch.equal(*drawn)


def test_packed_weights_draw_the_same():
    schedule, quantizer, model = setup("1 2 4", width=256, heads=4)
    plain = model.generate(quantizer, {}, 2, seeds=1).tokens
    model.pack()
    assert torch.equal(model.generate(quantizer, {}, 2, seeds=1).tokens, plain)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_config_round_trip(schedule):
    schedule, quantizer, model = setup(schedule, qk_norm=True, mlp_ratio=2.0)
    again = predictor_class("next_token").from_config(json.loads(json.dumps(model.to_config()))).eval()
    again.load_state_dict(model.state_dict())
    tokens = torch.randint(16, (2, schedule.length))
    inputs = model.inputs(quantizer, tokens)
    assert torch.equal(again(inputs, conditions(2)), model(inputs, conditions(2)))


def test_codes_may_be_looked_up_in_fewer_channels():
    schedule = Schedule.parse("1 2 4")
    quantizer = MultiScaleQuantizer(schedule, 6, 16, code_channels=3).eval()
    model = NextToken.for_quantizer(quantizer, SPEC, **SIZES).eval()
    made = model.generate(quantizer, {}, 2, seeds=0)
    assert model.inputs(quantizer, made.tokens).shape == (2, 7, 12)


def test_strides_are_refused():
    quantizer = MultiScaleQuantizer(StrideSchedule((4, 2, 1)), 4, 16)
    for family in (NextToken, Delay):
        with pytest.raises(UserError, match=f"'{family.name}' has a fixed length"):
            family.for_quantizer(quantizer, SPEC)
