"""The fused kernels: their tiles, and their launches."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_float, c_int, c_ulonglong
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from next_scale.kernels import runtime
from next_scale.kernels.runtime import Argument, DeviceLauncher, Launcher, Source

WIDTHS = range(16, 129, 16)
_PARTS = {torch.bfloat16: 1, torch.float32: 2}  # bfloat16 numbers that stand for one
_WARPS = 4
_ROWS = 16 * _WARPS
_NONE = c_ulonglong(0)  # a null pointer


def source(width: int, dtype: torch.dtype) -> Source:
    """The kernels for heads of so many channels, with tiles that neither spill nor need more than 48 KiB."""
    size = width * _PARTS[dtype]  # bfloat16 numbers of a row
    macros = {
        "WIDTH": width,
        "PARTS": _PARTS[dtype],
        "WARPS": _WARPS,
        "FORWARD_KEYS": 64 if size <= 128 else 32,
        "BACKWARD_COLUMNS": 32,
        "TOGETHER": int(size <= 64),
        "RELOAD": int(size > 128),
    }
    return Source(Path(__file__).with_name("kernel.cu"), tuple(macros.items()))


def unable(device: torch.device, dtypes: tuple[torch.dtype, ...], width: int, dropout: float) -> str | None:
    """Why the kernel cannot run on such tensors; None where it can. `dtypes` are those of q, k and v."""
    if len(set(dtypes)) > 1 or dtypes[0] not in _PARTS:
        return f"it takes bfloat16 or float32, not {', '.join(map(str, dtypes))}"
    if width not in WIDTHS:
        return f"it takes heads of {WIDTHS[0]} to {WIDTHS[-1]} channels in steps of {WIDTHS.step}, not {width}"
    if dropout:
        return "it has no dropout"
    return runtime.obstacle(device)


@cache
def prepare(device: torch.device, dtype: torch.dtype, width: int) -> None:
    """Compile the kernels for a device; raises KernelError where that fails."""
    runtime.compile_source(source(width, dtype), runtime.target_of(torch.cuda.get_device_capability(device)))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible_end: Tensor,
    head_scale: Tensor | None,
    scale: float,
    launcher: Callable[[Source], Launcher] = DeviceLauncher,
) -> tuple[Tensor, Tensor]:
    """See :func:`next_scale.kernels.prefix_attention.op.prefix_attention`.

    Args:
        visible_end: (L,) int32.

    Returns:
        The output (B, L, H, d), and each query's log-sum-exp, (B, L, H) float32, for :func:`backward`.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, log_sums = torch.empty_like(q), torch.empty(q.shape[:-1], device=q.device)
    if out.numel() > 0:
        kernels = launcher(source(q.shape[-1], q.dtype))
        lengths = _lengths(kernels, q, k, head_scale)
        arguments = [q, k, v, visible_end, *lengths, out, log_sums, *_sizes(q, k, scale)]
        kernels.launch("attend", _blocks(q), 32 * _WARPS, arguments)
    return out, log_sums


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: Tensor,
    visible_end: Tensor,
    head_scale: Tensor | None,
    scale: float,
    launcher: Callable[[Source], Launcher] = DeviceLauncher,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and head_scale (float32; empty without one), of what :func:`forward` returned.

    The same at every run: no two blocks add to one number.
    """
    q, k, v, grad = q.contiguous(), k.contiguous(), v.contiguous(), grad.contiguous()
    of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    of_head_scale = torch.empty(q.shape[:-1] if head_scale is not None else (0,), device=q.device)
    if of_q.numel() > 0:
        used = source(q.shape[-1], q.dtype)
        kernels = launcher(used)
        lengths = _lengths(kernels, q, k, head_scale)
        deltas = _row_products(kernels, out, grad)
        outputs = [of_q, of_k, of_v, _NONE if head_scale is None else of_head_scale]
        arguments = [q, k, v, grad, visible_end, *lengths, log_sums, deltas, *outputs, *_sizes(q, k, scale)]
        kernels.launch("gradient_of_q", _blocks(q), 32 * _WARPS, arguments)
        kernels.launch("gradient_of_k", _blocks(k), 32 * _WARPS, arguments)
        if not dict(used.macros)["TOGETHER"]:
            kernels.launch("gradient_of_v", _blocks(k), 32 * _WARPS, arguments)
    return of_q, of_k, of_v, of_head_scale if head_scale is None else of_head_scale.sum((0, 1))


def _lengths(kernels: Launcher, q: Tensor, k: Tensor, head_scale: Tensor | None) -> list[Argument]:
    """Squared lengths of q's and k's rows, and head_scale; nothing of each where rows are taken as they are."""
    if head_scale is None:
        return [_NONE] * 3
    return [_row_products(kernels, q, q), _row_products(kernels, k, k), head_scale.float().contiguous()]


def _row_products(kernels: Launcher, a: Tensor, b: Tensor) -> Tensor:
    """Sums over channels of a * b, (B, n, H, d) -> (B, n, H) float32."""
    sums = torch.empty(a.shape[:-1], device=a.device)
    kernels.launch("row_products", -(-sums.numel() // _WARPS), 32 * _WARPS, [a, b, sums, c_int(sums.numel())])
    return sums


def _sizes(q: Tensor, k: Tensor, scale: float) -> list[Argument]:
    batch, length, heads, _ = q.shape
    return [c_int(batch), c_int(heads), c_int(length), c_int(k.shape[1]), c_float(scale)]


def _blocks(rows: Tensor) -> int:
    """Of `_ROWS` rows of one head each."""
    batch, count, heads, _ = rows.shape
    return batch * heads * -(-count // _ROWS)
