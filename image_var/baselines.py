"""What is measured beside our tokenizers: JPEG and WebP, as Pillow codes them.

Shape notation: N images, C channels, H W image.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from image_var.io import to_picture

_BLOCK = 16  # side of what both code as a unit (JPEG 8 or 16, WebP 16): no unit lies across two images
_MOST_SIDE = 16_000  # of a sheet; WebP's own limit is 16,383
_MOST_PIXELS = 50_000_000


def coded(images: Tensor, form: str, quality: int) -> tuple[Tensor, float]:
    """Code images and decode them again.

    All of them lie side by side on one sheet, at multiples of 16 pixels with their edges repeated in between, and the
    bits are those of its file, so that the headers of small files do not count.

    Args:
        images: (N, C, H, W) float in -1 .. 1, C being 1 or 3.
        form: "JPEG" or "WEBP".
        quality: 0 to 100.

    Returns:
        (N, C, H, W) float32 in -1 .. 1, and bits per image.
    """
    _, channels, height, width = images.shape
    rows_each, columns_each = (_BLOCK * math.ceil(side / _BLOCK) for side in (height, width))
    most_columns = max(1, _MOST_SIDE // columns_each)
    most = min(most_columns * max(1, _MOST_SIDE // rows_each), max(1, _MOST_PIXELS // (rows_each * columns_each)))
    padded = torch.nn.functional.pad(
        images, (0, columns_each - width, 0, rows_each - height), mode="replicate"
    )  # (N, C, H', W')
    decoded, size = [], 0
    for part in padded.split(most):
        columns = min(most_columns, math.ceil(math.sqrt(len(part))))
        rows = math.ceil(len(part) / columns)
        empty = part[-1:].expand(rows * columns - len(part), -1, -1, -1)  # repeats cost next to nothing
        grid = torch.cat([part, empty]).unflatten(0, (rows, columns))
        sheet = grid.permute(2, 0, 3, 1, 4).reshape(channels, rows * rows_each, columns * columns_each)
        file = io.BytesIO()
        to_picture(sheet).save(file, form, quality=quality)
        size += file.tell()
        with Image.open(file) as picture:
            values = np.array(picture.convert("L" if channels == 1 else "RGB"), np.float32, ndmin=3)
        planes = torch.from_numpy(values if channels == 1 else values.transpose(2, 0, 1)) / 127.5 - 1
        grid = planes.unflatten(1, (rows, rows_each)).unflatten(3, (columns, columns_each))
        tiles = grid.permute(1, 3, 0, 2, 4).flatten(0, 1)  # (C, R, H', Q, W') -> (R * Q, C, H', W')
        decoded.append(tiles[: len(part), :, :height, :width])
    return torch.cat(decoded), 8 * size / len(images)
