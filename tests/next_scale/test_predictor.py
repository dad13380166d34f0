"""The next-scale predictor in 1D and 2D: learning, consistency of its paths, exact likelihood, repeatable draws."""

import dataclasses
import itertools
import json
import math

import pytest
import torch

from next_scale.errors import UserError
from next_scale.predictors import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule

SPEC = {"label": ["a", "b", "c"], "pitch": list(range(10))}
SCHEDULES = ["1 2 4 8", "1x1 2x2 3x3", "2 2 5"]


def quantizer_for(schedule, codes=16, channels=4):
    torch.manual_seed(1)
    quantizer = MultiScaleQuantizer(schedule, channels, codes).eval()
    quantizer.start(torch.randn(256, channels, *schedule.grid))
    return quantizer


def setup(schedule, codes=16, lively=True, **options):
    """A quantizer and a predictor; `lively` opens the gates and sharpens the head as training would."""
    schedule = Schedule.parse(schedule)
    quantizer = quantizer_for(schedule, codes)
    torch.manual_seed(2)
    model = NextScale(schedule, codes, 4, SPEC, **{"width": 32, "depth": 2, "heads": 2, **options}).eval()
    if lively:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modulation" in name or "head" in name:
                    parameter.normal_(std=0.3)
    return schedule, quantizer, model


def conditions(batch):
    torch.manual_seed(3)
    return {name: torch.randint(-1, len(values), (batch,)) for name, values in SPEC.items()}


@pytest.mark.parametrize(
    "options", [{}, {"shared_modulation": True, "qk_norm": True, "scale_power": 0.5}, {"codebook_head": True}]
)
@pytest.mark.parametrize("schedule", ["1 2 4 8", "1x1 2x2 4x4"])
def test_overfits_a_few_samples(schedule, options):
    """32 pyramids told apart by their condition: from log 16 = 2.77 to below 0.3."""
    schedule, quantizer, model = setup(schedule, lively=False, width=64, condition_dropout=0.0, **options)
    tokens = torch.randint(16, (30, schedule.length))
    inputs = quantizer.teacher_forcing(tokens)
    condition = {"label": torch.arange(30) // 10, "pitch": torch.arange(30) % 10}
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    model.train()
    first = model.loss(tokens, inputs, condition).loss.item()
    for _ in range(150):
        loss = model.loss(tokens, inputs, condition).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(first - math.log(16)) < 0.05
    assert loss.item() < 0.3
    out = model.loss(tokens, inputs, condition)
    assert out.accuracy.min() > 0.9 and out.per_scale.shape == (schedule.scales,)
    again = model.generate(quantizer, condition, 30, SamplingOptions(temperature=0)).tokens
    assert (again == tokens).float().mean() > 0.9  # greedy generation recalls them


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cfg", [0.0, 2.0])
def test_generation_agrees_with_teacher_forcing(schedule, cfg, monkeypatch):
    schedule, quantizer, model = setup(schedule)
    condition, seen = conditions(3), []
    forward = model.transformer.forward

    def spy(*args, **kwargs):
        seen.append(forward(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(model.transformer, "forward", spy)
    tokens = model.generate(quantizer, condition, 3, SamplingOptions(temperature=0, cfg=cfg)).tokens
    stepped = torch.cat(seen[: schedule.scales], 1)
    inputs = quantizer.teacher_forcing(tokens)
    with torch.no_grad():
        want = model(inputs, condition)
        if cfg:
            want = torch.cat([want, model(inputs, {})])
    torch.testing.assert_close(stepped, want, atol=1e-4, rtol=1e-4)
    if cfg:
        t = cfg * torch.arange(schedule.scales)[schedule.level][:, None] / (schedule.scales - 1)
        guided = (1 + t) * want[:3] - t * want[3:]
        assert torch.equal(tokens, guided.argmax(-1))
    else:
        assert torch.equal(tokens, want.argmax(-1))


@pytest.mark.parametrize("schedule", ["1 2", "1x1 1x2"])
def test_probabilities_of_all_pyramids_sum_to_one(schedule):
    schedule, quantizer, model = setup(schedule, codes=3)
    tokens = torch.tensor(list(itertools.product(range(3), repeat=3)))
    condition = {"label": torch.full((27,), 1), "pitch": torch.full((27,), 4)}
    with torch.no_grad():
        log_prob = model.log_prob(tokens, quantizer.teacher_forcing(tokens), condition)
    assert log_prob.shape == (27, 2)
    total = log_prob.double().sum(1).exp()
    assert abs(total.sum() - 1) < 1e-5
    assert total.max() > 2 * total.min()
    # ... and generation draws from this distribution
    condition = {name: index[:1].expand(4000) for name, index in condition.items()}
    drawn = model.generate(quantizer, condition, 4000, seeds=0).tokens
    counts = torch.bincount(drawn @ torch.tensor([9, 3, 1]), minlength=27) / 4000
    assert (counts - total).abs().max() < 0.03


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loss_is_the_mean_log_prob(schedule):
    schedule, quantizer, model = setup(schedule)
    tokens, condition = torch.randint(16, (3, schedule.length)), conditions(3)
    inputs = quantizer.teacher_forcing(tokens)
    out, log_prob = model.loss(tokens, inputs, condition), model.log_prob(tokens, inputs, condition)
    torch.testing.assert_close(out.loss, -log_prob.sum(1).mean() / schedule.length)
    torch.testing.assert_close(out.per_scale, -log_prob.mean(0) / torch.tensor(schedule.counts))
    hits = (model(inputs, condition).argmax(-1) == tokens).float()
    torch.testing.assert_close(out.accuracy, torch.stack([part.mean() for part in schedule.split(hits)]))


def test_loss_options():
    schedule, quantizer, model = setup("1 2 4")
    tokens, condition = torch.randint(16, (3, 7)), conditions(3)
    inputs = quantizer.teacher_forcing(tokens)
    plain = model.loss(tokens, inputs, condition)
    model.scale_power = 0.0
    torch.testing.assert_close(model.loss(tokens, inputs, condition).loss, plain.per_scale.mean())
    model.scale_power, model.label_smoothing = 1.0, 0.1
    logits = model(inputs, condition)
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), label_smoothing=0.1)
    smoothed = model.loss(tokens, inputs, condition)
    torch.testing.assert_close(smoothed.loss, want)
    torch.testing.assert_close(smoothed.per_scale, plain.per_scale)


def test_every_parameter_gets_a_gradient():
    schedule, quantizer, model = setup("1 2 4", qk_norm=True, shared_modulation=True)
    model.train()
    tokens = torch.randint(16, (30, 7))
    condition = {"label": torch.arange(30) % 4 - 1, "pitch": torch.arange(30) % 11 - 1}
    model.loss(tokens, quantizer.teacher_forcing(tokens), condition).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_condition_changes_the_output(schedule):
    schedule, quantizer, model = setup(schedule)
    inputs = torch.zeros(1, schedule.length - schedule.counts[0], 4)
    logits = [model(inputs, {"label": torch.tensor([i])}) for i in range(-1, 3)]
    for a, b in itertools.combinations(logits, 2):
        assert (a - b).abs().amax(-1).min() > 1e-3  # at every token
    assert torch.equal(logits[0], model(inputs, {}))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("options", [{}, {"cfg": 3.0, "temperature": 0.9}, {"top_k": 9, "top_p": 0.9, "cfg": 1.0},
                                     {"temperature": 0}])  # fmt: skip
def test_same_seed_same_pyramids_in_any_batch(schedule, options):
    schedule, quantizer, model = setup(schedule)
    condition, sampling = conditions(24), SamplingOptions(**options)
    whole = model.generate(quantizer, condition, 24, sampling, seeds=5).tokens
    assert torch.equal(whole, model.generate(quantizer, condition, 24, sampling, seeds=5).tokens)
    for size in (1, 5, 16):
        for start in range(0, 24, size):
            part = {name: index[start : start + size] for name, index in condition.items()}
            count = len(part["label"])
            tokens = model.generate(quantizer, part, count, sampling, seeds=5 + start).tokens
            assert torch.equal(tokens, whole[start : start + size])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("options", [{}, {"cfg": 2.0, "top_k": 9, "top_p": 0.9}])
def test_smooth_hands_on_mixtures(schedule, options):
    schedule, quantizer, model = setup(schedule)
    condition, sampling = conditions(5), SamplingOptions(smooth=True, **options)
    whole = model.generate(quantizer, condition, 5, sampling, seeds=2)
    assert (quantizer.decode(whole.tokens) - whole.latent).abs().amax((1, *range(2, whole.latent.dim()))).min() > 1e-3
    for row in range(5):  # a sample is the same in any batch, to the last bit
        alone = model.generate(
            quantizer, {n: i[row : row + 1] for n, i in condition.items()}, 1, sampling, seeds=2 + row
        )
        assert torch.equal(alone.tokens[0], whole.tokens[row]) and torch.equal(alone.latent[0], whole.latent[row])
    greedy = SamplingOptions(temperature=0)
    plain, smooth = (
        model.generate(quantizer, condition, 5, dataclasses.replace(greedy, smooth=smooth), seeds=2)
        for smooth in (False, True)
    )
    assert torch.equal(plain.latent, smooth.latent) and torch.equal(plain.tokens, smooth.tokens)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_latent_is_that_of_the_tokens(schedule):
    schedule, quantizer, model = setup(schedule)
    for batch in (1, 4):
        made = model.generate(quantizer, conditions(batch), batch, SamplingOptions(cfg=1.0), seeds=1)
        assert made.latent.shape == (batch, 4, *schedule.grid) and not made.latent.is_inference()
        assert torch.equal(made.latent, torch.cat([quantizer.decode(row) for row in made.tokens.split(1)]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_guidance_of_leading_scales_only(schedule, monkeypatch):
    """As guidance of all scales up to there, without guidance from there on, and with half the rows."""
    schedule, quantizer, model = setup(schedule)
    condition, rows = {"label": torch.tensor([0, 1, 2])}, []
    forward = model.transformer.forward
    monkeypatch.setattr(
        model.transformer, "forward", lambda x, *args, **kwargs: rows.append(len(x)) or forward(x, *args, **kwargs)
    )
    options = {"temperature": 0, "cfg": 3.0, "cfg_ramp": False}
    tokens = model.generate(quantizer, condition, 3, SamplingOptions(**options, cfg_scales=2)).tokens
    assert rows[: schedule.scales] == [6, 6, 3, 3][: schedule.scales]
    inputs = quantizer.teacher_forcing(tokens)
    with torch.no_grad():
        with_label, without = model(inputs, condition), model(inputs, {})
    want = torch.where((schedule.level < 2)[:, None], 4 * with_label - 3 * without, with_label).argmax(-1)
    assert torch.equal(tokens, want)
    every = model.generate(quantizer, condition, 3, SamplingOptions(**options)).tokens
    same = model.generate(quantizer, condition, 3, SamplingOptions(**options, cfg_scales=schedule.scales)).tokens
    assert torch.equal(every, same) and not torch.equal(every, tokens)


def test_guidance_towards_nothing_is_left_out():
    schedule, quantizer, model = setup("1 2 4")
    for condition in ({}, {"label": torch.tensor([-1, -1])}):
        plain, guided = (model.generate(quantizer, condition, 2, SamplingOptions(cfg=cfg), seeds=3) for cfg in (0, 3))
        assert torch.equal(plain.tokens, guided.tokens)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("options", [{}, {"cfg": 2.0, "smooth": True}, {"temperature": 0}])
def test_forced_tokens_stay_and_the_others_follow(schedule, options):
    schedule, quantizer, model = setup(schedule)
    condition, sampling = conditions(6), SamplingOptions(**options)
    known = torch.randint(16, (6, schedule.length))
    free = model.generate(quantizer, condition, 6, sampling, seeds=1)

    def force(forced, rows=slice(6), seed=1):
        some = {name: index[rows] for name, index in condition.items()}
        count = len(some["label"])
        return model.generate(quantizer, some, count, sampling, None, seed, known[rows], forced[rows])

    nothing, everything = torch.zeros(known.shape, dtype=torch.bool), torch.ones(known.shape, dtype=torch.bool)
    made = force(nothing)
    assert torch.equal(made.tokens, free.tokens) and torch.equal(made.latent, free.latent)
    made = force(everything)
    assert torch.equal(made.tokens, known)
    torch.testing.assert_close(made.latent, quantizer.decode(known))
    # a part of the last scale: what is drawn before and beside it stays, for the noise is the same
    part = nothing.clone()
    part[:, -schedule.counts[-1] :: 2] = True
    made = force(part)
    assert torch.equal(made.tokens, torch.where(part, known, free.tokens))
    # the first scale: what follows depends on it
    first = nothing.clone()
    first[:, : schedule.counts[0]] = True
    made = force(first)
    assert torch.equal(made.tokens[first], known[first]) and not torch.equal(made.tokens[~first], free.tokens[~first])
    for row in range(6):
        alone = force(first, slice(row, row + 1), 1 + row)
        assert torch.equal(alone.tokens[0], made.tokens[row]) and torch.equal(alone.latent[0], made.latent[row])


def test_forcing_needs_fitting_tensors():
    schedule, quantizer, model = setup("1 2 4")
    known, forced = torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, 7, dtype=torch.bool)
    for options in ({"known": known}, {"forced": forced}, {"known": known[:1], "forced": forced}):
        with pytest.raises(ValueError, match=r"belong together and have shape \(2, 7\)"):
            model.generate(quantizer, {}, 2, **options)


def test_close_calls_are_drawn_alone(monkeypatch):
    """With a tolerance that no draw satisfies, a batch is exactly what its samples give one by one."""
    schedule, quantizer, model = setup("1 2 4")
    monkeypatch.setattr("next_scale.predictors.drawing.TOLERANCE", 1e9)
    condition, calls = conditions(3), []
    inner = model._generate
    monkeypatch.setattr(model, "_generate", lambda *args: calls.append(len(args[3])) or inner(*args))
    model.generate(quantizer, condition, 3, seeds=[9, 1, 4])
    assert calls == [3, 1, 1, 1]


def test_seeds_and_generators():
    schedule, quantizer, model = setup("1 2 4")

    def draw(**options):
        return model.generate(quantizer, {}, 4, **options).tokens

    assert torch.equal(draw(seeds=3), draw(seeds=[3, 4, 5, 6]))
    assert torch.equal(draw(seeds=3), draw(seeds=torch.arange(3, 7)))
    assert not torch.equal(draw(seeds=3), draw(seeds=4))
    assert torch.equal(
        draw(generator=torch.Generator().manual_seed(1)), draw(generator=torch.Generator().manual_seed(1))
    )
    torch.manual_seed(0)
    first, second = draw(), draw()
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="3 seeds"):
        draw(seeds=[1, 2, 3])


def test_generation_leaves_the_mode_and_gives_plain_tensors():
    schedule, quantizer, model = setup("1 2 4", dropout=0.5)
    model.train()
    tokens = model.generate(quantizer, {}, 2, SamplingOptions(temperature=0)).tokens
    assert model.training and not tokens.is_inference() and tokens.dtype == torch.int64
    model.eval()
    assert torch.equal(tokens, model.generate(quantizer, {}, 2, SamplingOptions(temperature=0)).tokens)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_config_round_trip(schedule):
    schedule, quantizer, model = setup(schedule, qk_norm=True, mlp_ratio=2.0, field_dropout=0.2)
    again = NextScale.from_config(json.loads(json.dumps(model.to_config())))
    again.load_state_dict(model.state_dict())
    assert again.to_config() == model.to_config()
    inputs = torch.randn(2, schedule.length - schedule.counts[0], 4)
    assert torch.equal(again.eval()(inputs, conditions(2)), model(inputs, conditions(2)))


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="multiple of 3 heads"):
        NextScale("1 2", 4, 4, width=32, heads=3)
