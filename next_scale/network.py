"""Residual networks between samples on a line or a grid and their latents, in the layout of VQGAN and VAR.

One network for one and two dimensions, so that a comparison of dimensions does not compare architectures: the layout is
that of VQGAN (arXiv 2012.09841, appendix A.1), whose parameter names it has.

Shape notation: B batch, C channels, D channels out, *grid sizes of one or two dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.convolution import DecoderConv, UpsampleConv

EPS = 1e-6
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group norm with the largest number of groups, at most `groups`, that divides the channels."""
    return nn.GroupNorm(next(n for n in range(min(groups, channels), 0, -1) if channels % n == 0), channels, EPS)


def conv(dim: int, channels_in: int, channels_out: int, size: int = 3) -> nn.Conv1d | nn.Conv2d:
    """A convolution of odd size that keeps the grid, of one dimension or two."""
    return _CONVOLUTIONS[dim](channels_in, channels_out, size, padding=size // 2)


def decoder_conv(dim: int, channels_in: int, channels_out: int) -> nn.Conv1d | nn.Conv2d:
    """A convolution of size 3 for decoders, which in two dimensions may be computed faster."""
    return DecoderConv(channels_in, channels_out) if dim == 2 else conv(dim, channels_in, channels_out)


MakeConv = Callable[[int, int, int], nn.Module]
"""Makes a convolution of size 3 that keeps the grid, from the dimension and the channels before and after it."""


class ResidualBlock(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a convolution of size 1 where the channels change.

    Shape notation: B batch, C channels in, D channels out.
    """

    def __init__(
        self, dim: int, channels_in: int, channels_out: int, groups: int, dropout: float = 0.0, make: MakeConv = conv
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in, groups)
        self.conv1 = make(dim, channels_in, channels_out)
        self.norm2 = group_norm(channels_out, groups)
        self.conv2 = make(dim, channels_out, channels_out)
        self.dropout = dropout
        same = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if same else conv(dim, channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) -> (B, D, *grid)."""
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = F.silu(self.norm2(h), inplace=True)
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        return h.add_(self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """x + proj(attention(norm(x))): one head of width C over all places of the grid.

    Shape notation: B batch, C channels, P places of the grid.
    """

    def __init__(self, dim: int, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.qkv = conv(dim, channels, 3 * channels, 1)
        self.proj_out = conv(dim, channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) -> (B, C, *grid)."""
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, 3 C, *grid) -> (B, P, 3 C)
        q, k, v = qkv[:, None].chunk(3, dim=-1)  # (B, P, 3 C) -> 3 x (B, 1, P, C)
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, 1, P, C) -> (B, C, *grid)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Halve the grid by a convolution of size 3 and stride 2, after zeros at the end of every dimension."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.conv = _CONVOLUTIONS[dim](channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) -> (B, C, *half of it)."""
        return self.conv(F.pad(x, (0, 1) * (x.dim() - 2)))


class Upsample(nn.Module):
    """Double the grid by repetition, then a convolution of size 3."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.conv = UpsampleConv(channels) if dim == 2 else conv(dim, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) -> (B, C, *twice of it)."""
        return self.conv(x if x.dim() == 4 else F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where asked for, and a change of resolution.

    Args:
        channels_in, channels: before and after the first block.
        blocks: their number.
        attention: whether an attention block follows each.
        resample: "downsample", "upsample" or None, after the blocks.
        groups: most groups of a norm.
        dropout: inside the residual blocks, in training.
        make: makes the blocks' convolutions of size 3.
    """

    def __init__(
        self, dim: int, channels_in: int, channels: int, blocks: int, attention: bool, resample: str | None,
        groups: int, dropout: float, make: MakeConv = conv,
    ) -> None:  # fmt: skip
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(dim, channels if i else channels_in, channels, groups, dropout, make) for i in range(blocks)
        )
        self.attn = nn.ModuleList(AttentionBlock(dim, channels, groups) for _ in range(blocks if attention else 0))
        self.downsample = Downsample(dim, channels) if resample == "downsample" else nn.Identity()
        self.upsample = Upsample(dim, channels) if resample == "upsample" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) -> (B, D, *grid, half or twice of it)."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    """Residual block, attention where asked for, residual block, at the lowest resolution."""

    def __init__(
        self, dim: int, channels: int, attention: bool, groups: int, dropout: float, make: MakeConv = conv
    ) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(dim, channels, channels, groups, dropout, make)
        self.attn_1 = AttentionBlock(dim, channels, groups) if attention else nn.Identity()
        self.block_2 = ResidualBlock(dim, channels, channels, groups, dropout, make)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) -> (B, C, *grid)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Levels from full to lowest resolution, the middle, and a convolution to the latent.

    Args:
        dim: dimensions of the grid, 1 or 2.
        channels_in: of the samples.
        width: channels before the first level.
        widths: channels of every level, from full to lowest resolution.
        blocks: residual blocks a level.
        attention, middle_attention: whether attention follows every block of the lowest level, and is in the middle.
        latent_channels: of what comes out.
        groups, dropout: see :class:`Level`.
    """

    def __init__(
        self, dim: int, channels_in: int, width: int, widths: Sequence[int], blocks: int, attention: bool,
        middle_attention: bool, latent_channels: int, groups: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        last = len(widths) - 1
        self.conv_in = conv(dim, channels_in, width)
        self.down = nn.ModuleList(
            Level(
                dim, before, after, blocks, attention and i == last, "downsample" if i < last else None, groups, dropout
            )
            for i, (before, after) in enumerate(zip((width, *widths[:-1]), widths, strict=True))
        )
        self.mid = Middle(dim, widths[-1], middle_attention, groups, dropout)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = conv(dim, widths[-1], latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, *grid) -> (B, latent_channels, *lowest grid)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x)), inplace=True))


class Decoder(nn.Module):
    """The middle, levels from lowest to full resolution, and a convolution to the output.

    Args: see :class:`Encoder`; `channels_out` are those of the samples.
    """

    def __init__(
        self, dim: int, channels_out: int, widths: Sequence[int], blocks: int, attention: bool, middle_attention: bool,
        latent_channels: int, groups: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        last = len(widths) - 1
        self.conv_in = conv(dim, latent_channels, widths[-1])
        self.mid = Middle(dim, widths[-1], middle_attention, groups, dropout, decoder_conv)
        # numbered by resolution as in the encoder, so run in reverse
        self.up = nn.ModuleList(
            Level(
                dim,
                before,
                after,
                blocks,
                attention and i == last,
                "upsample" if i else None,
                groups,
                dropout,
                decoder_conv,
            )
            for i, (before, after) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True))
        )
        self.norm_out = group_norm(widths[0], groups)
        self.conv_out = conv(dim, widths[0], channels_out)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, latent_channels, *lowest grid) -> (B, channels_out, *grid)."""
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True))
