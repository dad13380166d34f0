"""Which keys each query sees, and what the implementations derive from it once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCK = 64  # short runs of queries share one masked call of at most this many; measured fastest on two CPU cores


class Prefix(nn.Module):
    """Query i sees the keys [0, visible_end[i]). Its tensors are buffers, so that they follow a model to its device.

    Queries with equal `visible_end` form a run. In `calls`, a run of more than half of `BLOCK` queries is one unmasked
    call over the keys it sees; shorter neighbours are gathered into masked calls of at most `BLOCK` queries, so that no
    mask is wider than that. Next-token prediction (visible_end[i] = i + 1) is `causal` instead and has no calls.

    Args:
        visible_end: (L,) int64, non-decreasing, every entry at least 1.

    Raises:
        ValueError: `visible_end` is empty, decreases, or starts below 1.

    Shape notation: L queries.
    """

    def __init__(self, visible_end: Tensor) -> None:
        super().__init__()
        ends = visible_end.tolist()
        if not ends or ends[0] < 1 or any(a > b for a, b in zip(ends, ends[1:], strict=False)):
            raise ValueError("visible_end must be non-decreasing and start at 1 or more")
        self.length = len(ends)
        self.keys = ends[-1]  # that any query sees
        self.register_buffer("visible_end", visible_end.to(torch.int32), persistent=False)
        self.causal = len(ends) > 1 and ends == list(range(1, len(ends) + 1))
        self.calls: list[tuple[int, int, int, str | None]] = []  # first query, last + 1, keys seen, name of the mask
        if self.causal:
            self.keys_a_query = (self.length + 1) / 2
            return
        for start, stop in _blocks(ends):
            keys, mask = ends[stop - 1], None
            if ends[start] != keys:
                mask = f"mask_{start}"
                seen = torch.arange(keys) < visible_end[start:stop, None].cpu()  # (q, S)
                self.register_buffer(mask, seen, persistent=False)
            self.calls.append((start, stop, keys, mask))
        self.keys_a_query = sum((stop - start) * keys for start, stop, keys, _ in self.calls) / self.length


def _blocks(ends: list[int]) -> list[tuple[int, int]]:
    """Spans of queries that one call serves: a long run alone, short neighbouring runs together."""
    cuts = [0, *(i for i in range(1, len(ends)) if ends[i] != ends[i - 1]), len(ends)]
    spans: list[tuple[int, int]] = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        if spans and stop - spans[-1][0] <= BLOCK and stop - start <= BLOCK // 2:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return spans
