"""Pictures of many images in rows and columns, with names.

Shape notation: R rows, Q columns, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from next_scale.figure import new_figure

_CELL = 0.62  # inches a column and a row
_GAP = 2  # pixels between images


@dataclass(frozen=True)
class Sheet:
    """R rows of Q images (C, H, W) in -1 .. 1 each under one title; `columns`: Q names, or none."""

    title: str
    rows: Sequence[Sequence[Tensor]]
    columns: Sequence[str] = ()


def draw_sheets(sheets: Sequence[Sheet], names: Sequence[str], path: Path) -> None:
    """Write sheets side by side as a PNG; `names` are those of the rows, which all sheets share."""
    widths = [len(sheet.rows[0]) for sheet in sheets]
    figure = new_figure(_CELL * sum(widths) + 0.4 * len(sheets) + 1.0, _CELL * len(names) + 1.1)
    panels = figure.subplots(1, len(sheets), squeeze=False, width_ratios=widths)[0]
    for axis, sheet, columns in zip(panels, sheets, widths, strict=True):
        every = torch.stack([picture for row in sheet.rows for picture in row])  # (R Q, C, H, W)
        height, width = (side + _GAP for side in every.shape[2:])
        grid = make_grid(every / 2 + 0.5, nrow=columns, padding=_GAP, pad_value=1.0)
        axis.imshow(grid.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(sheet.title, fontsize=9)
        labels = list(names) if axis is panels[0] else []
        axis.set_yticks([(i + 0.5) * height for i in range(len(labels))], labels, fontsize=8)
        places = [(i + 0.5) * width for i in range(len(sheet.columns))]
        axis.set_xticks(places, sheet.columns, fontsize=7)
        axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        axis.spines[:].set_visible(False)
    figure.savefig(path, format="png")
