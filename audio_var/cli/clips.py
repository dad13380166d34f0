"""Audio of any length through a tokenizer of fixed length: windows that overlap, joined by cross-fades."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from next_scale.commands.backend import Advance
from next_scale.errors import UserError
from next_scale.schedule import Schedule, StrideSchedule
from next_scale.tokenizer import Tokenizer

FADE = 512  # samples of two neighbouring windows that overlap
_SECONDS = 4.0  # about the length of a window where the tokenizer leaves it open


@dataclass(frozen=True)
class Windows:
    """How a recording is cut: windows of `size` samples, each overlapping the one before by `fade`.

    Args:
        samples: T, length of the recording.
        size: N, samples of a window.
        fade: samples that neighbours share.

    Shape notation: T samples of the recording, W windows, N samples each.
    """

    samples: int
    size: int
    fade: int

    @property
    def count(self) -> int:
        """Number of windows, W."""
        return max(1, math.ceil((self.samples - self.fade) / (self.size - self.fade)))

    def cut(self, audio: np.ndarray) -> Tensor:
        """(T,) -> (W, 1, N) float32; the last window is completed with zeros."""
        step = self.size - self.fade
        padded = np.zeros(step * (self.count - 1) + self.size, np.float32)
        padded[: self.samples] = audio
        return torch.from_numpy(padded).unfold(0, self.size, step)[:, None].contiguous()

    def join(self, clips: Tensor) -> np.ndarray:
        """(W, 1, N) -> (T,) float32: where two windows overlap, one fades out while the other fades in."""
        step = self.size - self.fade
        ramp = torch.sin(torch.linspace(0, math.pi / 2, self.fade + 2)[1:-1]) ** 2
        joined = torch.zeros(step * (self.count - 1) + self.size)
        for number, clip in enumerate(clips[:, 0].float().cpu()):
            clip = clip.clone()
            if number > 0:
                clip[: self.fade] *= ramp
            if number < self.count - 1:
                clip[self.size - self.fade :] *= ramp.flip(0)
            joined[number * step : number * step + self.size] += clip
        return joined[: self.samples].numpy()


def schedule_of(tokenizer: Tokenizer, samples: int | None = None) -> Schedule:
    """The schedule of one window: the tokenizer's own.

    For a tokenizer of any length it is that of about four seconds, or of the whole recording where `samples`, its
    length, is less.
    """
    schedule = tokenizer.quantizer.schedule
    if isinstance(schedule, Schedule):
        return schedule
    frames, unit = _unit(tokenizer, schedule)
    count = max(1, round(_SECONDS * tokenizer.autoencoder.sample_rate / unit))
    if samples is not None:
        count = min(count, math.ceil(samples / unit))
    return schedule.at((frames * count,))


def grid_lasting(tokenizer: Tokenizer, seconds: float) -> tuple[int]:
    """The smallest grid of a clip that lasts so long.

    Raises:
        UserError: the tokenizer's clips have one length.
    """
    schedule, codec = tokenizer.quantizer.schedule, tokenizer.autoencoder
    if isinstance(schedule, Schedule):
        own = schedule.grid[0] * codec.hop / codec.sample_rate
        raise UserError(f"this model makes clips of {own:.2f} s: leave --seconds out, or use a model of any length")
    frames, unit = _unit(tokenizer, schedule)
    return (frames * math.ceil(round(seconds * codec.sample_rate) / unit),)


def _unit(tokenizer: Tokenizer, schedule: StrideSchedule) -> tuple[int, int]:
    """Latent frames, and samples, that a clip has a multiple of: schedule and codec both fit."""
    frames = math.lcm(schedule.strides[0], tokenizer.autoencoder.multiple)
    return frames, frames * tokenizer.autoencoder.hop


def windows_for(tokenizer: Tokenizer, samples: int) -> Windows:
    """How a recording of so many samples is cut for this tokenizer."""
    size = schedule_of(tokenizer, samples).grid[0] * tokenizer.autoencoder.hop
    return Windows(samples, size, min(FADE, size // 4))


def encode_audio(tokenizer: Tokenizer, audio: np.ndarray, batch_size: int, advance: Advance) -> tuple[Tensor, Windows]:
    """(T,) -> tokens (W, L) int64 on the CPU, and how the recording was cut."""
    windows = windows_for(tokenizer, len(audio))
    tokens = []
    for batch in windows.cut(audio).split(batch_size):
        tokens.append(tokenizer.encode(batch.to(tokenizer.device)).cpu())
        advance(len(batch) / windows.count)
    return torch.cat(tokens), windows


def decode_audio(
    tokenizer: Tokenizer,
    tokens: Tensor,
    windows: Windows,
    scales: int | None,
    batch_size: int,
    advance: Advance,
) -> np.ndarray:
    """Tokens (W, L) -> (T,) float32, from the first `scales` scales where given."""
    grid = schedule_of(tokenizer, windows.samples).grid
    clips = []
    for batch in tokens.split(batch_size):
        clips.append(tokenizer.decode(batch.to(tokenizer.device), scales, grid).cpu())
        advance(len(batch) / windows.count)
    return windows.join(torch.cat(clips))
