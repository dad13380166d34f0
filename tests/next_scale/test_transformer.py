"""Prefix attention against a dense mask, the KV cache against a full pass, modulations and start values."""

import pytest
import torch
import torch.nn.functional as F

from next_scale.attention import Attention, PrefixAttention
from next_scale.schedule import Schedule
from next_scale.transformer import Transformer

CASES = {
    "scales 1D": Schedule.parse("1 2 4 8 16 32 33 64").visible_end,
    "scales 2D": Schedule.parse("1x1 2x2 3x4 5x6 10x13").visible_end,
    "equal scales": Schedule.parse("7 7 7 40 40").visible_end,
    "first scale of many": Schedule.parse("70 80").visible_end,
    "one token": torch.tensor([1]),
    "causal": torch.arange(1, 124),
    "full": torch.full((123,), 123),
    "prefix then causal": torch.cat([torch.full((5,), 5), torch.arange(6, 151)]),
    "more keys than queries": torch.tensor([3, 3, 9]),
}


def dense(visible_end):
    return torch.arange(int(visible_end[-1])) < visible_end[:, None]


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_prefix_attention_equals_a_dense_mask(case, scale):
    torch.manual_seed(0)
    ends = CASES[case]
    L, S = len(ends), int(ends[-1])
    q, k, v = (torch.randn(2, n, 3, 8, dtype=torch.float64, requires_grad=True) for n in (L, S, S))
    out = PrefixAttention(ends)(q, k, v, scale)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    want = F.scaled_dot_product_attention(*heads_first, attn_mask=dense(ends), scale=scale).transpose(1, 2)
    torch.testing.assert_close(out, want)
    weight = torch.randn_like(out)
    got = torch.autograd.grad((out * weight).sum(), (q, k, v))
    torch.testing.assert_close(got, torch.autograd.grad((want * weight).sum(), (q, k, v)))


def test_no_large_mask_and_few_calls():
    attention = PrefixAttention(Schedule.parse("1 2 4 8 16 32 64 128 256").visible_end)
    assert max(mask.numel() for mask in attention.buffers()) <= 63 * 63
    assert [call[:3] for call in attention.calls] == [(0, 63, 63), (63, 127, 127), (127, 255, 255), (255, 511, 511)]
    assert PrefixAttention(torch.arange(1, 1000)).causal
    assert [buffer.dim() for buffer in PrefixAttention(torch.full((999,), 999)).buffers()] == [1]


@pytest.mark.parametrize("ends", [[], [0, 1], [2, 1]])
def test_bad_visible_end(ends):
    with pytest.raises(ValueError, match="visible_end"):
        PrefixAttention(torch.tensor(ends, dtype=torch.int64))


def test_qk_norm_uses_a_clamped_scale_per_head():
    torch.manual_seed(0)
    attention = Attention(12, 3, qk_norm=True).double()
    with torch.no_grad():
        attention.log_scale.copy_(torch.tensor([[0.0], [1.0], [50.0]]))
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = F.linear(x, attention.qkv.weight).view(2, 5, 3, 3, 4).unbind(2)
    logits = torch.einsum("blhd,bshd->bhls", F.normalize(q, dim=-1), F.normalize(k, dim=-1))
    logits = logits * torch.tensor([1.0, 2.718281828459045, 100.0], dtype=torch.float64)[:, None, None]
    want = attention.proj(torch.einsum("bhls,bshd->blhd", logits.softmax(-1), v).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x), want)


@pytest.mark.parametrize("softmax_scale", [None, 0.25 / 8])
def test_biases_and_softmax_scale(softmax_scale):
    torch.manual_seed(0)
    attention = Attention(12, 3, softmax_scale=softmax_scale).double()
    with torch.no_grad():
        attention.q_bias.normal_()
        attention.v_bias.normal_()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = F.linear(x, attention.qkv.weight).chunk(3, -1)
    q, k, v = ((t).view(2, 5, 3, 4) for t in (q + attention.q_bias, k, v + attention.v_bias))
    logits = torch.einsum("blhd,bshd->bhls", q, k) * (softmax_scale or 0.5)
    want = attention.proj(torch.einsum("bhls,bshd->blhd", logits.softmax(-1), v).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x), want)


def lively(**options):
    """A small transformer whose gates are open, unlike at the start of training."""
    torch.manual_seed(0)
    model = Transformer(width=24, depth=3, heads=3, outputs=7, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modulation" in name or "head" in name or "offset" in name:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("options", [{}, {"shared_modulation": True, "qk_norm": True}])
@pytest.mark.parametrize("schedule", ["1 2 4 8", "1x1 2x2 3x3", "3 5"])
def test_steps_with_the_cache_equal_one_pass(schedule, options):
    model, schedule = lively(**options), Schedule.parse(schedule)
    x, condition = torch.randn(2, schedule.length, 24), torch.randn(2, 24)
    modulations = model.modulations(condition)
    want = model(x, modulations, PrefixAttention(schedule.visible_end))
    cache = model.cache(2, schedule.length)
    with torch.inference_mode():
        parts = [model(part, modulations, cache=cache) for part in schedule.split(x)]
    torch.testing.assert_close(torch.cat(parts, 1), want, atol=1e-5, rtol=1e-5)
    assert cache.store.shape == (3, 2, 2, 3, schedule.length, 8) and cache.end == schedule.length


def test_tokens_do_not_see_finer_scales():
    model, schedule = lively(), Schedule.parse("1 2 4")
    x, modulations = torch.randn(1, 7, 24), model.modulations(torch.randn(1, 24))
    prefix = PrefixAttention(schedule.visible_end)
    changed = x.clone()
    changed[:, 3] = torch.randn(24)
    before, after = model(x, modulations, prefix), model(changed, modulations, prefix)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("shared", [False, True])
def test_a_new_block_is_the_identity(shared):
    torch.manual_seed(0)
    model = Transformer(width=24, depth=2, heads=3, outputs=7, shared_modulation=shared)
    x, modulations = torch.randn(2, 5, 24), model.modulations(torch.randn(2, 24))
    assert (model.blocks[0](x, modulations.blocks[0]) - x).abs().max() < 1e-3


def test_shared_modulation_has_an_offset_per_block():
    model = lively(shared_modulation=True)
    assert len(model.modulation) == 1
    condition = torch.randn(2, 24)
    six = model.modulation[0](F.silu(condition)).view(2, 6, 24)
    modulations = model.modulations(condition)
    torch.testing.assert_close(modulations.blocks[1][0][:, 0], six[:, 0] + model.offset[1, 0])
    torch.testing.assert_close(modulations.blocks[2][3][:, 0], 1 + six[:, 3] + model.offset[2, 3])


def test_drop_path_rises_and_skips_whole_samples():
    model = Transformer(width=24, depth=3, heads=3, outputs=7, drop_path=0.5)
    assert [block.drop_path for block in model.blocks] == [0.0, 0.25, 0.5]
    torch.manual_seed(0)
    gate = model.blocks[2].train()._thin(torch.ones(1000, 1, 24))
    assert set(gate.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(gate.amin(-1), gate.amax(-1))
    assert torch.equal(model.blocks[2].eval()._thin(torch.ones(3, 1, 24)), torch.ones(3, 1, 24))


def test_dropout_in_training_only():
    model = lively(dropout=0.5)
    x, modulations = torch.randn(1, 5, 24), model.modulations(torch.randn(1, 24))
    assert torch.equal(model(x, modulations), model(x, modulations))
    model.train()
    assert not torch.equal(model(x, modulations), model(x, modulations))


def test_checkpointed_blocks_give_the_same_gradients():
    """To the last bit, drop path included, whose draws are made again; what is kept is far less."""
    torch.manual_seed(0)
    model = Transformer(16, 3, 2, 5, drop_path=0.5).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    prefix = PrefixAttention(Schedule.parse("1 4 16").visible_end)
    x, condition = torch.randn(4, 21, 16), torch.randn(4, 16)
    found = []
    for checkpointing in (False, True):
        for block in model.blocks:
            block.checkpointing = checkpointing
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor)
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(x, model.modulations(condition), prefix)
        grads = torch.autograd.grad(out.square().sum(), list(model.parameters()))
        found.append((out, *grads, torch.rand(1), sum(tensor.numel() for tensor in kept)))
    *plain, much = found[0]
    *again, little = found[1]
    assert all(map(torch.equal, plain, again)) and little < 0.5 * much
