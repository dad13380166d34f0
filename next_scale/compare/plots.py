"""Plots of a comparison as SVG for a page: small, one panel each, in the colours of the page's text."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from next_scale.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_COLOURS = {"next_scale": "#d55e00", "next_token": "#3a86d0", "masked": "#009e73", "flow": "#cc79a7"}
_OTHERS = (
    "#e69f00",
    "#56b4e9",
    "#a6761d",
    "#8c8c8c",
    "#4b9b37",
    "#a05ec4",
)  # with those above, told apart by colour-blind people too
_INK = "#010203"  # stands for the page's colour of text
_MARKERS = "osD^v"

Line = tuple[str, Sequence[float], Sequence[float]]
"""Label, x and y."""


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for every name, always the same for a family of this project."""
    others = iter(_OTHERS * (len(names) // len(_OTHERS) + 1))
    return {name: _COLOURS.get(name) or next(others) for name in names}


def line_plot(
    lines: Sequence[Line], colours: Mapping[str, str], title: str, x: str, y: str,
    log: str = "", smooth: Sequence[Line] = (), names: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Lines of one panel as SVG.

    Args:
        lines: of points; of lines with one label the first is named.
        colours: of labels.
        log: axes that are logarithmic, such as "xy".
        smooth: further lines without points, dashed.
        names: what labels are called, where not by themselves.
    """
    figure, axis = _panel(title, x, y, log)
    named = set()
    for label, xs, ys in lines:
        shown = None if label in named else (names or {}).get(label, label)
        named.add(label)
        axis.plot(xs, ys, color=colours[label], marker="o", ms=3, lw=1.4, label=shown)
    for label, xs, ys in smooth:
        axis.plot(xs, ys, color=colours[label], ls="--", lw=1)
    return _svg(figure, axis, len(named))


def scatter_plot(
    points: Sequence[tuple[str, str, float, float, float]], colours: Mapping[str, str], title: str, x: str, y: str,
    level: tuple[str, float] | None = None, log: str = "x", names: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Points of one panel as SVG.

    Args:
        points: label, kind (each with a marker of its own), x, y, and the standard deviation of y.
        level: name and height of a line across, such as a floor.
    """
    figure, axis = _panel(title, x, y, log)
    kinds = list(dict.fromkeys(kind for _, kind, *_ in points))
    named = set()
    for label, kind, at, height, spread in points:
        shown = None if label in named else (names or {}).get(label, label)
        named.add(label)
        marker = _MARKERS[kinds.index(kind) % len(_MARKERS)]
        axis.errorbar(at, height, spread or None, color=colours[label], marker=marker, ms=6, ls="", label=shown)
    if len(kinds) > 1:
        for kind, marker in zip(kinds, _MARKERS, strict=False):
            axis.plot([], [], color=_INK, marker=marker, ls="", ms=5, label=kind)
    if level:
        axis.axhline(level[1], color=_INK, lw=0.8, ls=":", label=level[0])
    return _svg(figure, axis, len(named) + len(kinds) + bool(level))


def interval_plot(rows: Sequence[tuple[str, float, float, float]], title: str, x: str) -> str:
    """Values with intervals, one below the other, around 0."""
    figure, axis = _panel(title, x, "", "", height=1.1 + 0.32 * len(rows))
    for place, (_, value, low, high) in enumerate(rows):
        decided = not low <= 0 <= high
        axis.plot([low, high], [place, place], color=_COLOURS["next_scale"], lw=2, alpha=1 if decided else 0.45)
        axis.plot(value, place, "o", color=_COLOURS["next_scale"], ms=5)
    axis.axvline(0, color=_INK, lw=0.8)
    axis.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    return _svg(figure, axis, 0)


def _panel(title: str, x: str, y: str, log: str, height: float = 2.9):
    figure = new_figure(4.0, height)
    axis = figure.add_subplot()
    axis.set_title(title, fontsize=9, color=_INK, parse_math=False)
    axis.set_xlabel(x, fontsize=9, color=_INK)
    axis.set_ylabel(y, fontsize=9, color=_INK)
    if "x" in log:
        axis.set_xscale("log")
    if "y" in log:
        axis.set_yscale("log")
    return figure, axis


def _label_log(axis: Axis) -> None:
    """Label 1, 2 and 5 of a narrow range, powers of ten of a wide one, as plain numbers or with a prefix."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,), numticks=9))
    prefixed = EngFormatter(sep="")
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if 1e-4 < x < 1e4 else prefixed(x)))
    axis.set_minor_formatter(NullFormatter())


def _svg(figure, axis: Axes, named: int) -> str:
    from matplotlib import rc_context

    if named > 1:
        axis.legend(fontsize=7.5, frameon=False, labelcolor=_INK)
    axis.tick_params(which="both", labelsize=8, color=_INK, labelcolor=_INK)
    for one in (axis.xaxis, axis.yaxis):
        if one.get_scale() == "log":
            _label_log(one)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[:].set_color(_INK)
    axis.patch.set_alpha(0)
    found = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(found, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = found.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
