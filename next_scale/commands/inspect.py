"""What a data set holds, as a table on the terminal: the end of ``data inspect`` in every program."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from next_scale.cli import progress
from next_scale.splits import SPLITS

if TYPE_CHECKING:
    from torch.utils.data import Dataset


def read_all(open_data: Callable[[], Dataset], log: str) -> Dataset:
    """Open a data set and read every item of it; the files that it skips are listed later and not logged.

    Args:
        log: name of the logger that tells of skipped files.
    """
    logger = logging.getLogger(log)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        data = open_data()
        with progress("reading", len(data)) as advance:
            for index in range(len(data)):
                data[index]
                advance(1)
    finally:
        logger.setLevel(level)
    return data


def print_contents(
    title: str, counts: Counter[tuple[str, str]], skipped: Sequence[tuple[str, str]], items: str
) -> None:
    """Print a table of classes and splits, the files that would be skipped, and a line of totals.

    Args:
        title: the first line.
        counts: (class, split) -> number of items.
        skipped: (path, reason) of each file left out.
        items: what the items are called, in the plural.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_footer=True)
    table.add_column("class", footer="all")
    for split in SPLITS:
        table.add_column(split, f"{sum(n for (_, s), n in counts.items() if s == split):,}", justify="right")
    for label in sorted({label for label, _ in counts}):
        table.add_row(Text(label), *(f"{counts[label, split]:,}" for split in SPLITS))
    print(title)
    Console().print(table)
    for path, reason in skipped:
        print(f"skipped {path}: {reason}")
    print(f"{sum(counts.values()):,} {items}; {len(skipped)} skipped")
