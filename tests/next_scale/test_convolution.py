"""The decoder's light convolutions are 3x3 convolutions."""

import pytest
import torch
import torch.nn.functional as F

from next_scale import convolution
from next_scale.convolution import DecoderConv, UpsampleConv, winograd


@pytest.mark.parametrize("batch, channels_in, channels_out, height, width", [
    (1, 3, 5, 4, 4), (2, 8, 8, 12, 20), (1, 5, 3, 8, 260), (1, 64, 70, 64, 64),
])  # fmt: skip
def test_winograd_is_the_convolution(batch, channels_in, channels_out, height, width):
    torch.manual_seed(0)
    x, weight = torch.randn(batch, channels_in, height, width), torch.randn(channels_out, channels_in, 3, 3)
    for bias in (torch.randn(channels_out), None):
        want = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
        made = winograd(x, weight, bias)
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert (made - want).abs().max() < 4e-5 * want.std()


def test_it_is_used_without_gradients_only(monkeypatch):
    torch.manual_seed(0)
    layer, x = DecoderConv(64, 64), torch.randn(1, 64, 64, 64)
    calls = []
    monkeypatch.setattr(convolution, "winograd", lambda *args: calls.append(1) or winograd(*args))
    want = layer(x)
    assert not calls and want.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want.detach(), atol=2e-5, rtol=1e-5)
        assert len(calls) == 1
        layer(x[:, :, :62])  # no whole tiles
        layer(x[:, :, :32])  # few places
        layer.double()(x.double())
        DecoderConv(32, 64)(x[:, :32])  # few channels
    assert len(calls) == 1


@pytest.mark.parametrize("channels, height, width", [(64, 6, 9), (64, 1, 1), (8, 4, 4)])
def test_upsampling(channels, height, width):
    torch.manual_seed(0)
    layer, x = UpsampleConv(channels), torch.randn(2, channels, height, width)
    want = layer(x)  # with gradients: as defined
    torch.testing.assert_close(want, F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), layer.weight,
                                              layer.bias, padding=1))  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want.detach(), atol=1e-5, rtol=1e-5)
