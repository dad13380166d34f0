"""Prefix attention for callers, and the operators ``next_scale::prefix_attention`` and ``..._backward`` of its kernel.

Only the kernel is an operator of its own. The paths in PyTorch are compositions of PyTorch's operators, which
``torch.compile`` keeps whole as they are: inside an operator they would lose PyTorch's backward of attention, which
keeps the log-sum-exp of the forward pass, and have to run the forward pass twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from next_scale import flops
from next_scale.kernels.dispatch import dispatch
from next_scale.kernels.prefix_attention import cuda, grouped, reference
from next_scale.kernels.prefix_attention.prefix import Prefix


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: Prefix,
    scale: float | None = None,
    head_scale: Tensor | None = None,
    dropout: float = 0.0,
    implementation: str = "auto",
) -> Tensor:
    """Attention in which query i sees the keys [0, visible_end[i]): softmax(scale * q k^T) v over these.

    Args:
        q: (B, L, H, d) float.
        k, v: (B, S, H, d) float, S at least the greatest `visible_end`.
        prefix: what each query sees.
        scale: factor on q k^T; None is 1 / sqrt(d).
        head_scale: (H,) float: take q and k at unit length, and q times this (Swin V2, arXiv 2111.09883, section 3.2);
            None takes them as they are.
        dropout: of the weights; the kernel has none.
        implementation: see :func:`next_scale.kernels.dispatch.dispatch`. ``torch`` is PyTorch's own attention, called
            scale by scale.

    Returns:
        (B, L, H, d), differentiable in q, k, v and head_scale.

    Raises:
        ValueError: L is not the prefix's, or there are fewer keys than it sees.
        UserError: the implementation asked for cannot run here.

    Shape notation: B batch, H heads, L queries, S keys, d width of a head.
    """
    if q.shape[1] != prefix.length or k.shape[1] < prefix.keys:
        raise ValueError(
            f"{q.shape[1]} queries and {k.shape[1]} keys: the prefix has {prefix.length} and sees {prefix.keys}"
        )
    flops.report_attention(q, prefix.keys_a_query)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    chosen = _choose(implementation, q.device, (q.dtype, k.dtype, v.dtype), q.shape[-1], dropout)
    if chosen == "cuda":
        return _prefix_attention(q, k, v, prefix.visible_end, head_scale, scale)[0]
    if chosen == "reference":
        return reference.prefix_attention(q, k, v, prefix.visible_end, scale, head_scale, dropout)
    return grouped.prefix_attention(q, k, v, prefix, scale, head_scale, dropout)


@torch.compiler.assume_constant_result
def _choose(implementation: str, device: torch.device, dtypes: tuple, width: int, dropout: float) -> str:
    """The name of the implementation that runs. ``torch.compile`` asks once, while it traces."""

    def ready() -> str:
        cuda.prepare(device, dtypes[0], width)  # so that `auto` falls back here and not in the middle of a model
        return "cuda"

    return dispatch(
        "prefix_attention",
        implementation,
        lambda: cuda.unable(device, dtypes, width, dropout),
        cuda=ready,
        torch=lambda: "torch",
        reference=lambda: "reference",
    )


@torch.library.custom_op("next_scale::prefix_attention", mutates_args=(), device_types="cuda")
def _prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, visible_end: Tensor, head_scale: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return cuda.forward(q, k, v, visible_end, head_scale, scale)


@_prefix_attention.register_fake
def _(q, k, v, visible_end, head_scale, scale) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("next_scale::prefix_attention_backward", mutates_args=(), device_types="cuda")
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    visible_end: Tensor,
    head_scale: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cuda.backward(grad, q, k, v, out, log_sum, visible_end, head_scale, scale)


@_backward.register_fake
def _(grad, q, k, v, out, log_sum, visible_end, head_scale, scale) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_head_scale = q.new_empty(0 if head_scale is None else head_scale.shape, dtype=torch.float32)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), of_head_scale


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, visible_end, head_scale, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, visible_end, head_scale)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor | None, _: Tensor | None) -> tuple:
    """Gradients of what is differentiable; that of the log-sum-exp, which no caller sees, is left out."""
    if grad is None:
        return (None,) * 6
    q, k, v, out, log_sum, visible_end, head_scale = ctx.saved_tensors
    *of_qkv, of_head_scale = _backward(grad, q, k, v, out, log_sum, visible_end, head_scale, ctx.scale)
    return *of_qkv, None, None if head_scale is None else of_head_scale.to(head_scale.dtype), None


_prefix_attention.register_autograd(_differentiate, setup_context=_save)
