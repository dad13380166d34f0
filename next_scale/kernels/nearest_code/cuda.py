"""The fused kernel: its tiles, and its two launches."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_int
from pathlib import Path

import torch
from torch import Tensor

from next_scale.kernels.runtime import DeviceLauncher, Launcher, Source, obstacle

MOST_CHANNELS = 256
_WARPS = 4
_INDEX_LIMIT = 2**31


def source(channels: int) -> Source:
    """The kernel for codes of so many channels, with tiles that neither spill nor need more than 48 KiB."""
    steps = -(-channels // 16)
    macros = {"CHANNELS": channels, "ROW_TILES": 2 if steps <= 4 else 1, "WARPS": _WARPS, "CODES": _tile(channels)}
    return Source(Path(__file__).with_name("kernel.cu"), tuple(macros.items()))


def _tile(channels: int) -> int:
    """Codes that a block holds at a time."""
    return 64 if channels <= 128 else 32


def unable(latents: Tensor, codebook: Tensor) -> str | None:
    """Why the kernel cannot run on these inputs; None where it can."""
    if latents.dtype != torch.float32 or codebook.dtype != torch.float32:
        return f"it takes float32, not {latents.dtype} and {codebook.dtype}"
    if codebook.shape[1] > MOST_CHANNELS:
        return f"it takes up to {MOST_CHANNELS} channels, not {codebook.shape[1]}"
    if latents.shape[0] >= _INDEX_LIMIT:
        return f"it takes fewer than {_INDEX_LIMIT} latents"
    return obstacle(latents.device)


def nearest_code(
    latents: Tensor, codebook: Tensor, cosine: bool, launcher: Callable[[Source], Launcher] = DeviceLauncher
) -> Tensor:
    """As :func:`next_scale.kernels.nearest_code.op.nearest_code`.

    Products are those of numbers split into two bfloat16 parts without the product of the two low parts: relative to
    |x| |e| a score is off by up to about 2^-16, so that only codes this close to equally near may be confused.
    """
    rows, channels = latents.shape[0], codebook.shape[1]
    nearest = torch.empty(rows, dtype=torch.int64, device=latents.device)
    if rows == 0:
        return nearest
    used = source(channels)
    macros = dict(used.macros)
    parts, half_norms = split_codes(codebook, cosine, launcher)
    grid = -(-rows // (macros["WARPS"] * macros["ROW_TILES"] * 16))
    tiles = len(parts) // macros["CODES"]
    arguments = [latents.contiguous(), parts, half_norms, nearest, c_int(rows), c_int(tiles), c_int(cosine)]
    launcher(used).launch("nearest_code", grid, 32 * macros["WARPS"], arguments)
    return nearest


def split_codes(
    codebook: Tensor, cosine: bool, launcher: Callable[[Source], Launcher] = DeviceLauncher
) -> tuple[Tensor, Tensor]:
    """A codebook (V, C) as the search reads it: bfloat16 parts (V', 2, words) int32, and half the squared norms (V',).

    V' is V rounded up to whole tiles; a word holds two channels.
    """
    codes, channels = codebook.shape
    used = source(channels)
    macros = dict(used.macros)
    padded = -(-codes // macros["CODES"]) * macros["CODES"]
    parts = torch.empty(padded, 2, -(-channels // 16) * 8, dtype=torch.int32, device=codebook.device)
    half_norms = torch.empty(padded, device=codebook.device)
    arguments = [codebook.contiguous(), parts, half_norms, c_int(codes), c_int(cosine)]
    launcher(used).launch("split_codes", padded // macros["WARPS"], 32 * macros["WARPS"], arguments)
    return parts, half_norms
