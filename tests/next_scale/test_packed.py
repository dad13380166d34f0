"""Weights arranged for generation: the same results up to rounding, or close ones in 8-bit integers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from next_scale.errors import UserError
from next_scale.packed import Int8Linear, PackedLinear, pack_linear
from next_scale.predictors import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule

CONDITION = {"label": torch.tensor([0, 1, 2, -1])}


def setup(schedule, **options):
    """Wide enough that its layers are worth packing."""
    torch.manual_seed(0)
    schedule = Schedule.parse(schedule)
    quantizer = MultiScaleQuantizer(schedule, 4, 512).eval()
    model = NextScale(schedule, 512, 4, {"label": ["a", "b", "c"]}, width=256, depth=2, heads=4, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modulation" in name or "head" in name or name.endswith("bias"):
                parameter.normal_(std=0.1)
    return quantizer, model


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(256,), (3, 256), (2, 7, 256)])
def test_layers(gelu, shape):
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 300), torch.randn(*shape) + 0.5
    with torch.inference_mode():
        want = F.gelu(layer(x), approximate="tanh") if gelu else layer(x)
        packed, small = pack_linear(layer, gelu=gelu), pack_linear(layer, int8=True, gelu=gelu)
        assert isinstance(packed, PackedLinear) and isinstance(small, Int8Linear)
        torch.testing.assert_close(packed(x), want, atol=1e-5, rtol=1e-5)
        assert (small(x) - want).norm() < 0.02 * want.norm()
        assert torch.isfinite(small(torch.zeros(2, 256))).all()
    assert pack_linear(packed) is packed


def test_layers_that_stay():
    few = nn.Linear(16, 16)
    assert pack_linear(few) is few
    torch.testing.assert_close(
        pack_linear(few, gelu=True)(torch.ones(16)), F.gelu(few(torch.ones(16)), approximate="tanh")
    )
    double = nn.Linear(256, 256).double()
    assert pack_linear(double) is double
    with pytest.raises(UserError, match="leave int8 out"):
        pack_linear(double, int8=True)


@pytest.mark.parametrize("schedule", ["1 2 4 8", "1x1 2x2 4x4"])
@pytest.mark.parametrize("options", [{}, {"shared_modulation": True, "qk_norm": True}, {"codebook_head": True}])
def test_packing_changes_rounding_only(schedule, options):
    quantizer, model = setup(schedule, **options)
    packed = copy.deepcopy(model)
    packed.transformer.pack()
    tokens = torch.randint(512, (4, model.schedule.length))
    inputs = quantizer.teacher_forcing(tokens)
    with torch.no_grad():
        want, made = model(inputs, CONDITION), packed(inputs, CONDITION)
    assert not torch.equal(made, want)
    torch.testing.assert_close(made, want, atol=1e-4 * float(want.std()), rtol=1e-5)
    sampling = SamplingOptions(cfg=1.5, top_k=100, top_p=0.9)
    want, made = (m.generate(quantizer, CONDITION, 4, sampling, seeds=0) for m in (model, packed))
    assert torch.equal(made.tokens, want.tokens) and torch.equal(made.latent, want.latent)
    packed.transformer.pack()  # once more does no harm
    assert torch.equal(packed.generate(quantizer, CONDITION, 4, sampling, seeds=0).tokens, want.tokens)


@pytest.mark.parametrize("schedule", ["1 2 4 8", "1x1 2x2 4x4"])
def test_int8_is_close_and_the_same_in_any_batch(schedule):
    quantizer, model = setup(schedule)
    small = copy.deepcopy(model)
    small.transformer.pack(int8=True)
    inputs = quantizer.teacher_forcing(torch.randint(512, (4, model.schedule.length)))
    with torch.no_grad():
        want, made = model(inputs, CONDITION), small(inputs, CONDITION)
    assert 0 < (made - want).norm() < 0.05 * want.norm()
    sampling = SamplingOptions(cfg=1.5, top_k=100)
    whole = small.generate(quantizer, CONDITION, 4, sampling, seeds=0)
    for row in range(4):
        alone = small.generate(quantizer, {"label": CONDITION["label"][row : row + 1]}, 1, sampling, seeds=row)
        assert torch.equal(alone.tokens[0], whole.tokens[row]) and torch.equal(alone.latent[0], whole.latent[row])


def test_a_packed_model_is_not_saved():
    _, model = setup("1 2")
    model.transformer.pack()
    with pytest.raises(RuntimeError, match="save it before"):
        model.state_dict()
