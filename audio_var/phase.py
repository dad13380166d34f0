"""Phase from magnitude: sinusoids found as spectral peaks, each advancing at its own frequency."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_peak(log_magnitude: Tensor) -> Tensor:
    """For every bin the nearest local maximum over frequency: (B, F, T) -> (B, F, T) int64.

    A peak is the largest of five neighbouring bins, the width of a Hann window's main lobe.
    """
    bins = log_magnitude.shape[1]
    log_magnitude = log_magnitude.transpose(1, 2)  # (B, F, T) -> (B, T, F): neighbours in frequency lie side by side
    x = F.pad(log_magnitude, (2, 2), value=-math.inf)
    peak = (log_magnitude >= x[..., :bins]) & (log_magnitude >= x[..., 1 : bins + 1])
    peak &= (log_magnitude > x[..., 3 : bins + 3]) & (log_magnitude > x[..., 4:])
    index = torch.arange(bins, dtype=torch.int32, device=x.device).expand_as(log_magnitude)
    far = 4 * bins
    below = torch.where(peak, index, -far).cummax(2).values
    above = torch.where(peak, index, far).flip(2).cummin(2).values.flip(2)
    nearest = torch.where(index - below <= above - index, below, above).clamp_(0, bins - 1)
    return nearest.long().transpose(1, 2)  # (B, T, F) -> (B, F, T)


def peak_frequency(log_magnitude: Tensor, peak: Tensor) -> Tensor:
    """Frequency in bins of each peak by the parabola through three log magnitudes: (B, F, T) -> (B, F, T) float.

    The log of a Hann window's main lobe is close to a parabola, which puts the error of a steady sinusoid at a few
    hundredths of a bin (J. O. Smith, Spectral Audio Signal Processing, "Quadratic Interpolation of Spectral Peaks").
    """
    x, peak = log_magnitude.transpose(1, 2), peak.transpose(1, 2)  # (B, F, T) -> (B, T, F)
    left, top, right = x[..., :-2], x[..., 1:-1], x[..., 2:]
    offset = (0.5 * (left - right)).div_((left - 2 * top + right).clamp_max_(-0.05)).clamp_(-1, 1)
    peak = peak.clamp(1, x.shape[2] - 2)
    return (peak + offset.gather(2, peak - 1)).transpose(1, 2)  # (B, T, F) -> (B, F, T)


class Turning(NamedTuple):
    """Where phases stand after a frame: phase and frequency of the peak nearest to every bin, both (B, F) float."""

    phase: Tensor
    frequency: Tensor


def locked_phase(log_magnitude: Tensor, fft_size: int, hop: int, correction: Tensor | None = None) -> Tensor:
    """Phases that make a magnitude spectrogram sound: peaks turn, the bins around each stay locked to it.

    Every peak advances by its interpolated frequency; the bins of its main lobe keep the alternating signs that a Hann
    window gives a steady sinusoid, so lobes stay clean however long the note (identity phase locking: Laroche and
    Dolson, "Improved phase vocoder time-scale modification of audio", IEEE Trans. SAP 7(3), 1999). Deterministic.

    Args:
        log_magnitude: (B, F, T) float, natural log of STFT magnitudes with a Hann window, F = fft_size / 2 + 1.
        fft_size, hop: in samples.
        correction: (B, F, T) float, added to the interpolated frequency of a peak in that bin; in bins.

    Returns:
        (B, F, T) phases in radians, relative to the first sample of each frame.

    Shape notation: B batch, F frequency bins, T frames.
    """
    return continued_phase(log_magnitude, fft_size, hop, correction)[0]


@torch.no_grad()
def continued_phase(
    log_magnitude: Tensor, fft_size: int, hop: int, correction: Tensor | None = None, before: Turning | None = None
) -> tuple[Tensor, Turning]:
    """:func:`locked_phase` of a sound that comes in pieces.

    Args:
        before: what this function gave for the piece before; None at the start.

    Returns:
        Phases (B, F, T), and where they stand, within one turn: however long the sound, they lose no precision.
    """
    peak = nearest_peak(log_magnitude)
    frequency = peak_frequency(log_magnitude, peak)
    if correction is not None:
        frequency = frequency + correction.gather(1, peak)
    bins = torch.arange(log_magnitude.shape[1], device=log_magnitude.device).view(1, -1, 1)
    lobe = math.pi * (bins - peak)  # neighbouring bins of a lobe have opposite signs
    turn = 2 * math.pi * hop / fft_size
    peaks, frequencies, lobes = (x.permute(2, 0, 1).contiguous() for x in (peak, frequency, lobe))  # (T, B, F)
    phase = torch.empty_like(frequencies)
    for t, (here, now) in enumerate(zip(peaks, frequencies, strict=True)):
        if before is None:
            phase[t] = lobes[t]
        else:
            # a peak continues whatever sounded at its bin one frame before, at the mean of both frequencies
            advance = 0.5 * turn * (now + before.frequency.gather(1, here))
            phase[t] = before.phase.gather(1, here) + advance + lobes[t]
        before = Turning(phase[t], now)
    standing = Turning(before.phase.remainder(2 * math.pi), before.frequency)
    return phase.permute(1, 2, 0), standing  # (T, B, F) -> (B, F, T)
