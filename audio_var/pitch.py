"""Pitch of single instrument notes, from their spectra: a search over the whole range, and a refinement to the cent."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST, HIGHEST = 58.0, 1180.0  # Hz: MIDI 36 to 84 and two semitones more on either side
STEP = 5.0  # cents between candidates
_HARMONICS = (1, 2, 3, 5, 7, 11, 13, 17, 19)
_FRAME, _SPACING, _ONSET = 0.256, 0.125, 0.1  # seconds: length of a frame, from frame to frame, skipped at the start
_STEADY = 0.512  # seconds of steady tone that the refinement looks at


@functools.lru_cache(maxsize=4)
def _candidates(sample_rate: int, fft_size: int) -> tuple[Tensor, Tensor]:
    """Candidate frequencies (K,) and their kernels (K, F) over the bins of a real FFT, positive part of norm 1."""
    count = int(1200 * torch.log2(torch.tensor(HIGHEST / LOWEST)).item() / STEP) + 1
    candidates = LOWEST * 2 ** (torch.arange(count, dtype=torch.float64) * STEP / 1200)
    bins = torch.arange(fft_size // 2 + 1, dtype=torch.float64) * sample_rate / fft_size
    ratio = bins / candidates[:, None]  # (K, F)
    kernel = torch.zeros_like(ratio)
    limit = 0.475 * sample_rate / candidates[:, None]  # highest harmonic below Nyquist
    for harmonic in _HARMONICS:
        distance = (ratio - harmonic).abs()
        wave = torch.cos(2 * torch.pi * ratio) * (harmonic <= limit)
        kernel += torch.where(distance < 0.25, wave, torch.where(distance < 0.75, wave / 2, 0.0))
    kernel /= ratio.clamp_min(0.25)
    kernel /= kernel.clamp_min(0).norm(dim=1, keepdim=True)
    return candidates.float(), kernel.float()


def estimate_pitch(audio: Tensor, sample_rate: int, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Fundamental frequency of one note a clip, between 58 and 1180 Hz.

    The square root of the magnitude spectrum, averaged over frames of 256 ms after the first 100 ms, is correlated with
    a cosine for each candidate: positive at its first and prime harmonics, negative between them, which is what keeps
    sub-multiples from winning (SWIPE', Camacho and Harris, JASA 124(3), 2008). Unlike SWIPE' the window is one length
    and kernels fall with the harmonic's number instead of its root, which raised the share of real notes found. The
    best candidate is then refined by `refine_pitch`.

    A sounding pitch is reported: an organ with a 16' stop sounds an octave below the key.

    Args:
        audio: (B, T) float; T of at least 50 ms.
        sample_rate: Hz.
        chunk: clips at a time, to bound memory.

    Returns:
        frequency: (B,) float32, Hz.
        confidence: (B,) float32, correlation of spectrum and best kernel, 0 (silence, noise) to 1.

    Shape notation: B batch, T samples, K candidates, F bins.
    """
    results = [_estimate(part, sample_rate) for part in audio.float().split(chunk)]
    frequency, confidence = (torch.cat(parts) for parts in zip(*results, strict=True))
    return refine_pitch(audio, sample_rate, frequency, width=50.0, chunk=chunk), confidence


@torch.no_grad()
def _estimate(audio: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    frame, spacing, onset = (round(seconds * sample_rate) for seconds in (_FRAME, _SPACING, _ONSET))
    tone = audio[:, min(onset, max(0, audio.shape[1] - frame)) :]
    tone = F.pad(tone, (0, max(0, frame - tone.shape[1])))
    frames = tone.unfold(1, frame, spacing)[:, :4] * torch.hann_window(frame, device=audio.device)  # (B, 4, frame)
    fft_size = 2 << (frame - 1).bit_length()
    candidates, kernel = (x.to(audio.device) for x in _candidates(sample_rate, fft_size))
    spectrum = torch.fft.rfft(frames, fft_size).abs().sqrt()
    spectrum = spectrum / spectrum.norm(dim=2, keepdim=True).clamp_min(1e-6)
    strength = spectrum.mean(1) @ kernel.T  # (B, 4, F) -> (B, F) -> (B, K)
    best = strength.max(1)
    return candidates[best.indices], best.values.clamp(0, 1)


def refine_pitch(
    audio: Tensor, sample_rate: int, nominal: Tensor | float, width: float = 100.0, harmonics: int = 8, chunk: int = 128
) -> Tensor:
    """Fundamental frequency near a known one, to a fraction of a cent.

    The candidate within `width` cents of `nominal` whose harmonics carry the greatest sum of magnitudes, the h-th
    weighted 1/h, in a zero-padded spectrum of 512 ms of steady tone; between candidates one cent apart by a parabola.
    It cannot be an octave out, so it also serves where `estimate_pitch` is unsure of the note that was played.

    Args:
        audio: (B, T) float.
        sample_rate: Hz.
        nominal: expected frequency in Hz, (B,) or one for all.
        width: cents searched on either side.
        harmonics: how many are summed, of those below Nyquist.

    Returns:
        (B,) float32, Hz.

    Shape notation: B batch, T samples, K candidates, H harmonics, F bins.
    """
    nominal = torch.as_tensor(nominal, dtype=torch.float32, device=audio.device).expand(audio.shape[0])
    parts = zip(audio.float().split(chunk), nominal.split(chunk), strict=True)
    return torch.cat([_refine(part, sample_rate, near, width, harmonics) for part, near in parts])


@torch.no_grad()
def _refine(audio: Tensor, sample_rate: int, nominal: Tensor, width: float, harmonics: int) -> Tensor:
    onset, length = round(_ONSET * sample_rate), round(_STEADY * sample_rate)
    onset = min(onset, max(0, audio.shape[1] - length))
    tone = audio[:, onset : onset + length]
    tone = tone * torch.hann_window(tone.shape[1], device=audio.device)
    fft_size = 8 << (length - 1).bit_length()
    magnitude = torch.fft.rfft(tone, fft_size).abs()  # (B, F)
    cents = torch.arange(-width, width + 0.5, 1.0, device=audio.device)
    candidates = nominal[:, None] * 2 ** (cents / 1200)  # (B, K)
    score = torch.zeros_like(candidates)
    for harmonic in range(1, harmonics + 1):
        position = harmonic * candidates * (fft_size / sample_rate)
        inside = position < magnitude.shape[1] - 2
        position = position.clamp_max(magnitude.shape[1] - 3)
        below = position.long().clamp_min(1)
        t = position - below
        a, b, c, d = (magnitude.gather(1, below + offset) for offset in (-1, 0, 1, 2))
        # Catmull-Rom spline: linear interpolation would draw the maximum to the bins
        value = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
        score += torch.where(inside, value, 0.0) / harmonic
    best = score.argmax(1, keepdim=True).clamp(1, score.shape[1] - 2)
    left, top, right = (score.gather(1, best + offset) for offset in (-1, 0, 1))
    offset = 0.5 * (left - right) / (left - 2 * top + right).clamp_max(-1e-9)
    shift = cents[best] + offset.clamp(-1, 1)  # (B, 1)
    return nominal * 2 ** (shift.squeeze(1) / 1200)


def cents_between(frequency: Tensor, reference: Tensor) -> Tensor:
    """Interval from `reference` up to `frequency` in cents, elementwise; both in Hz."""
    return 1200 * torch.log2(frequency / reference)
