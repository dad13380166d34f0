"""The fused kernel: its size and its launch."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_float, c_int, c_ulonglong
from pathlib import Path

import torch
from torch import Tensor

from next_scale.kernels.runtime import DeviceLauncher, Launcher, Source, obstacle
from next_scale.sampling import Draw, nucleus_bounds

MOST_CODES = 16_384  # of a row that is held in registers


def source(codes: int) -> Source:
    """The kernel for rows of so many codes, in blocks of 64 to 256 threads."""
    threads = min(max(32 * -(-codes // 32), 64), 256)
    return Source(Path(__file__).with_name("kernel.cu"), (("THREADS", threads), ("EACH", -(-codes // threads))))


def unable(conditional: Tensor) -> str | None:
    """Why the kernel cannot run on these logits; None where it can."""
    if conditional.dtype != torch.float32:
        return f"it takes float32, not {conditional.dtype}"
    if conditional.shape[-1] > MOST_CODES:
        return f"it takes up to {MOST_CODES} codes, not {conditional.shape[-1]}"
    return obstacle(conditional.device)


def guided_sample(
    conditional: Tensor,
    unconditional: Tensor | None,
    noise: Tensor | None,
    strength: float,
    temperature: float,
    top_k: int,
    top_p: float,
    tolerance: float | None,
    launcher: Callable[[Source], Launcher] = DeviceLauncher,
) -> Draw:
    """See :func:`next_scale.kernels.guided_sample.op.guided_sample`; logits (..., V) -> (...,).

    Where equal logits lie on the cut, `sure` may be false though the token would stay.
    """
    codes = conditional.shape[-1]
    tokens = torch.empty(conditional.shape[:-1], dtype=torch.int64, device=conditional.device)
    sure = None if tolerance is None else torch.empty_like(tokens, dtype=torch.bool)
    if tokens.numel() == 0:
        return Draw(tokens, sure)
    if noise is None:
        temperature, top_k, top_p = 1.0, 0, 0.0
    margin = (tolerance or 0.0) / temperature
    bounds = nucleus_bounds(top_p, margin) if 0 < top_p < 1 else (0.0, 0.0)
    tensors = (None if x is None else x.contiguous() for x in (conditional, unconditional, noise))
    pointers = [c_ulonglong(0) if x is None else x for x in (*tensors, tokens, sure)]
    numbers = [c_int(codes), c_float(strength), c_float(temperature), c_int(top_k), c_float(top_p), c_float(margin)]
    used = source(codes)
    block = dict(used.macros)["THREADS"]
    arguments = [*pointers, *numbers, *map(c_float, bounds)]
    launcher(used).launch("guided_sample", tokens.numel(), block, arguments)
    return Draw(tokens, sure)
