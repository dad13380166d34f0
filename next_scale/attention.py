"""Prefix attention: every query sees a leading run of the keys. Causal, scale-causal and full attention are cases."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale import flops
from next_scale.packed import PackedLinear, pack_linear

BLOCK = 64  # short runs of queries share one masked call of at most this many; measured fastest on two CPU cores


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None, dropout: float = 0.0,
    causal: bool = False,
) -> Tensor:  # fmt: skip
    """Scaled dot product attention of (B, L, H, d) queries with (B, S, H, d) keys and values, to (B, L, H, d).

    Tokens come before heads, the order of the linear layers around it, so that no gradient needs to be reordered.
    """
    flops.report_attention(q, (q.shape[1] + 1) / 2 if causal else k.shape[1])
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, L, H, d) -> (B, H, L, d)
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale)
    return out.transpose(1, 2)  # (B, H, L, d) -> (B, L, H, d)


class PrefixAttention(nn.Module):
    """Attention in which query i sees the keys [0, visible_end[i]), without an L x L mask.

    Queries with equal `visible_end` form a run. A run of more than half of `BLOCK` queries is one unmasked call over
    the keys it sees; shorter neighbours are gathered into masked calls of at most `BLOCK` queries, so no mask is wider
    than that. Next-token prediction (visible_end[i] = i + 1) becomes a single causal call.

    Args:
        visible_end: (L,) int64, non-decreasing, every entry at least 1.

    Raises:
        ValueError: `visible_end` is empty, decreases, or starts below 1.

    Shape notation: B batch, H heads, L queries, S keys, d width of a head.
    """

    def __init__(self, visible_end: Tensor) -> None:
        super().__init__()
        ends = visible_end.tolist()
        if not ends or ends[0] < 1 or any(a > b for a, b in zip(ends, ends[1:], strict=False)):
            raise ValueError("visible_end must be non-decreasing and start at 1 or more")
        self.length = len(ends)
        self.causal = len(ends) > 1 and ends == list(range(1, len(ends) + 1))
        self.calls: list[tuple[int, int, int, str | None]] = []  # first query, last + 1, keys seen, name of the mask
        if self.causal:
            return
        for start, stop in _blocks(ends):
            keys, mask = ends[stop - 1], None
            if ends[start] != keys:
                mask = f"mask_{start}"
                seen = torch.arange(keys) < visible_end[start:stop, None].cpu()  # (q, S)
                self.register_buffer(mask, seen, persistent=False)
            self.calls.append((start, stop, keys, mask))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """(B, L, H, d) queries, (B, S, H, d) keys and values, S at least max(visible_end), to (B, L, H, d)."""
        if self.causal:
            return attend(q, k[:, : self.length], v[:, : self.length], scale=scale, dropout=dropout, causal=True)
        parts = []
        for start, stop, keys, name in self.calls:
            mask = None if name is None else getattr(self, name)
            parts.append(attend(q[:, start:stop], k[:, :keys], v[:, :keys], mask, scale, dropout))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


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


class KVCache:
    """Keys and values of the steps so far, allocated once for the whole sequence and written in place.

    Args:
        depth, batch, heads, length, head_width: sizes of the store (depth, 2, B, H, L, d).

    Shape notation: B batch, H heads, L tokens of the whole sequence, n tokens of this step, d width of a head.
    """

    def __init__(
        self, depth: int, batch: int, heads: int, length: int, head_width: int,
        device: torch.device | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.store = torch.empty(depth, 2, batch, heads, length, head_width, device=device, dtype=dtype)
        self.end = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, n, H, d) keys and values after those of the steps before; return all so far: (B, end + n, H, d)."""
        stop = self.end + k.shape[1]
        keys, values = self.store[layer].transpose(2, 3)  # (2, B, H, L, d) -> 2 x (B, L, H, d)
        keys[:, self.end : stop] = k
        values[:, self.end : stop] = v
        return keys[:, :stop], values[:, :stop]

    def keep(self, batch: int) -> None:
        """Go on with the first `batch` sequences only."""
        self.store = self.store[:, :, :batch]

    def advance(self, count: int) -> None:
        """Every layer has appended `count` tokens: the next step starts after them."""
        self.end += count

    def back(self, count: int) -> None:
        """Forget the last `count` tokens: the next step takes their place."""
        self.end -= count


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for q, k and v; q and v have a bias, k none (as in VAR).

    Args:
        width: D, a multiple of `heads`.
        heads: H.
        qk_norm: normalise q and k to unit length and learn a logit scale per head, at most 100 (Swin V2,
            arXiv 2111.09883, section 3.2).
        softmax_scale: factor on q k^T without `qk_norm`; None is 1 / sqrt(d). VAR has 0.25 / sqrt(64).
        dropout: of the attention weights and of the output.

    Shape notation: B batch, H heads, L tokens, D width, d = D / H.
    """

    def __init__(
        self, width: int, heads: int, qk_norm: bool = False, softmax_scale: float | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.softmax_scale = 1.0 if qk_norm else softmax_scale
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.full((heads, 1), math.log(4.0))) if qk_norm else None
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, prefix: PrefixAttention | None = None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """(B, L, D) -> (B, L, D). With `cache` the tokens see all cached ones and each other; else `prefix` decides."""
        B, L, D = x.shape
        packed = isinstance(self.qkv, PackedLinear)
        if packed:
            qkv = self.qkv(x)
        else:
            flops.report_product(x, self.qkv.weight, 3 * D)
            qkv = F.linear(x, self.qkv.weight, self._bias())
        q, k, v = (part.view(B, L, self.heads, -1) for part in qkv.chunk(3, dim=-1))  # (B, L, 3 D) -> 3 x (B, L, H, d)
        if self.log_scale is not None:
            q = F.normalize(q, dim=-1) * self.log_scale.clamp(max=math.log(100.0)).exp()
            k = F.normalize(k, dim=-1)
        dropout = self.dropout if self.training else 0.0
        if cache is not None:
            k, v = cache.append(layer, k, v)
        if cache is not None or prefix is None:
            out = attend(q, k, v, scale=self.softmax_scale, dropout=dropout)
        else:
            out = prefix(q, k, v, self.softmax_scale, dropout)
        return F.dropout(self.proj(out.flatten(2)), self.dropout, self.training)  # (B, L, H, d) -> (B, L, D)

    def _bias(self) -> Tensor:
        """Of q, k and v: (3 D,)."""
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def pack(self, int8: bool = False) -> None:
        """Keep weights for generation only, see :func:`next_scale.packed.pack_linear`."""
        self.qkv = pack_linear(self.qkv, int8, bias=self._bias())
        self.proj = pack_linear(self.proj, int8)
