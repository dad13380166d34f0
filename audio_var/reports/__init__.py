"""Reports on trained models: what they measure, as data, tables, figures and clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; the first column is aligned left, all others right. Floats are given as text."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def number(value: float | None, digits: int) -> str:
    """A figure with so many decimals; nothing where it was not measured."""
    return "" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share as per cent."""
    return "" if value is None else f"{100 * value:.1f}%"


def draw(count: int, total: int, seed: int = 0) -> Tensor:
    """`count` different indices below `total`, in order, or all of them if there are no more: (n,) int64."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values


def write_report(data: dict, text: str, json_path: Path, markdown_path: Path) -> None:
    """Write the figures as JSON and the page as Markdown."""
    json_path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    markdown_path.write_text(text, encoding="utf-8")
