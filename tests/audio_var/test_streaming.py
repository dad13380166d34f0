"""Decoding piece by piece: the same samples however the latent is cut, and those of the whole."""

import pytest
import torch

from audio_var.codecs import build_codec
from audio_var.streaming import StreamDecoder

SMALL = {"sample_rate": 16_000, "fft_size": 256, "hop": 64, "latent_channels": 4, "width": 16, "encoder_depth": 1}


def decode(codec, latent, sizes):
    decoder, sounds, start = StreamDecoder(codec), [], 0
    for size in sizes:
        sounds.append(decoder.push(latent[:, :, start : start + size]))
        start += size
    return torch.cat([*sounds, decoder.finish()], dim=2)


@pytest.fixture(scope="module")
def spectral():
    torch.manual_seed(0)
    return build_codec("spectral", **SMALL, decoder_depth=2, fundamentals=(200.0, 1200.0)).eval()


def tones(codec, frames):
    """Latents of three partials that fade: (1, C, frames)."""
    time = torch.arange(frames * codec.hop) / codec.sample_rate
    sound = sum(torch.sin(2 * torch.pi * 440 * n * time) / n for n in (1, 2, 3)) * 0.2 * torch.exp(-time)
    with torch.no_grad():
        return codec.encode(sound[None, None])


@pytest.mark.parametrize("frames", [1, 20, 33, 64, 97, 300])
def test_pieces_of_any_size_give_the_same_bits(spectral, frames):
    latent = tones(spectral, frames)
    whole = decode(spectral, latent, [frames])
    assert whole.shape == (1, 1, frames * spectral.hop) and torch.isfinite(whole).all()
    for size in (1, 7, 50):
        assert torch.equal(decode(spectral, latent, [size] * -(-frames // size)), whole)


def test_sixty_four_frames_are_what_the_codec_decodes(spectral):
    latent = tones(spectral, 64)
    with torch.no_grad():
        expected = spectral.decode(latent)
    assert (decode(spectral, latent, [10] * 7) - expected).norm() < 1e-2 * expected.norm()


def test_what_is_computed_at_once_does_not_matter(spectral, monkeypatch):
    """The context is whole: other blocks give other rounding only."""
    latent = tones(spectral, 300)
    expected = decode(spectral, latent, [300])
    monkeypatch.setattr("audio_var.streaming.BLOCK", 47)
    again = decode(spectral, latent, [300])
    assert (again - expected).norm() < 1e-2 * expected.norm()
    monkeypatch.setattr(spectral, "context", 2)  # less than the decoder sees
    assert (decode(spectral, latent, [300]) - expected).norm() > 1e-2 * expected.norm()


def test_phases_keep_their_precision(spectral):
    """A partial that does not change is as pure after a while as at first."""
    magnitude = torch.full((1, 129, 4_000), -9.0)
    magnitude[:, 39:44] = torch.tensor([-6.0, -1.4, 0.0, -1.4, -6.0])[:, None]
    magnitude[:, 118:123] = torch.tensor([-6.0, -1.4, 0.0, -1.4, -6.0])[:, None]
    decoder = StreamDecoder(spectral)
    sounds = [decoder._synthesis.push(part, torch.zeros_like(part)) for part in magnitude.split(32, 2)]
    sound = torch.cat([*sounds, decoder._synthesis.finish()], 2)[0, 0]
    window = torch.hann_window(4096)
    first, last = (torch.fft.rfft(sound[at : at + 4096] * window).abs() for at in (4096, len(sound) - 8192))
    assert (first - last).abs().max() < 2e-2 * first.max()


def test_other_codecs(spectral):
    """Convolutions from latent to waveform, whose context is taken as 64 frames; and a grid of two dimensions."""
    torch.manual_seed(0)
    seanet = build_codec("seanet", dimension=4, n_filters=2, ratios=(4, 2), lstm=0).eval()
    latent = torch.randn(1, 4, 200)
    with torch.no_grad():
        expected = seanet.decode(latent)
    for sizes in ([200], [9] * 23):
        assert torch.allclose(decode(seanet, latent, sizes), expected, atol=1e-6)
    grid = build_codec("mel_grid", latent_channels=4, base=8, multipliers=(1, 2), blocks=1, width=16, depth=1).eval()
    with torch.no_grad():
        latent = grid.encode(0.1 * torch.randn(1, 1, grid.hop * 70))
    whole = decode(grid, latent, [70])
    assert whole.shape[2] == 70 * grid.hop and torch.equal(decode(grid, latent, [9] * 8), whole)
