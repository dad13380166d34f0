"""Figures that need no display: what the reports of all modalities draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # both take long to import: only what draws imports them
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from next_scale.metrics import ScaleUsage


def new_figure(width: float, height: float) -> Figure:
    """A matplotlib figure of this size in inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_confusion(axis: Axes, counts: Sequence[Sequence[int]], labels: Sequence[str]) -> None:
    """Draw how often class i (row) was found to be class j, coloured by the share of its row."""
    counts = np.asarray(counts, dtype=np.float64)
    share = counts / counts.sum(1, keepdims=True).clip(1)
    colours = axis.imshow(share, vmin=0, vmax=1, cmap="viridis")
    for row, column in np.argwhere(counts > 0):
        colour = "white" if share[row, column] < 0.6 else "black"
        axis.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
    axis.set_yticks(range(len(labels)), labels)
    axis.figure.colorbar(colours, ax=axis, label="share of those asked for", fraction=0.04)


def draw_usage(axis: Axes, usage: Sequence[ScaleUsage], codebook_size: int) -> None:
    """Draw how many codes each scale uses, and their perplexity, below the line of all codes."""
    scales = range(1, len(usage) + 1)
    axis.bar(scales, [use.used for use in usage], color="0.85", label="codes used")
    axis.bar(scales, [use.perplexity for use in usage], width=0.5, label="perplexity")
    axis.axhline(codebook_size, color="k", lw=0.8)
    axis.set(xlabel="scale", ylabel="codes", xticks=list(scales))
    axis.legend()
