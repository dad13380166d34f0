"""A gap bridged in the spectrogram, and a codec's error taken off what it gave for the gap."""

import math

import torch

from audio_var.gap import Gap, bridge, carry_error, fill_gap
from audio_var.repair import banded, masked, noise_power, spectral_gate

RATE = 16_000


def chord(seconds=1.0, decay=0.0):
    time = torch.arange(round(seconds * RATE)) / RATE
    partials = [torch.sin(2 * math.pi * f * time + f) for f in (220.0, 447.0, 1013.0)]
    return 0.2 * sum(partials) * torch.exp(-decay * time)


def level(audio, start, end):
    return 20 * math.log10(audio[start:end].square().mean().sqrt())


def test_steady_sound_goes_on():
    audio, gap = chord(), Gap(5000, 9000, RATE)
    hidden = audio.clone()
    hidden[gap.start : gap.end] = 7.0  # plays no role
    filled = fill_gap(hidden[None], gap)[0]
    spectra = [torch.fft.rfft(x[5400:8600] * torch.hann_window(3200)).abs() for x in (audio, filled)]
    assert (spectra[0] - spectra[1]).norm() < 0.1 * spectra[0].norm()


def test_the_level_moves_from_one_side_to_the_other():
    audio, gap = chord(decay=4.0), Gap(5000, 9000, RATE)
    filled = fill_gap(audio[None], gap)[0]
    for start in (5200, 6500, 7800):
        assert abs(level(filled, start, start + 1000) - level(audio, start, start + 1000)) < 1.5
    held = fill_gap(audio[None], Gap(9000, 16_000, RATE, after=False))[0]
    assert level(held, 12_000, 14_000) > level(audio, 12_000, 14_000) + 5


def test_nothing_beside_the_gap():
    gap = Gap(0, 15_000, RATE, after=False)
    assert fill_gap(chord()[None], gap) is None
    audio = chord()[None]
    assert torch.equal(carry_error(audio, 0.5 * audio, gap), 0.5 * audio)


def test_an_error_beside_the_gap_is_taken_off_within():
    audio, gap = chord()[None], Gap(5000, 9000, RATE)
    weak = torch.fft.irfft(torch.fft.rfft(audio) * torch.linspace(1, 0.1, 8001), 16_000)  # the higher the weaker
    mended = carry_error(audio, weak, gap)
    before, after = ((x - audio)[:, 5200:8800].norm() for x in (weak, mended))
    assert after < 0.1 * before


def test_near_what_is_known_is_interpolated():
    """And the middle of a long gap is what was drawn."""
    audio, gap = chord()[None], Gap(4000, 12_000, RATE)
    drawn = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    made, filled = bridge(audio, drawn, gap, 0.1), fill_gap(audio, gap)
    torch.testing.assert_close(made[:, 4000:5000], filled[:, 4000:5000], atol=1e-4, rtol=0)
    torch.testing.assert_close(made[:, 7500:8500], drawn[:, 7500:8500], atol=1e-4, rtol=0)
    torch.testing.assert_close(bridge(audio, drawn, gap, 1.0), filled, atol=1e-4, rtol=0)
    assert bridge(audio, drawn, gap, 0) is drawn


def test_noise_and_what_stands_out_of_it():
    clean = torch.cat([chord(0.7), torch.zeros(4800)])
    noise = 0.05 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    power = torch.stft(noise, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs().square()
    assert 0.6 < (noise_power(power).mean() / power.mean()).item() < 1.2
    error = noise.norm()
    assert (spectral_gate(clean + noise, RATE) - clean).norm() < 0.9 * error
    alone = masked(clean + noise, RATE)
    assert (alone - clean).norm() < 0.5 * error
    assert (masked(clean + noise, RATE, clean) - clean).norm() < 1.1 * (alone - clean).norm()


def test_bands():
    low, high = chord(), chord().roll(1) * 0.5
    both = banded(low, high, 700.0, RATE)
    spectra = [torch.fft.rfft(x).abs() for x in (low, high, both)]
    assert torch.allclose(spectra[2][:500], spectra[0][:500], rtol=1e-2, atol=2)
    assert torch.allclose(spectra[2][900:1100], spectra[1][900:1100], rtol=1e-2, atol=2)
