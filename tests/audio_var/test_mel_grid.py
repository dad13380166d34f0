"""The mel grid: shapes, what its decoder is worth beside Griffin-Lim, training, and checkpoints."""

import math

import pytest
import torch

from audio_var.codecs import build_codec
from audio_var.codecs.mel_grid import MelGridCodec
from audio_var.losses import MelDistance
from audio_var.objective import AudioObjective
from next_scale.checkpoint import from_pretrained, save_pretrained
from next_scale.errors import UserError
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import parse_schedule
from next_scale.tokenizer import Tokenizer

SMALL = {"base": 4, "multipliers": (1, 2, 2, 4), "latent_channels": 8, "width": 48, "depth": 1}


def notes(count: int = 4) -> torch.Tensor:
    """Sums of five partials of decaying notes: (count, 1, 16384)."""
    time = torch.arange(16_384) / 16_000
    pitches = 220 * 2 ** (torch.arange(count) / 5)
    partials = [0.3 / k * torch.sin(2 * math.pi * k * pitches[:, None] * time) for k in range(1, 6)]
    return (sum(partials) * torch.exp(-2 * time))[:, None]


def test_shapes_and_time_first():
    codec = MelGridCodec(**SMALL).eval()
    x = notes(2)
    latent = codec.encode(x)
    assert latent.shape == (2, 8, 8, 8) and codec.hop == 2048 and codec.decode(latent).shape == x.shape
    changed = x.clone()
    changed[..., 12_000:] = 0  # the end of the clip is the end of the mel spectrogram's second axis of time
    a, b = (codec.mel(codec.log_magnitude(clip)) for clip in (x, changed))
    assert torch.allclose(a[..., :40], b[..., :40]) and not torch.allclose(a[..., 50:], b[..., 50:])


def test_what_the_bands_alone_tell_is_better_than_griffin_lim():
    codec, x, distance = MelGridCodec(**SMALL), notes(), MelDistance(16_000)
    mel = codec.mel(codec.log_magnitude(x))
    own = codec.synthesize(*codec.spectrum_of(mel))
    floor = codec.griffin_lim(mel)
    assert own.shape == floor.shape == x.shape
    own, floor = (distance(x[:, 0], made[:, 0]).mean().item() for made in (own, floor))
    assert own < floor < 1.5


def test_it_trains_and_is_restored(tmp_path):
    torch.manual_seed(0)
    codec, objective, x = MelGridCodec(**SMALL), AudioObjective(), notes()
    optimizer = torch.optim.AdamW(codec.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        loss, _ = objective(codec, x, codec.encode(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.65 * losses[0]
    quantizer = MultiScaleQuantizer(parse_schedule("1x1 2x2 4x4 8x8"), 8, codebook_size=16)
    tokenizer = Tokenizer(codec, quantizer).eval()
    save_pretrained(tokenizer, tmp_path)
    again = from_pretrained(tmp_path)
    assert again.autoencoder.to_config() == codec.to_config()
    tokens = tokenizer.encode(x)
    assert tokens.shape == (4, 85) and torch.equal(again.encode(x), tokens)
    assert torch.equal(again.decode(tokens), tokenizer.decode(tokens))


def test_bad_options():
    with pytest.raises(UserError, match="60 mel bands do not divide by 8, as 4 levels need"):
        build_codec("mel_grid", mels=60)
    with pytest.raises(UserError, match="256 mel bands are too many for an STFT of 1024"):
        build_codec("mel_grid", mels=256)
    with pytest.raises(UserError, match="two rising frequencies"):
        build_codec("mel_grid", fundamentals=(100.0, 50.0))
