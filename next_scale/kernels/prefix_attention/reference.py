"""The definition of prefix attention, with the mask in full."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalised(q: Tensor, k: Tensor, head_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries and keys (..., H, d) at unit length, the queries times (H,) `head_scale`; as they are without it."""
    if head_scale is None:
        return q, k
    scaled = F.normalize(q, dim=-1) * head_scale[:, None]
    return scaled.to(q.dtype), F.normalize(k, dim=-1)  # a learned scale may be of more precision


def prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, visible_end: Tensor, scale: float, head_scale: Tensor | None, dropout: float
) -> Tensor:
    """See :func:`next_scale.kernels.prefix_attention.op.prefix_attention`."""
    q, k = normalised(q, k, head_scale)
    logits = scale * torch.einsum("blhd,bshd->bhls", q, k)
    hidden = torch.arange(k.shape[1], device=k.device) >= visible_end[:, None]  # (L, S)
    weights = F.dropout(logits.masked_fill(hidden, -torch.inf).softmax(-1), dropout)
    return torch.einsum("bhls,bshd->blhd", weights, v)
