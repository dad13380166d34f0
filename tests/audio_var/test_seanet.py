import json

import pytest
import torch

from audio_var.codecs import build_codec
from audio_var.codecs.seanet import SeanetCodec
from next_scale.errors import UserError

TINY = dict(n_filters=2, ratios=(4, 2), dimension=6, lstm=1)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"lstm": 0}, {"norm": "time_group_norm"}, {"ratios": (5, 3)}]
)
@pytest.mark.parametrize("length", [1, 8, 123, 1200])
def test_any_length(options, length):
    codec = SeanetCodec(**(TINY | options)).eval()
    waveform = torch.randn(3, 1, length)
    latent = codec.encode(waveform)
    frames = -(-length // codec.hop)
    assert latent.shape == (3, 6, frames)
    assert codec.decode(latent).shape == (3, 1, frames * codec.hop)
    assert codec(waveform).shape == waveform.shape


def test_default_is_the_clip_of_the_notes():
    codec = build_codec("seanet", n_filters=4, lstm=0)
    assert (codec.sample_rate, codec.hop, codec.latent_channels) == (16000, 256, 64)
    assert codec.encode(torch.zeros(1, 1, 16384)).shape == (1, 64, 64)


def test_causal_frames_do_not_see_the_future():
    codec = SeanetCodec(**TINY, causal=True).eval()
    waveform = torch.randn(1, 1, 160)
    changed = waveform.clone()
    changed[..., 80:] = 0
    before, after = codec.encode(waveform), codec.encode(changed)
    assert torch.equal(before[..., :10], after[..., :10]) and not torch.equal(before, after)


def test_config_builds_the_same_codec():
    codec = SeanetCodec(**TINY).eval()
    again = build_codec("seanet", **json.loads(json.dumps(codec.to_config()))).eval()
    again.load_state_dict(codec.state_dict())
    waveform = torch.randn(1, 1, 100)
    assert torch.equal(codec(waveform), again(waveform))


def test_learns():
    torch.manual_seed(0)
    codec = SeanetCodec(**(TINY | {"lstm": 0, "dimension": 16, "n_filters": 4}))
    waveform = torch.sin(torch.arange(256) * torch.tensor([0.1, 0.2, 0.3])[:, None])[:, None]  # (B, 1, T)
    optimizer = torch.optim.Adam(codec.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = (codec(waveform) - waveform).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_unknown_names_and_options_are_user_errors():
    with pytest.raises(UserError, match="spectral, mel_grid, seanet"):
        build_codec("wavenet")
    with pytest.raises(UserError, match="colour"):
        build_codec("seanet", colour="red")
