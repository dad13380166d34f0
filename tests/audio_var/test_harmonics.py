"""Partials put in tune: where they are a note's, by how much, and where they are not."""

import math

import pytest
import torch

from audio_var.codecs import build_codec
from audio_var.harmonics import tune_harmonics
from audio_var.pitch import refine_pitch
from next_scale.errors import UserError

RATE, SIZE, HOP = 16_000, 1024, 256
LOW, HIGH = 55 * SIZE / RATE, 1250 * SIZE / RATE


def note(frequency: float, partials: int = 12, samples: int = 16_384) -> torch.Tensor:
    """Partials falling as 1/n: (1, 1, T)."""
    time = torch.arange(samples) / RATE
    partials = min(partials, int(7000 / frequency))
    wave = sum(torch.sin(2 * math.pi * n * frequency * time + n) / n for n in range(1, partials + 1))
    return 0.3 * wave[None, None]


@pytest.fixture(scope="module")
def codec():
    return build_codec("spectral", width=8, latent_channels=4, encoder_depth=1, decoder_depth=1).eval()


def cents(clip: torch.Tensor, frequency: float) -> float:
    return float(1200 * torch.log2(refine_pitch(clip[:, 0], RATE, frequency) / frequency))


@pytest.mark.parametrize("frequency", [65.4, 73.4, 110.0, 220.0, 523.25, 1046.5])
def test_low_partials_follow_the_high_ones(codec, frequency):
    spectrum = codec.log_magnitude(note(frequency))
    # every peak below 800 Hz told a tenth of a bin too high: many cents in a low note, few in a high one
    off = torch.zeros_like(spectrum)
    off[:, : int(800 * SIZE / RATE)] = 0.1
    tuned = tune_harmonics(spectrum, off, LOW, HIGH)
    before, after = (abs(cents(codec.synthesize(spectrum, x), frequency)) for x in (off, tuned))
    assert after < 12 or after < before / 2
    if frequency < 100:
        assert before > 12 and after < 8


def test_a_note_in_tune_stays(codec):
    spectrum = codec.log_magnitude(note(146.8))
    tuned = tune_harmonics(spectrum, torch.zeros_like(spectrum), LOW, HIGH)
    assert abs(cents(codec.synthesize(spectrum, tuned), 146.8)) < 3


def test_vibrato_stays(codec):
    time = torch.arange(16_384) / RATE
    phase = 2 * math.pi * (220 * time - 0.01 * 220 * torch.cos(2 * math.pi * 5 * time) / (2 * math.pi * 5))
    wave = 0.2 * sum(torch.sin(n * phase) / n for n in range(1, 9))[None, None]
    spectrum = codec.log_magnitude(wave)
    tuned = tune_harmonics(spectrum, torch.zeros_like(spectrum), LOW, HIGH)
    # one shift a harmonic, the same in every frame: what rises and falls still does
    first = tuned[0, 14, 4:-4]  # 220 Hz lies in bin 14
    assert first.std() < 0.02


def test_noise_and_silence_stay(codec):
    noise = 0.1 * torch.randn(1, 1, 16_384, generator=torch.Generator().manual_seed(0))
    for wave in (noise, torch.zeros(1, 1, 16_384)):
        spectrum = codec.log_magnitude(wave)
        off = torch.full_like(spectrum, 0.05)
        assert torch.equal(tune_harmonics(spectrum, off, LOW, HIGH), off)


def test_clips_do_not_mix(codec):
    waves = torch.cat([note(f) for f in (98.0, 311.1, 740.0)])
    spectrum = codec.log_magnitude(waves)
    off = 0.02 * torch.randn(spectrum.shape, generator=torch.Generator().manual_seed(1))
    both = tune_harmonics(spectrum, off, LOW, HIGH)
    for row in range(3):
        alone = tune_harmonics(spectrum[row : row + 1], off[row : row + 1], LOW, HIGH)
        assert torch.allclose(both[row], alone[0], atol=1e-4)


def test_the_codec_tunes_where_it_is_told_to(codec):
    torch.manual_seed(0)
    tuned = build_codec(
        "spectral", width=8, latent_channels=4, encoder_depth=1, decoder_depth=1, fundamentals=(55.0, 1250.0)
    )
    tuned.load_state_dict(codec.state_dict())
    spectrum = codec.log_magnitude(note(65.4))
    off = torch.zeros_like(spectrum)
    off[:, :50] = 0.1
    assert abs(cents(tuned.synthesize(spectrum, off), 65.4)) < abs(cents(codec.synthesize(spectrum, off), 65.4)) / 2
    assert tuned.synthesize(spectrum).shape == (1, 1, 16_384)
    again = build_codec("spectral", **tuned.to_config())
    assert tuple(again.fundamentals) == (55.0, 1250.0)


@pytest.mark.parametrize("range_", [(100.0, 50.0), (0.0, 50.0)])
def test_a_range_that_is_none(range_):
    with pytest.raises(UserError, match="rising"):
        build_codec("spectral", fundamentals=range_)
