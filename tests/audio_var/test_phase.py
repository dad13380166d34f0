"""Phase from magnitudes: what a steady sinusoid becomes, and the two steps that lead there."""

import math

import pytest
import torch

from audio_var.codecs.spectral import SpectralCodec
from audio_var.phase import locked_phase, nearest_peak, peak_frequency

RATE = 16_000
CODEC = SpectralCodec(RATE, 1024, 256, latent_channels=2, width=4, encoder_depth=1, decoder_depth=1)


def tone(frequency, level=0.5, seconds=1.024, phase=0.3):
    time = torch.arange(int(seconds * RATE)) / RATE
    return level * torch.sin(2 * math.pi * frequency * time + phase)[None, None]


def heard(wave):
    """Frequency in Hz and level (RMS) of the middle of a clip (1, 1, N): peak of a finely sampled spectrum."""
    middle = wave[0, 0, 3072:-3072].double()
    window = torch.hann_window(len(middle), dtype=torch.float64)
    size = 1 << 20
    spectrum = torch.fft.rfft(middle * window, size).abs()
    return spectrum.argmax().item() * RATE / size, middle.square().mean().sqrt().item()


def resynthesised(wave):
    return CODEC.synthesize(CODEC.log_magnitude(wave))


# Near 0 Hz a lobe and its mirror image at negative frequency overlap: MIDI pitch 36 is less exact.
@pytest.mark.parametrize(
    "frequency, cents", [(65.4, 8), (110.0, 2), (220.5, 2), (440.0, 2), (1000.3, 2), (3013.7, 2), (7040.0, 2)]
)
def test_a_steady_sinusoid_keeps_frequency_and_level(frequency, cents):
    wave = tone(frequency)
    made, level = heard(resynthesised(wave))
    assert abs(1200 * math.log2(made / frequency)) < cents
    assert abs(20 * math.log10(level / heard(wave)[1])) < 0.5  # dB


@pytest.mark.parametrize("frequency", [65.4, 442.5, 3013.7])
@pytest.mark.parametrize("correction", [-0.1, 0.2])
def test_a_correction_shifts_the_frequency(frequency, correction):
    """By so many bins, and the level stays."""
    magnitude = CODEC.log_magnitude(tone(frequency))
    plain, level = heard(CODEC.synthesize(magnitude))
    shifted, again = heard(CODEC.synthesize(magnitude, torch.full_like(magnitude, correction)))
    assert abs(shifted - plain - correction * RATE / 1024) < 0.3  # Hz
    assert abs(20 * math.log10(again / level)) < 0.5
    assert torch.equal(CODEC.synthesize(magnitude, torch.zeros_like(magnitude)), CODEC.synthesize(magnitude))


@pytest.mark.parametrize("level", [1e-2, 0.9])
def test_level_does_not_depend_on_loudness(level):
    wave = tone(440, level)
    assert abs(20 * math.log10(heard(resynthesised(wave))[1] / heard(wave)[1])) < 0.5


def test_a_chord_keeps_its_partials():
    frequencies = (262.0, 330.0, 392.0, 1568.0)
    wave = sum(tone(f, 0.2, phase=f) for f in frequencies)
    made = resynthesised(wave)
    spectra = [torch.fft.rfft(w[0, 0, 3072:-3072] * torch.hann_window(10240), 1 << 18).abs() for w in (wave, made)]
    for frequency in frequencies:
        bins = slice(*(round((frequency + d) / RATE * (1 << 18)) for d in (-8, 8)))
        levels = [spectrum[bins].max() for spectrum in spectra]
        assert abs(20 * math.log10(levels[1] / levels[0])) < 1.5
        places = [spectrum[bins].argmax().item() for spectrum in spectra]
        assert abs(places[1] - places[0]) * RATE / (1 << 18) < 1.0  # Hz


def test_deterministic_and_independent_of_the_batch():
    magnitude = CODEC.log_magnitude(torch.cat([tone(300), tone(500), torch.randn(1, 1, 16384) * 0.1]))
    phase = locked_phase(magnitude, 1024, 256)
    assert phase.shape == magnitude.shape and phase.isfinite().all()
    for i in range(3):
        assert torch.equal(locked_phase(magnitude[i : i + 1], 1024, 256), phase[i : i + 1])


def test_silence_stays_silent():
    for wave in (torch.zeros(1, 1, 4096), torch.zeros(1, 1, 256)):
        made = resynthesised(wave)
        assert made.shape == wave.shape and made.abs().max() < 1e-5


def test_nearest_peak():
    column = torch.tensor([0.0, 5, 1, 0, 0, 2, 9, 3, 1, 1, 4, 1])
    peak = nearest_peak(column[None, :, None])[0, :, 0]
    definition = [1, 6, 10]
    for bin_, found in enumerate(peak.tolist()):
        assert abs(found - bin_) == min(abs(p - bin_) for p in definition)
    flat = nearest_peak(torch.zeros(1, 7, 1))  # no peak anywhere: any bin will do, but one
    assert len(flat.unique()) == 1 and 0 <= flat.min() and flat.max() < 7


@pytest.mark.parametrize("offset", [-0.5, -0.3, 0.0, 0.25, 0.5])
def test_peak_frequency_of_a_sinusoid_between_bins(offset):
    frequency = (40 + offset) * RATE / 1024
    magnitude = CODEC.log_magnitude(tone(frequency))[:, :, 32:33]
    peak = nearest_peak(magnitude)
    assert abs(peak_frequency(magnitude, peak)[0, 40, 0] - (40 + offset)) < 0.05  # bins


@pytest.mark.parametrize("peak", [0, 8])
def test_peak_frequency_at_the_edges(peak):
    found = peak_frequency(torch.randn(1, 9, 1), torch.full((1, 9, 1), peak))
    assert found.isfinite().all() and (found - peak).abs().max() <= 2
