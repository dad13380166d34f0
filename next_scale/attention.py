"""Prefix attention as a module (causal, scale-causal and full attention are cases), the KV cache, self-attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale import flops
from next_scale.kernels.prefix_attention import Prefix, prefix_attention
from next_scale.kernels.prefix_attention.grouped import attend
from next_scale.kernels.prefix_attention.reference import normalised
from next_scale.packed import PackedLinear, pack_linear


class PrefixAttention(Prefix):
    """Attention in which query i sees the keys [0, visible_end[i]), without an L x L mask.

    Args and errors as of :class:`next_scale.kernels.prefix_attention.Prefix`.

    Shape notation: B batch, H heads, L queries, S keys, d width of a head.
    """

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None = None,
        dropout: float = 0.0,
        head_scale: Tensor | None = None,
    ) -> Tensor:
        """(B, L, H, d) queries, (B, S, H, d) keys and values, S at least max(visible_end), to (B, L, H, d).

        Other arguments as of :func:`next_scale.kernels.prefix_attention.prefix_attention`.
        """
        return prefix_attention(q, k, v, self, scale, head_scale, dropout)


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
        """(B, L, D) -> (B, L, D). With `cache` the tokens see all cached ones and each other, or what `prefix` says.

        With both, `prefix` counts its keys from the first cached one.
        """
        B, L, D = x.shape
        packed = isinstance(self.qkv, PackedLinear)
        if packed:
            qkv = self.qkv(x)
        else:
            flops.report_product(x, self.qkv.weight, 3 * D)
            qkv = F.linear(x, self.qkv.weight, self._bias())
        q, k, v = (part.view(B, L, self.heads, -1) for part in qkv.chunk(3, dim=-1))  # (B, L, 3 D) -> 3 x (B, L, H, d)
        head_scale = None if self.log_scale is None else self.log_scale.squeeze(1).clamp(max=math.log(100.0)).exp()
        dropout = self.dropout if self.training else 0.0
        if cache is None and prefix is not None:
            out = prefix(q, k, v, self.softmax_scale, dropout, head_scale)
        else:
            q, k = normalised(q, k, head_scale)
            if cache is not None:
                k, v = cache.append(layer, k, v)
            if prefix is not None:
                out = prefix(q, k, v, self.softmax_scale, dropout)
            else:
                flops.report_attention(q, k.shape[1])
                out = attend(q, k, v, scale=self.softmax_scale, dropout=dropout)
        return F.dropout(self.proj(out.flatten(2)), self.dropout, self.training)  # (B, L, H, d) -> (B, L, D)

    def _bias(self) -> Tensor:
        """Of q, k and v: (3 D,)."""
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def pack(self, int8: bool = False) -> None:
        """Keep weights for generation only, see :func:`next_scale.packed.pack_linear`."""
        self.qkv = pack_linear(self.qkv, int8, bias=self._bias())
        self.proj = pack_linear(self.proj, int8)
