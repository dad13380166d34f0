import math
import shutil
import sys

import numpy as np
import pytest
import torch

from audio_var import metrics
from audio_var.baselines import delay, opus_roundtrip, shift
from next_scale.errors import UserError

RATE = 16000
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command is not installed")


def tone(hz, partials=8, decay=0.0, inharmonicity=0.0, slope=1.0, samples=16384):
    """Partials h f sqrt(1 + B h^2) of amplitude h^-slope, decaying (1/s): (T,)."""
    t = torch.arange(samples, dtype=torch.float64) / RATE
    total = torch.zeros_like(t)
    for h in range(1, partials + 1):
        f = h * hz * math.sqrt(1 + inharmonicity * h * h)
        if f < RATE / 2:
            total += h**-slope * torch.sin(2 * math.pi * f * t + h)
    return (0.2 * total * torch.exp(-decay * t)).float()


def midi_hz(pitch):
    return 440 * 2 ** ((pitch - 69) / 12)


ALL_PITCHES = torch.tensor([midi_hz(p) for p in range(36, 85)])


@pytest.mark.parametrize(
    "timbre",
    [
        dict(),
        dict(partials=1),
        dict(partials=20, slope=0.5),
        dict(decay=6.0),
        dict(decay=3.0, inharmonicity=2e-4),
    ],
    ids=["plain", "sine", "bright", "plucked", "piano"],
)
def test_pitch_of_synthetic_notes_over_the_whole_range(timbre):
    audio = torch.stack([tone(hz, **timbre) for hz in ALL_PITCHES.tolist()])
    frequency, confidence = metrics.estimate_pitch(audio, RATE)
    cents = metrics.cents_between(frequency, ALL_PITCHES).abs()
    assert cents.max() < (10 if timbre.get("inharmonicity") else 5)
    assert confidence.min() > 0.2 and confidence.max() <= 1


def test_pitch_without_fundamental():
    hz = 220.0
    audio = (tone(hz, partials=8, slope=0.3) - tone(hz, partials=1, slope=0.3))[None]
    frequency, _ = metrics.estimate_pitch(audio, RATE)
    assert metrics.cents_between(frequency, torch.tensor([hz])).abs() < 10


def test_pitch_ignores_gain_and_survives_noise_and_silence():
    audio = torch.stack([tone(midi_hz(p)) for p in (40, 60, 80)])
    clean, _ = metrics.estimate_pitch(audio, RATE)
    quiet, _ = metrics.estimate_pitch(1e-3 * audio, RATE)
    noisy, _ = metrics.estimate_pitch(audio + 0.02 * torch.randn(audio.shape), RATE)
    assert metrics.cents_between(quiet, clean).abs().max() < 0.5
    assert metrics.cents_between(noisy, clean).abs().max() < 2
    frequency, confidence = metrics.estimate_pitch(torch.zeros(2, 16384), RATE)
    assert frequency.isfinite().all() and confidence.tolist() == [0, 0]
    _, unsure = metrics.estimate_pitch(torch.randn(2, 16384), RATE)
    assert unsure.max() < 0.2


@pytest.mark.parametrize("samples", [1000, 5000, 40000])
def test_pitch_of_short_and_long_clips(samples):
    frequency, _ = metrics.estimate_pitch(tone(440.0, samples=samples)[None], RATE)
    assert metrics.cents_between(frequency, torch.tensor([440.0])).abs() < 15


@pytest.mark.parametrize("detune", [-60.0, -7.3, 0.0, 0.4, 42.0])
def test_refinement_is_exact_to_a_tenth_of_a_cent(detune):
    true = ALL_PITCHES * 2 ** (detune / 1200)
    audio = torch.stack([tone(hz) for hz in true.tolist()])
    cents = metrics.cents_between(metrics.refine_pitch(audio, RATE, ALL_PITCHES), true).abs()
    # in the lowest octave neighbouring harmonics leak into each other's lobes
    assert cents.max() < 0.5 and cents[12:].max() < 0.1


def test_pitch_error():
    original = torch.stack([tone(220.0), tone(330.0), tone(440.0)])
    moved = torch.stack([tone(220.0), tone(330.0 * 2 ** (15 / 1200)), tone(220.0)])
    error = metrics.pitch_error_cents(original, moved, RATE)
    torch.testing.assert_close(error, torch.tensor([0.0, 15.0, 1200.0]), atol=0.3, rtol=0)
    guided = metrics.pitch_error_cents(original, moved, RATE, torch.tensor([220.0, 330.0, 440.0]))
    torch.testing.assert_close(guided[:2], torch.tensor([0.0, 15.0]), atol=0.3, rtol=0)


def test_si_sdr():
    x, n = torch.randn(2, 100000), torch.randn(2, 100000)
    assert metrics.si_sdr(x, 3 * (x + 0.1 * n)).tolist() == pytest.approx([20, 20], abs=0.2)


def test_convergence():
    x = torch.randn(2, 4000)
    assert metrics.multi_resolution_convergence(x, x).max() < 1e-4
    assert metrics.multi_resolution_convergence(x, 0 * x).tolist() == pytest.approx([1, 1], abs=1e-4)
    assert metrics.multi_resolution_convergence(x, 1.3 * x).tolist() == pytest.approx([0.3, 0.3], abs=1e-3)
    assert metrics.multi_resolution_convergence(torch.zeros(1, 900), torch.zeros(1, 900)).isfinite().all()


def test_visqol_orders_degradations():
    pytest.importorskip("visqol", reason="visqol-python is not installed")
    x = tone(220.0, partials=20, decay=2.0)
    worse = x + 0.05 * torch.randn(x.shape)
    scores = metrics.visqol(torch.stack([x, x]), torch.stack([x, worse]), RATE)
    assert scores.shape == (2,) and scores[0] > 4.5 and scores[1] < scores[0] - 0.5
    with pytest.raises(UserError, match="cannot compare clip 0"):
        metrics.visqol(x[:100], x[:100], RATE)
    with pytest.raises(UserError, match="audio, speech"):
        metrics.visqol(x, x, RATE, mode="video")


def test_visqol_absent_is_a_user_error(monkeypatch):
    metrics._visqol_api.cache_clear()
    monkeypatch.setitem(sys.modules, "visqol", None)
    with pytest.raises(UserError, match="pip install visqol-python"):
        metrics.visqol(torch.zeros(16000), torch.zeros(16000), RATE)


def test_delay_and_shift():
    x = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    for by in (-7, 0, 3):
        moved = shift(x, by, 510)
        assert moved.shape == (510,) and delay(x, moved, 20) == by
    back = shift(shift(x, 5, 500), -5, 500)
    assert np.array_equal(back[:495], x[:495]) and not back[495:].any()
    assert delay(x[:1], x[:1], 20) == 0


@needs_ffmpeg
def test_opus_spends_bits_and_gains_fidelity():
    notes = torch.stack([tone(midi_hz(p), partials=20, decay=3.0) for p in range(40, 80, 4)])
    distances, rates, errors = [], [], []
    for asked in (8000, 16000, 32000):
        decoded, rate = opus_roundtrip(notes.numpy(), RATE, asked)
        assert decoded.shape == notes.shape and decoded.dtype == np.float32
        rates.append(rate)
        distances.append(metrics.log_mel_distance(notes, torch.from_numpy(decoded), RATE).item())
        errors.append(metrics.si_sdr(notes.reshape(-1), torch.from_numpy(decoded).reshape(-1)).item())
    assert rates == sorted(rates) and 4000 < rates[0] < 12000
    assert distances == sorted(distances, reverse=True)
    assert errors == sorted(errors) and errors[-1] > 10  # aligned: a delay of a few samples would show


@needs_ffmpeg
def test_opus_takes_one_clip_and_refuses_what_it_cannot_code():
    decoded, _ = opus_roundtrip(tone(440.0, samples=12345).numpy(), RATE, 24000)
    assert decoded.shape == (12345,)
    with pytest.raises(UserError, match="44100"):
        opus_roundtrip(np.zeros(100), 44100, 8000)
    with pytest.raises(UserError, match="no audio"):
        opus_roundtrip(np.zeros(0), RATE, 8000)
    with pytest.raises(UserError, match="ffmpeg failed"):
        opus_roundtrip(np.zeros(100), RATE, 10_000_000)


def test_opus_without_ffmpeg_is_a_user_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="apt-get install ffmpeg"):
        opus_roundtrip(np.zeros(1000), RATE, 8000)
