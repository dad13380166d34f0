"""The definition of the step between scales, and of a whole pyramid as so many steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from next_scale.resample import downsample, upsample

Size = tuple[int, ...]
Step = Callable[..., Tensor]


def show(latent: Tensor, size: Size) -> Tensor:
    """The latent at a scale's size: (B, C, *grid) -> (B, n, C)."""
    return downsample(latent, size).flatten(2).transpose(1, 2)  # (B, C, *size) -> (B, n, C)


def add_scale(
    latent: Tensor, tokens: Tensor, codes: Tensor, weight: Tensor | None, bias: Tensor | None, ratio: float, size: Size,
    upsampling: str,
) -> Tensor:  # fmt: skip
    """The latent with one more scale; arguments as :func:`next_scale.kernels.pyramid_step.op.pyramid_step`."""
    grid = tuple(latent.shape[2:])
    part = codes[tokens].transpose(1, 2).unflatten(2, size)  # (B, n, C) -> (B, C, *size)
    part = upsample(part, grid, upsampling)
    if weight is not None:
        convolve = (F.conv1d, F.conv2d)[len(grid) - 1]
        part = torch.lerp(part, convolve(part, weight, bias, padding=weight.shape[-1] // 2), ratio)
    return latent + part


def pyramid_inputs(
    tokens: Tensor, codes: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], ratio: float,
    phis: Sequence[int], sizes: Sequence[Size], upsampling: str, step: Step = add_scale,
) -> Tensor:  # fmt: skip
    """See :func:`next_scale.kernels.pyramid_step.op.pyramid_inputs`."""
    latent = codes[0].new_zeros(tokens.shape[0], codes[0].shape[1], *sizes[-1])
    shown = []
    for k, ids in enumerate(tokens.split([_count(size) for size in sizes], dim=1)[:-1]):
        phi = (weights[phis[k]], biases[phis[k]]) if weights else (None, None)
        latent = step(latent, ids, codes[k % len(codes)], *phi, ratio, sizes[k], upsampling)
        shown.append(show(latent, sizes[k + 1]))
    return torch.cat(shown, dim=1) if shown else latent.new_zeros(tokens.shape[0], 0, latent.shape[1])


def pyramid_tokens(
    target: Tensor, codes: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], ratio: float,
    phis: Sequence[int], sizes: Sequence[Size], upsampling: str, cosine: bool, nearest: Callable[..., Tensor],
    step: Step = add_scale,
) -> Tensor:  # fmt: skip
    """See :func:`next_scale.kernels.pyramid_step.op.pyramid_tokens`; `nearest` as ``nearest_code``."""
    latent, tokens = torch.zeros_like(target), []
    for k, size in enumerate(sizes):
        vectors = show(target - latent, size).flatten(0, 1)  # (B, n, C) -> (B n, C)
        tokens.append(nearest(vectors, codes[k % len(codes)], cosine).view(target.shape[0], -1))
        if k + 1 < len(sizes):
            phi = (weights[phis[k]], biases[phis[k]]) if weights else (None, None)
            latent = step(latent, tokens[-1], codes[k % len(codes)], *phi, ratio, size, upsampling)
    return torch.cat(tokens, dim=1)


def _count(size: Size) -> int:
    return torch.Size(size).numel()
