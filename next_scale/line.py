"""Orders that make a line of a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from next_scale.errors import UserError


def raster_line(height: int, width: int) -> Tensor:
    """Place in the flattened grid of every step along its rows: (P,) int64.

    Shape notation: P = height * width.
    """
    return torch.arange(height * width)


def hilbert_line(height: int, width: int) -> Tensor:
    """Place in the flattened grid of every step along Hilbert's curve, whose neighbours stay neighbours: (P,) int64.

    It starts in the corner of row 0 and column 0, and its first quarter lies in one quadrant, and so on down
    (Hilbert, Math. Ann. 38, 1891).

    Raises:
        UserError: the grid is no square, or its side no power of two.

    Shape notation: P = height * width.
    """
    if height != width or height < 1 or height & (height - 1):
        raise UserError(f"Hilbert's curve fills squares whose side is a power of two, not {height} x {width}")
    rows, columns = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    side = 1
    while side < height:
        # four copies of the curve so far: mirrored at the diagonal, moved right, both, mirrored at the other diagonal
        rows, columns = (
            torch.cat([columns, rows, rows + side, 2 * side - 1 - columns]),
            torch.cat([rows, columns + side, columns + side, side - 1 - rows]),
        )
        side *= 2
    return rows * width + columns


LINES = {"raster": raster_line, "hilbert": hilbert_line}


def line_of(name: str, height: int, width: int) -> Tensor:
    """The order of that name, see :data:`LINES`. Raises UserError for another."""
    if name not in LINES:
        raise UserError(f"unknown order '{name}': choose one of {', '.join(LINES)}")
    return LINES[name](height, width)
