import pytest
import torch
from torch import nn

from next_scale.loading import load_weights, without_weights
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.none = nn.Linear(4, 4, bias=False)
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.to(memory_format=torch.channels_last)


def test_a_model_built_without_weights_and_filled_is_the_model():
    full = Net()
    with without_weights():
        bare = Net()
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    assert torch.equal(bare.table, full.table)
    load_weights(bare, {name: tensor.contiguous() for name, tensor in full.state_dict().items()})
    for (name, ours), theirs in zip(bare.named_parameters(), full.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.requires_grad == theirs.requires_grad, name
        assert ours.stride() == theirs.stride(), name
    assert Net().none.weight.device.type == "cpu"


def test_building_is_as_before_after_an_error():
    with pytest.raises(ValueError), without_weights():
        raise ValueError
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_dtypes_are_the_models_and_fitting_tensors_are_not_copied():
    with without_weights():
        model = nn.Linear(3, 2)
    state = {"weight": torch.randn(2, 3), "bias": torch.randn(2).half()}
    load_weights(model, state)
    assert model.weight.data_ptr() == state["weight"].data_ptr()
    assert model.bias.dtype == torch.float32 and torch.equal(model.bias, state["bias"].float())


def test_codebooks_that_are_buffers_load_too():
    full = MultiScaleQuantizer(Schedule.parse("1 2 4"), 3, 8, phis=2)
    with without_weights():
        bare = MultiScaleQuantizer(Schedule.parse("1 2 4"), 3, 8, phis=2)
    load_weights(bare, full.state_dict())
    x = torch.randn(2, 3, 4)
    assert torch.equal(bare.eval()(x).quantized, full.eval()(x).quantized)
