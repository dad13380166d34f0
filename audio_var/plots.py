"""Spectrograms of clips on a sheet.

Shape notation: T samples, R rows of the picture, W frames.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from next_scale.errors import UserError
from next_scale.figure import new_figure

if TYPE_CHECKING:  # matplotlib takes a second to import: only what draws imports it
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
_LOWEST = 40.0  # Hz, the bottom of a picture
_RANGE = 80.0  # dB from the brightest to the darkest
_TICKS = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)  # Hz
_MOST_FRAMES = 600  # a picture's width in frames: longer clips take longer hops
_THUMBNAIL = (160, 120)  # width and height


def check_plot(path: str | os.PathLike | None) -> None:
    """Raise UserError where a plot cannot have this name; None is no plot."""
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot draw {path}: end the name of a plot in {', '.join(SUFFIXES)}")


def log_spectrogram(samples: np.ndarray, sample_rate: int, rows: int = 160) -> np.ndarray:
    """Spectrogram in dB with logarithmic frequency, from 40 Hz at row 0 to half the sample rate.

    Args:
        samples: (T,) float, full scale 1. sample_rate: Hz. rows: R.

    Returns:
        float32 (R, W), 0 dB being a full-scale sinusoid, not below -120.
    """
    size = 1 << max(6, round(math.log2(0.064 * sample_rate)))  # 64 ms
    hop = max(size // 4, len(samples) // _MOST_FRAMES)
    window = np.hanning(size + 1)[:-1]
    padded = np.pad(np.asarray(samples, np.float32), (size // 2, size))
    starts = np.arange(0, len(samples), hop)
    frames = np.stack([padded[start : start + size] for start in starts]) * window  # (W, size)
    magnitude = np.abs(np.fft.rfft(frames)).T * (2 / window.sum())  # (W, F) -> (F, W)
    position = np.geomspace(_LOWEST, sample_rate / 2, rows) * size / sample_rate  # of each row, in bins
    below = np.minimum(position.astype(int), len(magnitude) - 2)
    share = (position - below)[:, None]
    picture = (1 - share) * magnitude[below] + share * magnitude[below + 1]
    edges = np.ceil((position[1:] * position[:-1]) ** 0.5).astype(int)  # first bin above each boundary between rows
    for row, (low, high) in enumerate(zip(edges, edges[1:], strict=False), start=1):
        if low < high:  # a row that spans whole bins shows the loudest, so that no partial falls between two rows
            picture[row] = np.maximum(picture[row], magnitude[low:high].max(0))
    return (20 * np.log10(np.maximum(picture, 1e-6))).astype(np.float32)


def spectrogram_sheet(
    path: str | os.PathLike, clips: Sequence[tuple[str, np.ndarray]], sample_rate: int, columns: int | None = None
) -> None:
    """Write the sheet of :func:`spectrogram_figure` to a .png, .pdf or .svg file."""
    check_plot(path)
    spectrogram_figure(clips, sample_rate, columns).savefig(path)


def spectrogram_thumbnail(path: str | os.PathLike, samples: np.ndarray, sample_rate: int) -> None:
    """Write the spectrogram of one clip, samples (T,), as a small PNG of 256 colours without axes, for pages of many.

    Left to right is time, bottom to top 40 Hz to half the sample rate on a logarithmic scale, as on a sheet.
    """
    from matplotlib import colormaps
    from PIL import Image

    check_plot(path)
    levels = log_spectrogram(samples, sample_rate)[::-1]
    levels = ((levels - levels.max()) / _RANGE + 1).clip(0, 1) * 255
    picture = Image.fromarray(levels.round().astype(np.uint8)).resize(_THUMBNAIL, Image.Resampling.BILINEAR)
    picture.putpalette((colormaps["magma"](range(256))[:, :3] * 255).round().astype(np.uint8).tobytes())
    picture.save(path, optimize=True)


def spectrogram_figure(clips: Sequence[tuple[str, np.ndarray]], sample_rate: int, columns: int | None = None) -> Figure:
    """The spectrograms of clips (title, samples (T,)) on one sheet, all on one scale of loudness.

    Args:
        columns: clips side by side; default a sheet about as wide as high.
    """
    columns = min(len(clips), columns or math.ceil(math.sqrt(len(clips))))
    lines = math.ceil(len(clips) / columns)
    figure = new_figure(2.6 * columns + 1.2, 2.1 * lines + 0.6)
    axes = figure.subplots(lines, columns, squeeze=False)
    pictures = [log_spectrogram(samples, sample_rate) for _, samples in clips]
    top = max(float(picture.max()) for picture in pictures)
    image = None
    for axis in axes.flat[len(clips) :]:
        axis.set_axis_off()
    for number, (axis, (title, samples), picture) in enumerate(zip(axes.flat, clips, pictures, strict=False)):
        seconds, rows = len(samples) / sample_rate, len(picture)
        image = axis.imshow(
            picture,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=top - _RANGE,
            vmax=top,
            extent=(0, seconds, 0, rows),
        )
        axis.set_title(title, fontsize=8, parse_math=False)
        ticks = [tick for tick in _TICKS if _LOWEST <= tick <= sample_rate / 2]
        axis.set_yticks(
            [rows * math.log(tick / _LOWEST) / math.log(sample_rate / 2 / _LOWEST) for tick in ticks],
            [f"{tick / 1000:g}k" if tick >= 1000 else str(tick) for tick in ticks],
        )
        axis.tick_params(labelsize=7)
        axis.label_outer()
        if number % columns == 0:
            axis.set_ylabel("Hz", fontsize=8)
        if number >= len(clips) - columns:
            axis.set_xlabel("s", fontsize=8)
            axis.tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=axes, label="dB", fraction=0.02)
    bar.ax.tick_params(labelsize=7)
    return figure
