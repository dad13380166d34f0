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
    shown: Size, upsampling: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the latent, the codes, and phi's weight and bias (empty without a phi).

    Args:
        grad, grad_shown: of what the step returned, (B, C, *grid) and (B, n', C).
        others: see :func:`next_scale.kernels.pyramid_step.op.pyramid_step`.
    """
    grid = tuple(grad.shape[2:])
    total = grad.clone(memory_format=torch.contiguous_format)
    if shown:
        maps = grad_shown.transpose(1, 2).unflatten(2, shown)  # (B, n', C) -> (B, C, *shown)
        axes = (axis_down(n, to, grad.device, grad.dtype).t() for n, to in zip(grid, shown, strict=True))
        total += _along_axes(maps, *axes)
    grad_up, grad_weight, grad_bias = total, codes.new_empty(0), codes.new_empty(0)
    if weight is not None:
        chosen = F.embedding(tokens, codes).transpose(1, 2).unflatten(2, size)  # (B, n, C) -> (B, C, *size)
        found = torch.ops.aten.convolution_backward(
            total * ratio, upsample(chosen, grid, upsampling), weight, weight.shape[:1], [1] * len(grid),
            [side // 2 for side in weight.shape[2:]], [1] * len(grid), False, [0] * len(grid), 1, [True] * 3,
        )  # fmt: skip
        grad_up, grad_weight, grad_bias = found[0].add_(total, alpha=1 - ratio), found[1].contiguous(), found[2]
    axes = (axis_up(n, to, upsampling, grad.device, grad.dtype).t() for n, to in zip(size, grid, strict=True))
    maps = _along_axes(grad_up, *axes)
    rows = maps.flatten(2).transpose(1, 2).flatten(0, 1)  # (B, C, *size) -> (B n, C)
    return total, torch.zeros_like(codes).index_add_(0, tokens.flatten(), rows), grad_weight, grad_bias


def _along_axes(maps: Tensor, *matrices: Tensor) -> Tensor:
    """A matrix (to, from) along every axis of the grid: (B, C, *from) -> (B, C, *to)."""
    for axis, matrix in enumerate(matrices, start=2):
        maps = torch.tensordot(maps, matrix, dims=([axis], [1])).movedim(-1, axis)
    return maps
