"""One axis of a resampling as a matrix: all that :mod:`next_scale.resample` does is linear and separable."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from next_scale.resample import downsample, upsample


@lru_cache(maxsize=256)
def axis_up(size: int, to: int, method: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(to, size), applied from the left; found by resampling the unit vectors."""
    with torch.inference_mode(False):
        return upsample(_units(size, device, dtype), (1, to), method)[0, :, 0].t().contiguous()


@lru_cache(maxsize=256)
def axis_down(size: int, to: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(to, size), applied from the left."""
    with torch.inference_mode(False):
        return downsample(_units(size, device, dtype), (1, to))[0, :, 0].t().contiguous()


def _units(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(1, size, 1, size)"""
    return torch.eye(size, device=device, dtype=dtype)[None, :, None]
