"""Prefix attention as a few calls of PyTorch's own attention, run of queries by run: the fast path of CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from next_scale.kernels.prefix_attention.prefix import Prefix
from next_scale.kernels.prefix_attention.reference import normalised


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None, dropout: float = 0.0,
    causal: bool = False,
) -> Tensor:  # fmt: skip
    """Scaled dot product attention of (B, L, H, d) queries with (B, S, H, d) keys and values, to (B, L, H, d).

    Tokens come before heads, the order of the linear layers around it, so that no gradient needs to be reordered.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, L, H, d) -> (B, H, L, d)
    if q.device.type == "cpu" and q.requires_grad and q.dtype in (torch.bfloat16, torch.float16):
        # the backward of PyTorch's flash attention takes three times as long in bf16 as in float32 on CPUs
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, dropout, causal, scale=scale)
        out = out.to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale)
    return out.transpose(1, 2)  # (B, H, L, d) -> (B, L, H, d)


def prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, prefix: Prefix, scale: float, head_scale: Tensor | None, dropout: float
) -> Tensor:
    """See :func:`next_scale.kernels.prefix_attention.op.prefix_attention`."""
    q, k = normalised(q, k, head_scale)
    if prefix.causal:
        return attend(q, k[:, : prefix.length], v[:, : prefix.length], None, scale, dropout, causal=True)
    parts = []
    for start, stop, keys, name in prefix.calls:
        mask = None if name is None else getattr(prefix, name)
        parts.append(attend(q[:, start:stop], k[:, :keys], v[:, :keys], mask, scale, dropout))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
