"""Repairing recordings by spectra: what a recording keeps of its own, and what a model's version of it decides.

A codec may invent its phases, so that no waveform of a model is put in place of one that was recorded: the model's
magnitudes say how much of every bin to keep, and where nothing was recorded, what to add.

Shape notation: T samples, F bins, M frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_SECONDS = 0.064  # about a window
_QUIET = 0.1  # share of the frames, the quietest, in which noise is measured
_LEFT = 0.1  # of what is gated away, 20 dB below
_OVER = 6.0  # times the noise's power that a bin must have to count as sound
_LOG_BIAS = (
    1.78  # the mean of an exponential variable over the exponential of its mean logarithm: e to Euler's constant
)


class Stft:
    """A short-time Fourier transform of recordings (T,) at a rate in Hz, Hann window, hop a quarter."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.size = 1 << round(math.log2(_SECONDS * rate))
        self.window = torch.hann_window(self.size)

    def __call__(self, audio: Tensor) -> Tensor:
        """(T,) -> (F, M) complex."""
        return torch.stft(
            audio, self.size, self.size // 4, window=self.window, pad_mode="constant", return_complex=True
        )

    def inverse(self, spectrum: Tensor, length: int) -> Tensor:
        """(F, M) complex -> (T,)."""
        return torch.istft(spectrum, self.size, self.size // 4, window=self.window, length=length)

    def bin_of(self, frequency: float) -> int:
        """The first bin not below a frequency in Hz."""
        return math.ceil(frequency * self.size / self.rate)


def spectral_gate(audio: Tensor, rate: int) -> Tensor:
    """Turn down by 20 dB what does not stand out of steady noise: (T,) -> (T,).

    The noise of every bin is measured in the quietest tenth of the frames; what lies more than 1.5 standard deviations
    (in dB) above its mean is kept, with a mask that is smoothed over 3 bins and 3 frames (spectral gating).
    """
    stft = Stft(rate)
    spectrum = stft(audio)
    level = 20 * spectrum.abs().clamp_min(1e-6).log10()
    quiet = level.mean(0).argsort()[: max(2, round(_QUIET * level.shape[1]))]
    noise = level[:, quiet]
    threshold = noise.mean(1, keepdim=True) + 1.5 * noise.std(1, keepdim=True)
    mask = F.avg_pool2d((level > threshold).float()[None], (3, 3), 1, (1, 1), count_include_pad=False)[0]
    return stft.inverse(spectrum * (_LEFT + (1 - _LEFT) * mask), len(audio))


def masked(audio: Tensor, rate: int, model: Tensor | None = None) -> Tensor:
    """Take steady noise off a recording, and leave what a model's version of it has: (T,), (T,) -> (T,).

    The gain of every bin is that of Wiener's filter. Its clean power is that of the model, or what the recording's own
    has beyond six times the noise's, whichever is more: so nothing that stands out of the noise depends on the model.
    Phases are the recording's.

    Args:
        model: (T,) float32; None takes the recording's own word alone (spectral subtraction).
    """
    stft = Stft(rate)
    spectrum = stft(audio)
    power = spectrum.abs().square()
    clean = power - _OVER * noise_power(power)
    if model is not None:  # the loudest of three bins: a partial may lie beside where the model has it
        clean = torch.maximum(clean, F.max_pool2d(stft(model).abs().square()[None], (3, 1), 1, (1, 0))[0])
    clean = clean.clamp_min(0)
    noise = (power - clean).clamp_min(0)
    return stft.inverse(spectrum * (clean / (clean + noise).clamp_min(1e-12)), len(audio))


def noise_power(power: Tensor) -> Tensor:
    """The noise of every bin, in the quietest tenth of the frames: (F, M) -> (F, 1)."""
    level = power.clamp_min(1e-12).log()
    quiet = level.mean(0).argsort()[: max(2, round(_QUIET * power.shape[1]))]
    return level[:, quiet].mean(1, keepdim=True).exp() * _LOG_BIAS


def banded(audio: Tensor, model: Tensor, cutoff: float, rate: int) -> Tensor:
    """A recording below a frequency, and above it a model's version of it: (T,), (T,) -> (T,).

    Args:
        cutoff: Hz; over a tenth below it the one gives way to the other.
    """
    stft = Stft(rate)
    spectrum, other = stft(audio), stft(model)
    low, high = stft.bin_of(0.9 * cutoff), max(stft.bin_of(0.9 * cutoff) + 1, stft.bin_of(cutoff))
    share = ((torch.arange(len(spectrum)) - low) / (high - low)).clamp(0, 1)[:, None]
    return stft.inverse((1 - share) * spectrum + share * other, len(audio))
