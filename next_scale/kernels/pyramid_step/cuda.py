"""The fused kernels: their tiles, and their launches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import c_float, c_int, c_ulonglong
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from next_scale.kernels.nearest_code import cuda as nearest_code
from next_scale.kernels.pyramid_step.backward import with_shown
from next_scale.kernels.runtime import DeviceLauncher, Launcher, Source, obstacle

Size = tuple[int, ...]

MOST_CHANNELS = 256
MOST_SEARCHED = 128  # channels in which tokenizing searches without spilling registers
_METHODS = {"nearest": 0, "linear": 1, "cubic": 2}
_THREADS = 256
_POOL = 11_000  # floats; with what the search needs within the 48 KiB of shared memory that every GPU gives a block
_FEW = 64  # samples: with fewer, a group of 4 channels a block, so that more multiprocessors take part


def source(channels: int, kernel: Size, whole: bool) -> Source:
    """The kernels for codes of so many channels and phi's of this kernel size.

    Args:
        kernel: (), without phi's.
        whole: a block takes all output channels, as tokenizing needs; otherwise 4 of them.
    """
    tile = 8 if whole and channels > 4 else 4  # of channels; both ways the same source where there are 4 or fewer
    macros = {
        "CHANNELS": channels,
        "KERNEL_Y": kernel[0] if len(kernel) == 2 else 1,
        "KERNEL_X": kernel[-1] if kernel else 1,
        "GROUP": -(-channels // tile) * tile if whole else 4,
        "TILE_C": tile,
        "TILE_P": 4 if whole or channels <= 4 else 1,
        "THREADS": _THREADS,
        "POOL": _POOL,
        "ROW_TILES": 4 if channels <= 32 else 2 if channels <= 64 else 1,
    }
    return Source(Path(__file__).with_name("kernel.cu"), tuple(macros.items()))


def usual() -> list[tuple[str, Source]]:
    """What the kernels are made for usually, in words, and their sources."""
    sizes = [(32, (3, 3), False), (32, (3, 3), True), (64, (3,), False), (128, (9,), True)]
    return [
        (f"{channels} channels, phi {'x'.join(map(str, kernel))}{', whole' if whole else ''}",
         source(channels, kernel, whole))
        for channels, kernel, whole in sizes
    ]  # fmt: skip


def _kernel_size(weight: Tensor | None) -> Size:
    return () if weight is None else tuple(weight.shape[2:])


def chunk_of(used: Source, grid: Size, kept: int = 0) -> int:
    """Input channels that fit shared memory at a time, with their weights and `kept` more; 0 or less: none does."""
    macros = dict(used.macros)
    height, width = _rectangle(grid)
    plane = (height + macros["KERNEL_Y"] - 1) * (width + macros["KERNEL_X"] - 1) | 1
    weights = macros["KERNEL_Y"] * macros["KERNEL_X"] * (macros["GROUP"] + 4)
    return min((macros["POOL"] - kept * plane) // (plane + weights), macros["CHANNELS"])


def _rectangle(size: Size) -> Size:
    """A size in one dimension is one of height 1."""
    return (1, *size) if len(size) == 1 else tuple(size)


def unable(grid: Sequence[int], tensors: Sequence[Tensor], weight: Tensor | None, whole: bool = False) -> str | None:
    """Why the kernel of single steps, or of teacher forcing, cannot run on these inputs; None where it can."""
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return f"it takes float32, not {tensor.dtype}"
    channels = tensors[-1].shape[1]
    if channels > MOST_CHANNELS:
        return f"it takes up to {MOST_CHANNELS} channels, not {channels}"
    # a step's gradients need the most: a group of 4 channels beside those that come and go
    if chunk_of(source(channels, _kernel_size(weight), whole), tuple(grid), 0 if whole else 4) < 1:
        return f"a grid of {'x'.join(map(str, grid))} does not fit shared memory"
    return obstacle(tensors[0].device)


def unable_to_search(latent: Tensor, codes: Sequence[Tensor], weight: Tensor | None) -> str | None:
    """Why the kernel of tokenizing cannot run on these inputs; None where it can."""
    if latent.shape[1] > MOST_SEARCHED:
        return f"it takes up to {MOST_SEARCHED} channels, not {latent.shape[1]}"
    return unable(latent.shape[2:], [latent, *codes], weight, whole=True)


@lru_cache(maxsize=256)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """The scales as the kernels read them, int32; kept, since a CUDA graph cannot copy it from the CPU."""
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.int32, device=device)


def _scales(
    sizes: Sequence[Size], shown: Sequence[Size], phis: Sequence[int], book: int, device: torch.device
) -> Tensor:
    """A row a scale: its height and width, those to show the sum at (0: not at all), which phi, the first row of its
    codes (`book` rows apart), its first token, and its first row of what is shown."""
    rows, token, row = [], 0, 0
    for k, size in enumerate(sizes):
        seen = _rectangle(shown[k]) if shown[k] else (0, 0)
        rows.append((*_rectangle(size), *seen, phis[k] if phis else 0, k * book, token, row))
        token += math.prod(size)
        row += math.prod(seen)
    return _table(tuple(rows), device)


def _pointer(tensor: Tensor | None) -> Tensor | c_ulonglong:
    return c_ulonglong(0) if tensor is None else tensor.contiguous()


def _steps(
    before: Tensor | None, latent: Tensor, tokens: Tensor, codes: Tensor, weights: Tensor | None,
    biases: Tensor | None, ratio: float, sizes: Sequence[Size], shown: Sequence[Size], phis: Sequence[int], book: int,
    upsampling: str, launcher: Callable[[Source], Launcher],
) -> Tensor:  # fmt: skip
    """Write the sum of some scales to `latent`; returns what is shown, (B, n', C)."""
    batch, channels, *grid = latent.shape
    count = sum(math.prod(size) for size in shown if size)
    seen = torch.empty(batch, count, channels, device=latent.device)
    if batch == 0:
        return seen
    used = source(channels, _kernel_size(None if weights is None else weights[0]), batch >= _FEW)
    groups = -(-channels // dict(used.macros)["GROUP"])
    scales = _scales(sizes, shown, phis, book, latent.device)
    height, width = _rectangle(tuple(grid))
    numbers = (len(sizes), tokens.shape[1], count, height, width, chunk_of(used, tuple(grid)))
    tensors = [_pointer(before), tokens.contiguous(), codes.contiguous(), _pointer(weights), _pointer(biases)]
    arguments = [*tensors, scales, latent, seen, *map(c_int, numbers), c_float(ratio), c_int(_METHODS[upsampling])]
    launcher(used).launch("pyramid_inputs", batch * groups, _THREADS, arguments)
    return seen


def pyramid_step(
    latent: Tensor, tokens: Tensor, codes: Tensor, weight: Tensor | None, bias: Tensor | None, ratio: float, size: Size,
    shown: Size, upsampling: str, launcher: Callable[[Source], Launcher] = DeviceLauncher,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See :func:`next_scale.kernels.pyramid_step.op.pyramid_step`; nothing is shown where `shown` is ()."""
    total = torch.empty_like(latent, memory_format=torch.contiguous_format)
    phi = (None, None) if weight is None else (weight[None], bias[None])
    seen = _steps(latent, total, tokens, codes, *phi, ratio, [size], [shown], (), 0, upsampling, launcher)
    return total, seen


def pyramid_step_backward(
    grad: Tensor, grad_shown: Tensor, tokens: Tensor, codes: Tensor, weight: Tensor | None, ratio: float, size: Size,
    shown: Size, upsampling: str, codes_learn: bool, phi_learns: bool,
    launcher: Callable[[Source], Launcher] = DeviceLauncher,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See :func:`next_scale.kernels.pyramid_step.backward.pyramid_step_backward`."""
    grad_latent = grad.new_empty(0)
    if shown:
        grad = grad_latent = with_shown(grad, grad_shown, shown)
    grad_codes = torch.zeros_like(codes) if codes_learn else grad.new_empty(0)
    grad_weight, grad_bias = grad.new_empty(0), grad.new_empty(0)
    if phi_learns:
        grad_weight, grad_bias = torch.zeros_like(weight), weight.new_zeros(weight.shape[0])
    found = (grad_latent, grad_codes, grad_weight, grad_bias)
    if grad.numel() == 0 or not (codes_learn or phi_learns):
        return found
    used = source(codes.shape[1], _kernel_size(weight), False)
    kept = dict(used.macros)["GROUP"]
    grid = tuple(grad.shape[2:])
    tensors = [grad.contiguous(), tokens.contiguous(), codes.contiguous(), _pointer(weight)]
    written = [torch.empty(grad.shape, device=grad.device), *(_pointer(x if x.numel() else None) for x in found[1:])]
    numbers = (tokens.shape[1], *_rectangle(grid), chunk_of(used, grid, kept))
    options = [*map(c_int, numbers), c_float(ratio), c_int(_METHODS[upsampling])]
    blocks = grad.shape[0] * -(-codes.shape[1] // kept)
    arguments = [*tensors, _scales([size], [()], (), 0, grad.device), *written, *options]
    launcher(used).launch("pyramid_step_backward", blocks, _THREADS, arguments)
    return found


def pyramid_inputs(
    tokens: Tensor, codes: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], ratio: float,
    phis: Sequence[int], sizes: Sequence[Size], upsampling: str,
    launcher: Callable[[Source], Launcher] = DeviceLauncher,
) -> Tensor:  # fmt: skip
    """See :func:`next_scale.kernels.pyramid_step.op.pyramid_inputs`."""
    table, book = _books(codes)
    latent = table.new_empty(tokens.shape[0], table.shape[1], *sizes[-1])
    smoothing = (torch.stack(list(weights)), torch.stack(list(biases))) if weights else (None, None)
    return _steps(
        None, latent, tokens, table, *smoothing, ratio, sizes[:-1], sizes[1:], phis, book, upsampling, launcher
    )


def pyramid_tokens(
    latent: Tensor, codes: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], ratio: float,
    phis: Sequence[int], sizes: Sequence[Size], upsampling: str, cosine: bool,
    launcher: Callable[[Source], Launcher] = DeviceLauncher,
) -> Tensor:  # fmt: skip
    """See :func:`next_scale.kernels.pyramid_step.op.pyramid_tokens`; distances are those of the kernel nearest_code."""
    batch, channels, *grid = latent.shape
    tokens = torch.empty(batch, sum(map(math.prod, sizes)), dtype=torch.int64, device=latent.device)
    if batch == 0:
        return tokens
    table, book = _books(codes)
    parts, half_norms = nearest_code.split_codes(table, cosine, launcher)
    used = source(channels, _kernel_size(weights[0] if weights else None), True)
    scales = _scales(sizes, [()] * len(sizes), phis, book, latent.device)
    height, width = _rectangle(tuple(grid))
    smoothing = (torch.stack(list(weights)), torch.stack(list(biases))) if weights else (None, None)
    numbers = (len(sizes), tokens.shape[1], codes[0].shape[0], height, width, chunk_of(used, tuple(grid)))
    target, sums = latent.contiguous(), torch.empty_like(latent, memory_format=torch.contiguous_format)
    tensors = [target, table, parts, half_norms, *map(_pointer, smoothing), scales, sums, tokens]
    options = [c_float(ratio), c_int(_METHODS[upsampling]), c_int(cosine)]
    launcher(used).launch("pyramid_tokens", batch, _THREADS, [*tensors, *map(c_int, numbers), *options])
    return tokens


def _books(codes: Sequence[Tensor]) -> tuple[Tensor, int]:
    """All codes in one table, and how many rows apart those of two scales are."""
    if len(codes) == 1:
        return codes[0].contiguous(), 0
    return torch.cat(list(codes)), codes[0].shape[0]
