"""The gradients of the step between scales, spelled out: operators have no gradients of their own inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from next_scale.kernels.pyramid_step.axes import axis_down, axis_up
from next_scale.resample import upsample

Size = tuple[int, ...]


def pyramid_step_backward(
    grad: Tensor, grad_shown: Tensor, tokens: Tensor, codes: Tensor, weight: Tensor | None, ratio: float, size: Size,
    shown: Size, upsampling: str, codes_learn: bool, phi_learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the latent, the codes, and phi's weight and bias; empty where not wanted.

    That of the latent is `grad` itself where nothing is shown, and then empty too.

    Args:
        grad, grad_shown: of what the step returned, (B, C, *grid) and (B, n', C).
        codes_learn, phi_learns: whose gradients are wanted.
        others: see :func:`next_scale.kernels.pyramid_step.op.pyramid_step`.
    """
    grid, none = tuple(grad.shape[2:]), grad.new_empty(0)
    grad_latent = grad_codes = grad_weight = grad_bias = none
    if shown:
        grad = grad_latent = with_shown(grad, grad_shown, shown)
    grad_up = grad
    if weight is not None and (codes_learn or phi_learns):
        chosen = F.embedding(tokens, codes).transpose(1, 2).unflatten(2, size)  # (B, n, C) -> (B, C, *size)
        grad_conv, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad * ratio, upsample(chosen, grid, upsampling), weight, weight.shape[:1], [1] * len(grid),
            [side // 2 for side in weight.shape[2:]], [1] * len(grid), False, [0] * len(grid), 1,
            [codes_learn, phi_learns, phi_learns],
        )  # fmt: skip
        if codes_learn:
            grad_up = grad_conv.add_(grad, alpha=1 - ratio)
        grad_weight, grad_bias = (grad_weight.contiguous(), grad_bias) if phi_learns else (none, none)
    if codes_learn:
        axes = (axis_up(n, to, upsampling, grad.device, grad.dtype).t() for n, to in zip(size, grid, strict=True))
        rows = _along_axes(grad_up, *axes).flatten(2).transpose(1, 2).flatten(0, 1)  # (B, C, *size) -> (B n, C)
        grad_codes = torch.zeros_like(codes).index_add_(0, tokens.flatten(), rows)
    # outputs of an operator share no memory
    return tuple(x.clone() if x is none else x for x in (grad_latent, grad_codes, grad_weight, grad_bias))


def with_shown(grad: Tensor, grad_shown: Tensor, shown: Size) -> Tensor:
    """Gradient of the sum, with what comes through the sum at the size `shown`."""
    maps = grad_shown.transpose(1, 2).unflatten(2, shown)  # (B, n', C) -> (B, C, *shown)
    sizes = zip(grad.shape[2:], shown, strict=True)
    axes = (axis_down(n, to, grad.device, grad.dtype).t() for n, to in sizes)
    return (grad + _along_axes(maps, *axes)).contiguous()


def _along_axes(maps: Tensor, *matrices: Tensor) -> Tensor:
    """A matrix (to, from) along every axis of the grid: (B, C, *from) -> (B, C, *to)."""
    for axis, matrix in enumerate(matrices, start=2):
        maps = torch.tensordot(maps, matrix, dims=([axis], [1])).movedim(-1, axis)
    return maps
