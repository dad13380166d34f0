"""The step between scales as matrix products: the fast path of CPUs.

Upsampling, convolution and mixing are linear. A scale of few tokens therefore meets the convolution's matrices at its
own size, and one product with constants then brings every tap to its place on the full grid.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from next_scale.kernels.pyramid_step.axes import axis_up
from next_scale.resample import upsample

Size = tuple[int, ...]


def add_scale(
    latent: Tensor, tokens: Tensor, codes: Tensor, weight: Tensor | None, bias: Tensor | None, ratio: float, size: Size,
    upsampling: str,
) -> Tensor:  # fmt: skip
    """As :func:`next_scale.kernels.pyramid_step.reference.add_scale`."""
    grid = tuple(latent.shape[2:])
    chosen = F.embedding(tokens, codes)  # (B, n, C)
    count, channels, cells = chosen.shape[1], chosen.shape[2], latent[0, 0].numel()
    if weight is not None and count * (channels + cells) < 0.9 * channels * cells:  # the products that it takes
        placed = _placed_taps(size, grid, upsampling, tuple(weight.shape[2:]), latent.device, latent.dtype)
        mixed = (chosen @ _mixing(weight, ratio)).view(chosen.shape[0], -1, channels)  # (B, n, T C) -> (B, n T, C)
        part = torch.baddbmm((ratio * bias)[None, None], placed.expand(mixed.shape[0], -1, -1), mixed)
        return latent + part.transpose(1, 2).unflatten(2, grid)  # (B, N, C) -> (B, C, *grid)
    part = _upsample(chosen.transpose(1, 2).unflatten(2, size), grid, upsampling)
    if weight is not None:
        convolve = (F.conv1d, F.conv2d)[len(grid) - 1]
        part = torch.lerp(part, convolve(part, weight, bias, padding=weight.shape[-1] // 2), ratio)
    return latent + part


def _upsample(codes: Tensor, grid: Size, method: str) -> Tensor:
    """As :func:`next_scale.resample.upsample`, whose bicubic is slow on CPUs."""
    if method != "cubic" or codes.device.type != "cpu" or tuple(codes.shape[2:]) == grid:
        return upsample(codes, grid, method)
    sizes = zip(codes.shape[2:], grid, strict=True)
    rows, columns = (axis_up(n, to, method, codes.device, codes.dtype) for n, to in sizes)
    return rows @ (codes @ columns.t())


def _mixing(weight: Tensor, ratio: float) -> Tensor:
    """The matrices of phi's taps side by side: (C, C, *kernel) -> (C in, T C out)."""
    channels, taps = weight.shape[0], weight[0, 0].numel()
    matrices = weight.flatten(2).permute(1, 2, 0) * ratio  # (C out, C in, T) -> (C in, T, C out)
    matrices[:, taps // 2].diagonal().add_(1 - ratio)
    return matrices.reshape(channels, taps * channels)


@lru_cache(maxsize=256)
def _placed_taps(size: Size, grid: Size, method: str, kernel: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What every token gives every cell of the grid through each tap of a convolution: (N, n T)."""
    with torch.inference_mode(False):
        matrix = axis_up(size[0], grid[0], method, device, dtype)
        for n, to in zip(size[1:], grid[1:], strict=True):
            matrix = torch.kron(matrix, axis_up(n, to, method, device, dtype))
        maps = matrix.t().view(1, -1, *grid)  # (N, n) -> (1, n, *grid)
        if len(grid) == 1:
            maps, kernel = maps[:, :, None], (1, *kernel)
        taps = F.unfold(maps, kernel, padding=tuple(side // 2 for side in kernel))[0]  # (n T, N)
        return taps.t().contiguous()
