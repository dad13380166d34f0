"""Sampling: guidance, the filters against a plain definition, the distribution drawn, and sure draws."""

import math

import pytest
import torch

from next_scale.errors import UserError
from next_scale.sampling import NoiseStreams, SamplingOptions, guide, sample, soften


def kept_codes(logits, top_k, top_p):
    """The definition, one row at a time: indices that stay."""
    out = []
    for row in logits.tolist():
        order = sorted(range(len(row)), key=lambda i: row[i])  # ascending
        if top_k:
            order = [i for i in order if row[i] >= sorted(row)[-min(top_k, len(row))]]
        weights = [math.exp(row[i] - row[order[-1]]) for i in order]
        total, passed, keep = sum(weights), 0.0, []
        for position, (i, weight) in enumerate(zip(order, weights, strict=True)):
            passed += weight / total
            if not 0 < top_p < 1 or passed > 1 - top_p or position == len(order) - 1:
                keep.append(i)
        out.append(set(keep))
    return out


@pytest.mark.parametrize("top_k, top_p", [(0, 0), (1, 0), (5, 0), (99, 0), (0, 0.6), (0, 1.0), (0, 1e-6), (8, 0.7)])
def test_only_kept_codes_are_drawn_and_all_of_them(top_k, top_p):
    torch.manual_seed(0)
    logits = torch.randn(3, 20)
    options = SamplingOptions(top_k=top_k, top_p=top_p)
    noise = NoiseStreams([0]).gumbel(4000 * 3, 20).view(4000, 3, 20)
    tokens = sample(logits.expand(4000, 3, 20), options, noise).tokens
    for row, keep in enumerate(kept_codes(logits, top_k, top_p)):
        weights = torch.zeros(20)
        weights[list(keep)] = logits[row, list(keep)].softmax(0)
        share = torch.bincount(tokens[:, row], minlength=20) / 4000
        assert set(tokens[:, row].tolist()) <= keep
        assert (share - weights).abs().max() < 0.03


def test_equal_values_at_the_cut_stay_together():
    logits = torch.tensor([[[2.0, 1.0, 1.0, 0.0]]])
    noise = torch.tensor([[[-9.0, 0.0, 1.0, 9.0]]])
    assert sample(logits, SamplingOptions(top_k=2), noise).tokens.item() == 2


def test_temperature():
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 6)
    noise = NoiseStreams([1]).gumbel(8000, 6)[0][:, None]
    tokens = sample(logits.expand(8000, 1, 6), SamplingOptions(temperature=0.5), noise).tokens
    share = torch.bincount(tokens.flatten(), minlength=6) / 8000
    assert (share - (2 * logits[0, 0]).softmax(0)).abs().max() < 0.02
    for temperature in (0, 1e-30):
        assert torch.equal(sample(logits, SamplingOptions(temperature=temperature)).tokens, logits.argmax(-1))
    cold = SamplingOptions(temperature=1e-6, top_p=0.5)
    assert torch.equal(sample(logits, cold, noise[:1, :1], tolerance=1e-4).tokens, logits.argmax(-1))
    with pytest.raises(ValueError, match="noise"):
        sample(logits, SamplingOptions())


def test_noise_belongs_to_the_sample():
    streams = NoiseStreams([7, 8, 9])
    first, second = streams.gumbel(2, 50), streams.gumbel(3, 50)
    alone = NoiseStreams([8])
    assert torch.equal(first[1:2], alone.gumbel(2, 50)) and torch.equal(second[1:2], alone.gumbel(3, 50))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], second[0, :2])


def test_noise_is_gumbel():
    noise = NoiseStreams([3]).gumbel(200, 1000)
    assert torch.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.03


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"temperature": 0.7}, {"top_k": 9}, {"top_p": 0.8},
                                     {"top_k": 30, "top_p": 0.9, "temperature": 1.3}])  # fmt: skip
def test_sure_draws_survive_small_changes(options):
    torch.manual_seed(0)
    options, tolerance = SamplingOptions(**options), 0.02
    logits = torch.randn(1, 3000, 64) * 2
    noise = NoiseStreams([0]).gumbel(3000, 64)
    tokens, sure = sample(logits, options, noise, tolerance)
    assert 0.5 < sure.float().mean() < 1
    changed = torch.zeros_like(sure)
    for _ in range(8):
        shift = (torch.rand_like(logits) - 0.5) * tolerance
        changed |= sample(logits + shift, options, noise).tokens != tokens
    assert changed.any()  # the changes are large enough to matter ...
    assert not (changed & sure).any()  # ... and each was foreseen


@pytest.mark.parametrize("options", [{}, {"top_k": 9}, {"top_p": 0.8, "temperature": 0.7}])
@pytest.mark.parametrize("ratio, tau", [(0.0, 0.27), (0.5, 0.14175), (1.0, 0.0135)])
def test_mixtures(options, ratio, tau):
    torch.manual_seed(0)
    options, logits = SamplingOptions(**options), torch.randn(2, 3, 20)
    noise = NoiseStreams([0, 1]).gumbel(3, 20)
    tokens, weights = soften(logits, options, noise, ratio)
    z = logits / options.temperature
    for row in range(2):
        for i, keep in enumerate(kept_codes(z[row], options.top_k, options.top_p)):
            keep = sorted(keep)
            want = torch.zeros(20)
            want[keep] = ((z[row, i] * (1 + ratio) + noise[row, i]) / tau)[keep].softmax(0)
            torch.testing.assert_close(weights[row, i], want)
    assert torch.equal(tokens, weights.argmax(-1))


def test_guide():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(guide(a, b, 1.5), 2.5 * a - 1.5 * b)
    assert torch.equal(guide(a, b, 0.0), a)


def test_strength_ramps():
    assert [SamplingOptions(cfg=3.0).strength(k, 4) for k in range(4)] == [0, 1, 2, 3]
    assert [SamplingOptions(cfg=3.0, cfg_ramp=False).strength(k, 4) for k in range(4)] == [3, 3, 3, 3]
    assert SamplingOptions(cfg=3.0).strength(0, 1) == 3
    assert [SamplingOptions(cfg=3.0, cfg_scales=2).strength(k, 4) for k in range(4)] == [0, 1, 0, 0]
    assert [SamplingOptions(cfg=3.0, cfg_scales=2).guided(k) for k in range(4)] == [True, True, False, False]
    assert not SamplingOptions(cfg=0.0, cfg_scales=2).guided(0)


@pytest.mark.parametrize("options, message", [
    ({"cfg": -1}, "cfg must be from 0 to 100, got -1"),
    ({"temperature": float("nan")}, "temperature must be from 0 to 100"),
    ({"top_k": -2}, "top-k must be a whole number, 0 or more"), ({"top_k": 1.5}, "top-k must be a whole number"),
    ({"cfg_scales": -1}, "cfg-scales must be a whole number, 0 or more, got -1"),
    ({"top_p": 1.1}, "top-p must be from 0 to 1"), ({"top_p": float("nan")}, "top-p must be from 0 to 1"),
])  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        SamplingOptions(**options)
