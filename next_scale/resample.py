"""Changing the size of a latent grid: down by area, up by interpolation, in one or two dimensions."""

import torch.nn.functional as F
from torch import Tensor

UPSAMPLING = {("linear", 1): "linear", ("linear", 2): "bilinear", ("cubic", 2): "bicubic"}


def default_upsampling(dim: int) -> str:
    """Linear in 1D (as SAT, arXiv 2408.09027), cubic in 2D (as VAR, arXiv 2404.02905)."""
    return "linear" if dim == 1 else "cubic"


def downsample(latent: Tensor, size: tuple[int, ...]) -> Tensor:
    """Average over areas: (B, C, *grid) -> (B, C, *size)."""
    return latent if tuple(latent.shape[2:]) == tuple(size) else F.interpolate(latent, size=size, mode="area")


def upsample(latent: Tensor, size: tuple[int, ...], method: str) -> Tensor:
    """Interpolate to a larger grid: (B, C, *grid) -> (B, C, *size); `method` is nearest, linear, or cubic (2D only)."""
    if tuple(latent.shape[2:]) == tuple(size):
        return latent
    if method == "nearest":
        return F.interpolate(latent, size=size, mode="nearest")
    return F.interpolate(latent, size=size, mode=UPSAMPLING[method, len(size)], align_corners=False)
