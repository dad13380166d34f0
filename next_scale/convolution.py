"""3x3 convolutions with fewer multiplications, for decoding on the CPU.

Shape notation: B batch, C channels in, D channels out, H W grid, T tiles of 4 x 4 outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_PLACES = 64 * 64  # of the grid, and channels, below which Winograd's transforms cost more than they save
_LEAST_CHANNELS = 64
_TILES = 128  # computed at once: what belongs to them stays in the caches

# Winograd's minimal filtering F(4 x 4, 3 x 3) evaluates polynomials at 0, +-p, +-q and infinity. With p = 3/4 and
# q = 3/2 rounding is a quarter of that with the usual 1 and 2.
_P, _Q = 0.75, 1.5
_P2, _Q2 = _P * _P, _Q * _Q


class DecoderConv(nn.Conv2d):
    """3x3 convolution of stride 1; without gradients, where that is faster, by Winograd's method.

    Encoders stay with `nn.Conv2d`: rounding, a few 1e-6 there and up to 2e-5 of the output's spread here, could decide
    which code is the nearest.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W)."""
        height, width = x.shape[2:]
        tiled = height % 4 == width % 4 == 0 and height * width >= _LEAST_PLACES
        if tiled and min(self.weight.shape[:2]) >= _LEAST_CHANNELS and _plain(x):
            return winograd(x, self.weight, self.bias)
        return super().forward(x)


class UpsampleConv(nn.Conv2d):
    """Double the grid by repetition, then a 3x3 convolution; without gradients as four 2x2 convolutions.

    Of the nine places under the kernel at most four are different: 2.25 times fewer multiplications.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        if len(self.weight) < _LEAST_CHANNELS or not _plain(x):
            return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))
        height, width = x.shape[2:]
        shape = len(x), len(self.weight), 2 * height, 2 * width
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for row, of_row in enumerate(_halves(self.weight, 2)):
            for column, kernel in enumerate(_halves(of_row, 3)):
                part = F.conv2d(x, kernel.contiguous(memory_format=torch.channels_last), self.bias, padding=1)
                out[:, :, row::2, column::2] = part[:, :, row : row + height, column : column + width]
        return out


def _plain(x: Tensor) -> bool:
    """Whether the CPU computes without gradients and in full precision."""
    return not torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.float32


def _halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """What three weights are to the first and to the second of two equal neighbours, along one dimension."""
    first, middle, last = kernel.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3x3 convolution, padding 1, with a quarter of the multiplications (Lavin & Gray, arXiv 1509.09308, section 4).

    Tiles of 6 x 6 inputs and the kernels are transformed to 36 numbers a channel, multiplied there, and transformed
    back to 4 x 4 outputs; a few rows of tiles at a time.

    Args:
        x: (B, C, H, W) float32, H and W multiples of 4.
        weight: (D, C, 3, 3).
        bias: (D,) or None.

    Returns:
        (B, D, H, W) in channels-last memory format.
    """
    B, C, H, W = x.shape
    D, across = len(weight), W // 4
    kernels = _transformed_kernels(weight)
    out = x.new_empty(B, H, W, D)
    most = max(1, min(H // 4, _TILES // across))
    rows = x.new_zeros(4 * most + 2, W + 2, C)  # of inputs, with the padding
    for grid, made in zip(x.permute(0, 2, 3, 1), out, strict=True):  # (B, C, H, W) -> B x (H, W, C)
        for start in range(0, H // 4, most):
            count = min(most, H // 4 - start)
            top, bottom = 4 * start - 1, 4 * (start + count) + 1  # rows of the grid, beyond it those of the padding
            inside = slice(max(top, 0), min(bottom, H))
            rows[: bottom - top].zero_()
            rows[inside.start - top : inside.stop - top, 1:-1] = grid[inside]
            down = _transformed([rows[i : i + 4 * count - 3 : 4] for i in range(6)])  # (6, count, W + 2, C)
            tiles = _transformed([down[:, :, i : i + 4 * across - 3 : 4] for i in range(6)])  # (6, 6, count, W/4, C)
            products = torch.bmm(tiles.view(36, -1, C), kernels).view(6, 6, count, across, D)
            columns = products.new_empty(4, *products.shape[1:])  # (4, 6, count, W/4, D)
            _transform_back(products, columns)
            block = made[4 * start : 4 * (start + count)].view(count, 4, across, 4, D)
            # (count, W/4, 4, D) -> (4, count, W/4, D)
            _transform_back(columns.unbind(1), [block[:, i].permute(2, 0, 1, 3) for i in range(4)])
            if bias is not None:
                block += bias
    return out.permute(0, 3, 1, 2)


def _transformed_kernels(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) -> (36, C, D)."""
    points = torch.tensor([0, _P, -_P, _Q, -_Q], dtype=torch.float64)
    others = points[:, None] - points + torch.eye(5, dtype=torch.float64)
    values = points[:, None] ** torch.arange(3) / others.prod(1, keepdim=True)
    matrix = torch.cat([values, torch.tensor([[0, 0, 1]], dtype=torch.float64)])  # (6, 3); last the point at infinity
    both = torch.einsum("jb,ia->jiab", matrix, matrix).reshape(36, 9)  # columns first, as in `winograd`
    flat = weight.permute(2, 3, 1, 0).reshape(9, -1)  # (D, C, 3, 3) -> (9, C D)
    return (both.float() @ flat).view(36, weight.shape[1], len(weight))


def _transformed(inputs: Sequence[Tensor]) -> Tensor:
    """Six neighbours in one direction to the values at six points, stacked in front."""
    d0, d1, d2, d3, d4, d5 = inputs
    out = d0.new_empty(6, *d0.shape)
    torch.sub(d4, d2, alpha=_P2 + _Q2, out=out[0]).add_(d0, alpha=_P2 * _Q2)
    torch.sub(d5, d3, alpha=_P2 + _Q2, out=out[5]).add_(d1, alpha=_P2 * _Q2)
    for i, point, other in ((1, _P, _Q2), (3, _Q, _P2)):
        even, odd = torch.sub(d4, d2, alpha=other), torch.sub(d3, d1, alpha=other)
        torch.add(even, odd, alpha=point, out=out[i])
        torch.sub(even, odd, alpha=point, out=out[i + 1])
    return out


def _transform_back(values: Tensor | Sequence[Tensor], out: Tensor | Sequence[Tensor]) -> None:
    """Values at six points to the four outputs in one direction."""
    m0, m1, m2, m3, m4, m5 = values
    even, odd, even2, odd2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    torch.add(m0, even, out=out[0]).add_(even2)
    torch.mul(odd, _P, out=out[1]).add_(odd2, alpha=_Q)
    torch.mul(even, _P2, out=out[2]).add_(even2, alpha=_Q2)
    torch.add(m5, odd, alpha=_P * _P2, out=out[3]).add_(odd2, alpha=_Q * _Q2)
