"""Drawn icons of instrument families: pictures that share their class words with notes.

White on black like Fashion-MNIST's, each with a place, size, tilt, stroke and brightness of its own.

Shape notation: C channels, S size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset

from image_var.data.fashion import SIZE
from next_scale.data import SampleDataModule
from next_scale.errors import UserError
from next_scale.splits import SPLITS, check_split

_CANVAS = 128  # drawn so large, then made smaller
_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}

Draw = ImageDraw.ImageDraw


def _bass(draw: Draw, pen: int) -> None:
    draw.ellipse((38, 66, 90, 122), fill=255)
    draw.ellipse((46, 48, 82, 84), fill=255)
    draw.line((64, 60, 64, 6), fill=255, width=pen + 3)
    for y in (8, 18):
        draw.line((52, y, 76, y), fill=255, width=pen)


def _brass(draw: Draw, pen: int) -> None:
    draw.line((6, 60, 100, 60), fill=255, width=pen + 2)
    draw.polygon((86, 60, 122, 34, 122, 86), fill=255)
    draw.rounded_rectangle((34, 60, 84, 88), 12, outline=255, width=pen)
    for x in (46, 58, 70):
        draw.line((x, 40, x, 80), fill=255, width=pen + 1)


def _flute(draw: Draw, pen: int) -> None:
    draw.line((8, 98, 120, 30), fill=255, width=pen + 9)
    for step in range(6):
        x, y = 46 + 12 * step, 75 - 7.3 * step
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=0)


def _guitar(draw: Draw, pen: int) -> None:
    draw.ellipse((6, 56, 62, 116), fill=255)
    draw.ellipse((40, 44, 82, 88), fill=255)
    draw.line((60, 66, 118, 12), fill=255, width=pen + 5)
    draw.ellipse((34, 66, 56, 88), fill=0)


def _keyboard(draw: Draw, pen: int) -> None:
    draw.rectangle((6, 36, 122, 96), fill=255)
    for key in range(1, 7):
        x = 6 + 116 * key / 7
        draw.line((x, 36, x, 96), fill=0, width=max(2, pen // 2))
        if key not in (3,):
            draw.rectangle((x - 5, 36, x + 5, 70), fill=0)


def _mallet(draw: Draw, pen: int) -> None:
    for bar in range(6):
        half = 50 - 6 * bar
        draw.rectangle((10 + 19 * bar, 64 - half, 22 + 19 * bar, 64 + half), fill=255)


def _organ(draw: Draw, pen: int) -> None:
    for pipe, height in enumerate((58, 80, 104, 80, 58)):
        x = 10 + 23 * pipe
        draw.rectangle((x, 118 - height, x + 14, 118), fill=255)
        draw.polygon((x + 3, 104, x + 11, 104, x + 7, 90), fill=0)


def _reed(draw: Draw, pen: int) -> None:
    draw.line((26, 16, 44, 10, 52, 20, 52, 84), fill=255, width=pen + 5, joint="curve")
    draw.arc((48, 62, 92, 118), 0, 180, fill=255, width=pen + 8)
    draw.polygon((82, 92, 94, 92, 112, 50, 78, 50), fill=255)


def _string(draw: Draw, pen: int) -> None:
    draw.ellipse((20, 74, 68, 120), fill=255)
    draw.ellipse((26, 44, 62, 84), fill=255)
    draw.line((44, 60, 44, 6), fill=255, width=pen + 2)
    draw.line((74, 120, 116, 10), fill=255, width=pen)
    draw.line((90, 120, 120, 40), fill=255, width=max(2, pen // 2))


def _synth_lead(draw: Draw, pen: int) -> None:
    points = [(6, 96)]
    for tooth in range(3):
        points += [(6 + 39 * (tooth + 1), 30), (6 + 39 * (tooth + 1), 96)]
    draw.line(points, fill=255, width=pen + 2)


def _synth_pad(draw: Draw, pen: int) -> None:
    for shift in (40, 88):
        wave = [(x, shift + 22 * math.sin(2 * math.pi * x / 64)) for x in range(6, 123, 2)]
        draw.line(wave, fill=255, width=pen + 4, joint="curve")


def _vocal(draw: Draw, pen: int) -> None:
    draw.ellipse((42, 6, 86, 62), fill=255)
    draw.arc((28, 20, 100, 86), 0, 180, fill=255, width=pen + 1)
    draw.line((64, 86, 64, 116), fill=255, width=pen + 1)
    draw.line((42, 118, 86, 118), fill=255, width=pen + 2)


_SHAPES: dict[str, Callable[[Draw, int], None]] = {
    "bass": _bass, "brass": _brass, "flute": _flute, "guitar": _guitar, "keyboard": _keyboard, "mallet": _mallet,
    "organ": _organ, "reed": _reed, "string": _string, "synth_lead": _synth_lead, "synth_pad": _synth_pad,
    "vocal": _vocal,
}  # fmt: skip
LABELS = tuple(_SHAPES)


def draw_icon(label: str, generator: torch.Generator | None = None) -> Tensor:
    """An icon, (1, 32, 32) float32 in -1 .. 1; the same for the same state of `generator`.

    Raises:
        UserError: there is no icon of this name.
    """
    if label not in _SHAPES:
        raise UserError(f"there is no icon of '{label}'; icons are of {', '.join(LABELS)}")
    pen, tilt, right, down, size, light = (float(u) for u in torch.rand(6, generator=generator))
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    _SHAPES[label](ImageDraw.Draw(canvas), 4 + round(4 * pen))
    canvas = canvas.rotate(24 * tilt - 12, Image.Resampling.BICUBIC)
    side = 22 + round(6 * size)  # of the 32, so that a border stays free
    small = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float32)
    free = SIZE - side
    top, left = (round(1 + (free - 2) * u) for u in (down, right))
    icon = torch.zeros(1, SIZE, SIZE)
    icon[:, top : top + side, left : left + side] = torch.from_numpy(small) * (0.7 + 0.3 * light) / 127.5
    return icon - 1


class Icons(Dataset):
    """Items {"sample": float32 (C, 32, 32) in -1 .. 1, "condition": {"label": i}}, the same at every call.

    Args:
        split: "train" (four fifths), "validation", "test" (a tenth each), or "all".
        count: icons of each family in all splits together.
        channels: C, 1 or 3 (the same three times).
        seed: of all that varies.
    """

    condition_spec: dict[str, list] = {"label": list(LABELS)}

    def __init__(self, split: str = "train", count: int = 400, channels: int = 1, seed: int = 0) -> None:
        check_split(split)
        if count < 10:
            raise UserError(f"icons come ten a family or more, so that each split has one; got {count}")
        bounds = np.rint(np.cumsum([0, *(_SHARES[name] for name in SPLITS)]) * count).astype(int)
        first, last = (0, count) if split == "all" else bounds[SPLITS.index(split) :][:2]
        self.numbers, self.channels, self.seed = range(first, last), channels, seed

    def __len__(self) -> int:
        return len(self.numbers) * len(LABELS)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        number, label = self.numbers[index // len(LABELS)], index % len(LABELS)
        generator = torch.Generator().manual_seed((self.seed << 32) + number * len(LABELS) + label)
        icon = draw_icon(LABELS[label], generator).expand(self.channels, -1, -1)
        return {"sample": icon, "condition": {"label": label}}


class IconDataModule(SampleDataModule):
    """Batches {"sample": float32 (B, C, 32, 32) in -1 .. 1, "condition": {"label": int64 (B,)}} of icons.

    Args:
        count, channels, seed: see :class:`Icons`.
        batch_size: B. num_workers: loader processes; 0 draws in the training process.
    """

    def __init__(
        self, count: int = 400, batch_size: int = 32, num_workers: int = 0, channels: int = 1, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.count, self.channels = count, channels

    @property
    def name(self) -> str:
        """Name of the data, for files made from it."""
        return f"icons{self.count}"

    def _open(self, split: str) -> Icons:
        return Icons(split, self.count, self.channels, self.seed)
