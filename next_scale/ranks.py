"""Several processes that train as one: what they draw, sum and log is what one process would with the whole batch.

Of R processes, number r has the samples r, r + R, r + 2 R, ... of the whole batch, as a DistributedSampler deals them.
All draw the same random numbers, those of the whole batch, and use their own rows of them: so their generators stay in
step, a checkpoint needs the state of one only, and the number of processes changes nothing but rounding.

Shape notation: R processes, B samples of this process's batch, R B of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """Number of processes, R; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def own_rows(draw: Callable[[int], Tensor], batch: int) -> Tensor:
    """Random numbers for this process's samples.

    Args:
        draw: gives those of so many samples, one a row, such as ``torch.rand``.
        batch: B, the same in all processes.

    Returns:
        (B, ...), of the (R B, ...) drawn.
    """
    if count() == 1:
        return draw(batch)
    return draw(batch * count())[rank() :: count()]


def total(values: Tensor) -> Tensor:
    """Sum over the processes, which all must call this; without gradient."""
    if count() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def mean(values: Tensor) -> Tensor:
    """Mean over the processes, which all must call this; without gradient."""
    return values if count() == 1 else total(values) / count()


def mean_of(values: dict[str, Tensor], samples: int) -> tuple[dict[str, Tensor], int]:
    """Named scalars, each its mean over the processes weighted by their numbers of samples, and the sum of these."""
    if count() == 1:
        return values, samples
    stacked = torch.stack([value.detach().float() for value in values.values()])
    weighted = total(torch.cat([samples * stacked, stacked.new_full((1,), samples)]))  # in one exchange
    return dict(zip(values, (weighted[:-1] / weighted[-1]).unbind(), strict=True)), int(weighted[-1])


def pick_rows(own: Tensor, picked: Tensor, group: int = 1) -> Tensor:
    """Rows of the whole batch, brought to all processes.

    Args:
        own: (B g, C) of this process; the g = `group` rows of a sample stand together.
        picked: (n,) int64 below R B g, the same in all processes.

    Returns:
        (n, C).
    """
    processes = count()
    if processes == 1:
        return own[picked]
    sample, place = picked // group, picked % group
    rows = own[sample // processes * group + place]
    return total(torch.where((sample % processes == rank())[:, None], rows, 0))


def draw_together() -> None:
    """Let all processes go on from the first one's random numbers, after work that may have drawn differently."""
    if count() == 1:
        return
    states = [[torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None]]
    dist.broadcast_object_list(states, 0)
    torch.set_rng_state(states[0][0])
    if states[0][1] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[0][1])
