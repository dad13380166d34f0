import json

import pytest
import torch
import torch.nn.functional as F

from image_var.autoencoder import ConvAutoencoder, build_autoencoder
from next_scale.errors import UserError
from next_scale.loading import without_weights
from next_scale.network import group_norm

SMALL = dict(width=8, multipliers=(1, 2, 2), encoder_blocks=1, decoder_blocks=2, latent_channels=5)


def small(**options):
    torch.manual_seed(0)
    return ConvAutoencoder(**(SMALL | options)).eval()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sides", [(32, 32), (8, 20), (4, 4)])
def test_shapes(channels, sides):
    model = small(channels_in=channels)
    x = torch.rand(2, channels, *sides) * 2 - 1
    latent = model.encode(x)
    assert model.downsampling == 4 and latent.shape == (2, 5, sides[0] // 4, sides[1] // 4)
    assert model(x).shape == x.shape


def test_clamped_for_users_and_not_for_losses():
    model = small(channels_in=1)
    latent = 50 * torch.randn(1, 5, 8, 8)
    raw = model.decode_raw(latent)
    assert raw.abs().max() > 1
    assert torch.equal(model.decode(latent), raw.clamp(-1, 1))


def reference(state, x, blocks, levels, encode):
    """VQGAN's encoder or decoder, written out on its state dict."""

    def conv(x, name, **options):
        return F.conv2d(x, state[name + ".weight"], state[name + ".bias"], **options)

    def normed(x, name):
        return F.group_norm(x, min(32, x.shape[1]), state[name + ".weight"], state[name + ".bias"], 1e-6)

    def block(x, name):
        h = conv(F.silu(normed(x, name + ".norm1")), name + ".conv1", padding=1)
        h = conv(F.silu(normed(h, name + ".norm2")), name + ".conv2", padding=1)
        return h + (conv(x, name + ".nin_shortcut") if name + ".nin_shortcut.weight" in state else x)

    def attention(x, name):
        q, k, v = conv(normed(x, name + ".norm"), name + ".qkv").flatten(2).chunk(3, dim=1)
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return x + conv((v @ weights.transpose(1, 2)).view_as(x), name + ".proj_out")

    def middle(x, name):
        x = attention(block(x, f"{name}.block_1"), f"{name}.attn_1")
        return block(x, f"{name}.block_2")

    part = "encoder" if encode else "decoder"
    x = conv(x if encode else conv(x, "post_quant_conv", padding=1), f"{part}.conv_in", padding=1)
    x = x if encode else middle(x, "decoder.mid")
    for level in range(levels) if encode else reversed(range(levels)):
        name = f"encoder.down.{level}" if encode else f"decoder.up.{level}"
        for i in range(blocks):
            x = block(x, f"{name}.block.{i}")
            x = attention(x, f"{name}.attn.{i}") if level == levels - 1 else x
        if encode and level < levels - 1:
            x = conv(F.pad(x, (0, 1, 0, 1)), f"{name}.downsample.conv", stride=2)
        elif not encode and level > 0:
            x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), f"{name}.upsample.conv", padding=1)
    x = middle(x, "encoder.mid") if encode else x
    x = conv(F.silu(normed(x, f"{part}.norm_out")), f"{part}.conv_out", padding=1)
    return conv(x, "quant_conv", padding=1) if encode else x


@pytest.mark.parametrize("multipliers", [(1, 1, 2), (2, 1), (1,)])
@pytest.mark.parametrize("width", [8, 64])
def test_is_vqgan(multipliers, width):
    """The same latents and images as the layout written out, also where the first level changes the width."""
    model = small(width=width, multipliers=multipliers)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.dim() == 1 else None
    state, levels = model.state_dict(), len(multipliers)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        latent = model.encode(x)
        torch.testing.assert_close(latent, reference(state, x, 1, levels, True), atol=1e-5, rtol=1e-5)
        raw = model.decode_raw(latent)
        torch.testing.assert_close(raw, reference(state, latent, 2, levels, False), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_vqgan():
    model = small(channels_in=1)
    x = torch.rand(2, 1, 16, 16)
    model.train()
    model.decode_raw(model.encode(x)).square().sum().backward()
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    reference(state, reference(state, x, 1, 3, True), 2, 3, False).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, atol=1e-4, rtol=1e-3, msg=name)


def test_published_size():
    """The published autoencoder has 324 tensors, ten of them the quantizer's, and 108.95 M parameters."""
    with without_weights():
        model = ConvAutoencoder()
    quantizer = 4096 * 32 + 4 * (32 * 32 * 9 + 32)
    assert len(model.state_dict()) == 324 - 10
    assert sum(p.numel() for p in model.parameters()) == 108_948_355 - quantizer
    assert (model.downsampling, model.latent_channels, model.channels_in) == (16, 32, 3)


def test_attention_is_optional():
    names = small(attention=False, middle_attention=False).state_dict()
    assert not [name for name in names if "attn" in name]
    kept = small(attention=False).state_dict()
    assert {name.split(".")[1] for name in kept if "attn" in name} == {"mid"}


@pytest.mark.parametrize("channels, groups, expected", [(160, 32, 32), (48, 32, 24), (8, 32, 8), (10, 4, 2), (7, 4, 1)])
def test_groups_divide_the_channels(channels, groups, expected):
    assert group_norm(channels, groups).num_groups == expected


def test_config_round_trip():
    model = small(channels_in=1, groups=4, dropout=0.1, attention=False)
    again = build_autoencoder("vqgan", **json.loads(json.dumps(model.to_config())))
    assert again.to_config() == model.to_config()
    again.load_state_dict(model.state_dict())
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(again.eval()(x), model(x))


def test_refused():
    for options, message in (
        ({"channels_in": 4}, "1 channel"),
        ({"width": 0}, "start at 1"),
        ({"multipliers": ()}, "start at 1"),
        ({"depth": 3}, "cannot be built"),
    ):
        with pytest.raises(UserError, match=message):
            build_autoencoder("vqgan", **options)
    with pytest.raises(UserError, match="unknown autoencoder 'vq'"):
        build_autoencoder("vq")
    with pytest.raises(UserError, match="18 x 16 does not divide by 4"):
        small().encode(torch.zeros(1, 3, 16, 18))
