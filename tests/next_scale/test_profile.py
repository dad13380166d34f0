"""The profile of a pyramid, on latents whose scales are known."""

import pytest
import torch
from torch import nn

from next_scale.profile import pyramid_profile
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer


class Same(nn.Module):
    def encode(self, x):
        return x

    def decode(self, latent):
        return latent


def test_a_constant_latent_is_explained_by_the_first_scale():
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(Schedule.parse("1 2 4"), 2, codebook_size=16, phis=0).eval()
    values = torch.randn(16, 2, 1)
    flat = values[torch.randint(16, (64,))].expand(-1, -1, 4)
    with torch.no_grad():
        quantizer.codebook(0).weight.copy_(values[:, :, 0])
        for k in (1, 2):
            quantizer.codebook(k).weight.zero_()

    def distortion(x, y):
        return (x - y).abs().flatten(1).mean(1)

    rows = pyramid_profile(Tokenizer(Same(), quantizer), flat.split(20), distortion)
    assert [row.size for row in rows] == [[1], [2], [4]] and [row.tokens for row in rows] == [1, 2, 4]
    assert [row.bits for row in rows] == [4, 8, 16]
    assert all(row.latent < 1e-10 and row.distortion < 1e-5 for row in rows)
    assert 3 < rows[0].entropy <= 4 and rows[1].entropy == rows[2].entropy == 0

    swings = flat * torch.tensor([1.0, -1.0, 1.0, -1.0])  # whose averages say nothing
    rows = pyramid_profile(Tokenizer(Same(), quantizer), [swings], distortion)
    assert rows[0].latent == pytest.approx(1, abs=0.35)
