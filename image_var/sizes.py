"""What size of image a tokenizer takes.

Shape notation: H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer

_SHOWN = (256, 256)  # where a tokenizer takes any size, and none is asked for


def size_for(tokenizer: Tokenizer, shown: Sequence[int] = _SHOWN) -> tuple[int, int]:
    """(H, W) that a tokenizer takes: its own, or of one for any size the nearest to the image's."""
    schedule, down = tokenizer.quantizer.schedule, tokenizer.autoencoder.downsampling
    if isinstance(schedule, Schedule):
        height, width = tokenizer.autoencoder.size_of(schedule.grid)
    else:
        unit = schedule.strides[0] * down
        height, width = (unit * max(1, round(side / unit)) for side in shown)
    return height, width


def schedule_for(tokenizer: Tokenizer, size: Sequence[int]) -> Schedule:
    """The scales of an image of that (H, W)."""
    schedule, down = tokenizer.quantizer.schedule, tokenizer.autoencoder.downsampling
    return schedule if isinstance(schedule, Schedule) else schedule.at([side // down for side in size])
