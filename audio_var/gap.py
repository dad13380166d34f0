"""A gap in a recording, bridged by what is on both sides of it in the spectrogram.

Shape notation: B batch, N samples, F bins, T frames.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from audio_var.phase import locked_phase

_SECONDS = 0.064  # about a window
_FLOOR = 1e-4  # smallest magnitude told apart
_MOST = 3.0  # natural log of the greatest correction of a magnitude, 26 dB
_BESIDE = 6  # frames on either side over which a codec's error is averaged
_GIVES_WAY = 0.05  # seconds over which a bridge gives way to what was drawn


class Gap(NamedTuple):
    """A gap from sample `start` to `end` of audio at `rate` Hz; `after` tells whether anything after it is known."""

    start: int
    end: int
    rate: int
    after: bool = True

    @property
    def window(self) -> int:
        """Samples of a window of the STFT, a power of two."""
        return 1 << round(math.log2(_SECONDS * self.rate))

    @property
    def hop(self) -> int:
        """Samples between frames."""
        return self.window // 4

    def beside(self, frames: int, count: int) -> tuple[slice | None, slice | None]:
        """The nearest `count` frames before and after that nothing of the gap is in; None where there is none."""
        last = (self.start - self.window // 2) // self.hop  # frame t is centred on sample t * hop
        first = math.ceil((self.end + self.window // 2) / self.hop)
        before = slice(max(0, last + 1 - count), last + 1) if last >= 0 else None
        after = slice(first, min(frames, first + count)) if self.after and first < frames else None
        return before, after

    def bridged(self, values: Tensor, count: int) -> Tensor | None:
        """Interpolate linearly over time between the means of the frames beside: (B, F, T) -> (B, F, T).

        Where one side is known only, its mean is held; None where neither is. Frames outside keep their values.
        """
        frames = values.shape[2]
        before, after = self.beside(frames, count)
        if before is None and after is None:
            return None
        left, right = (None if part is None else values[:, :, part].mean(2, keepdim=True) for part in (before, after))
        left, right = right if left is None else left, left if right is None else right
        low = -1 if before is None else before.stop - 1
        high = frames if after is None else after.start
        time = ((torch.arange(frames, device=values.device) - low) / (high - low)).clamp(0, 1)
        inside = (time > 0) & (time < 1)
        return torch.where(inside, torch.lerp(left, right, time), values)

    def distance(self, frames: int) -> Tensor:
        """Seconds from the middle of every frame to the nearest sample outside the gap, 0 outside: (T,)."""
        time = torch.arange(frames) * self.hop
        before = time - self.start
        after = self.end - time if self.after else before
        return torch.minimum(before, after).clamp_min(0) / self.rate

    def stft(self, audio: Tensor) -> Tensor:
        """(B, N) -> (B, F, T) complex."""
        window = torch.hann_window(self.window, device=audio.device)
        return torch.stft(audio, self.window, self.hop, window=window, pad_mode="constant", return_complex=True)

    def inverse_stft(self, spectrum: Tensor, length: int) -> Tensor:
        """(B, F, T) complex -> (B, N)."""
        window = torch.hann_window(self.window, device=spectrum.device)
        return torch.istft(spectrum, self.window, self.hop, window=window, length=length)


def fill_gap(audio: Tensor, gap: Gap) -> Tensor | None:
    """Fill a gap by linear interpolation of log-magnitude frames, with phases that go on turning.

    Args:
        audio: (B, N) float32; what is in the gap does not matter.

    Returns:
        (B, N) float32, of which only the gap is meant; None where no frame beside the gap is known.
    """
    magnitude = 0.5 * torch.log(gap.stft(audio).abs().square() + _FLOOR**2)
    bridged = gap.bridged(magnitude, 1)
    if bridged is None:
        return None
    phase = locked_phase(bridged, gap.window, gap.hop)
    loud = (torch.exp(2 * bridged) - _FLOOR**2).clamp_min(0).sqrt()
    return gap.inverse_stft(torch.polar(loud, phase), audio.shape[1])


def bridge(audio: Tensor, drawn: Tensor, gap: Gap, reach: float) -> Tensor:
    """Within some time of what is known, the interpolation of :func:`fill_gap` instead of what was drawn.

    A steady sound changes less in that time than a codec errs. Further inside, the one gives way to the other, in
    log-magnitudes, with the phases of their mixture.

    Args:
        audio: (B, N) float32; what is in the gap does not matter.
        drawn: (B, N) float32, with the same sound around the gap.
        reach: seconds; 0 leaves what was drawn as it is.

    Returns:
        (B, N) float32.
    """
    filled = fill_gap(audio, gap) if reach > 0 else None
    if filled is None:
        return drawn
    ours, theirs = gap.stft(filled), gap.stft(drawn)
    share = ((reach - gap.distance(ours.shape[2]).to(drawn.device)) / _GIVES_WAY + 1).clamp(0, 1)  # (T,)
    level = torch.lerp(*((x.abs().square() + _FLOOR**2).log() for x in (theirs, ours)), share)
    phase = torch.lerp(theirs, ours, share.to(ours.dtype)).angle()
    loud = (level.exp() - _FLOOR**2).clamp_min(0).sqrt()
    return gap.inverse_stft(torch.polar(loud, phase), audio.shape[1])


def carry_error(audio: Tensor, drawn: Tensor, gap: Gap) -> Tensor:
    """Take from what a codec gave for a gap the error that it makes beside the gap.

    In every bin the ratio of magnitudes, known over decoded, is averaged (in its logarithm) over a few frames on either
    side, and interpolated across the gap. So a partial or a noise floor that the codec renders too weak does not drop
    where the gap begins.

    Args:
        audio: (B, N) float32; what is in the gap does not matter.
        drawn: (B, N) float32, decoded, with the same sound around the gap.

    Returns:
        (B, N) float32.
    """
    spectrum = gap.stft(drawn)
    power = [x.abs().square() + _FLOOR**2 * gap.window for x in (gap.stft(audio), spectrum)]
    ratio = gap.bridged(0.5 * (power[0] / power[1]).log(), _BESIDE)
    if ratio is None:
        return drawn
    return gap.inverse_stft(spectrum * ratio.clamp(-_MOST, _MOST).exp(), audio.shape[1])
