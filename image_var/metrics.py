"""How near an image is to another.

Shape notation: B batch, C channels, H W image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WINDOW = 11  # side of SSIM's window; smaller images have none
_LEAST_ERROR = 1e-10  # identical images have a PSNR of 100 dB


def squared_error(original: Tensor, estimate: Tensor) -> Tensor:
    """Mean squared error of each image in units of its range: (B, C, H, W) in -1 .. 1, twice -> (B,)."""
    return ((estimate - original) / 2).square().flatten(1).mean(1)


def psnr(error: Tensor | float) -> Tensor | float:
    """Peak signal-to-noise ratio in dB of squared errors in units of the range; at most 100 dB."""
    if isinstance(error, Tensor):
        return -10 * torch.log10(error.clamp_min(_LEAST_ERROR))
    return -10 * math.log10(max(error, _LEAST_ERROR))


def ssim(original: Tensor, estimate: Tensor) -> Tensor | None:
    """Structural similarity (Wang et al., IEEE TIP 13, 2004) of each image, Gaussian window 11, sigma 1.5.

    Shapes: (B, C, H, W) in -1 .. 1, twice -> (B,), or None where an image is smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds to import

    if min(original.shape[2:]) < _WINDOW:
        return None
    pair = ((x + 1) / 2 for x in (estimate, original))
    return structural_similarity_index_measure(*pair, data_range=1.0, reduction="none").view(-1)
