"""The convolutional autoencoder of VQGAN (arXiv 2012.09841, appendix A.1) in the layout that VAR uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from image_var.convolution import DecoderConv, UpsampleConv
from next_scale.checkpoint import register_autoencoder
from next_scale.errors import UserError

EPS = 1e-6


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group norm with the largest number of groups, at most `groups`, that divides the channels."""
    return nn.GroupNorm(next(n for n in range(min(groups, channels), 0, -1) if channels % n == 0), channels, EPS)


def plain_conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the grid."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


Conv = Callable[[int, int], nn.Conv2d]
"""Makes a 3x3 convolution that keeps the grid, from the channels before and after it."""


class ResidualBlock(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a 1x1 convolution where the channels change.

    Shape notation: B batch, C channels in, D channels out, H W grid.
    """

    def __init__(
        self, channels_in: int, channels_out: int, groups: int, dropout: float = 0.0, conv: Conv = plain_conv
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in, groups)
        self.conv1 = conv(channels_in, channels_out)
        self.norm2 = group_norm(channels_out, groups)
        self.conv2 = conv(channels_out, channels_out)
        self.dropout = dropout
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W)."""
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = F.silu(self.norm2(h), inplace=True)
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        return h.add_(self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """x + proj(attention(norm(x))): one head of width C over all places of the grid.

    Shape notation: B batch, C channels, H W grid.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, 3 C, H, W) -> (B, H W, 3 C)
        q, k, v = qkv[:, None].chunk(3, dim=-1)  # (B, H W, 3 C) -> 3 x (B, 1, H W, C)
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, 1, H W, C) -> (B, C, H, W)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Halve the grid by a 3x3 convolution of stride 2, after one row and column of zeros at the bottom and right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the grid by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsampleConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return self.conv(x)


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where asked for, and a change of resolution.

    Args:
        channels_in, channels: before and after the first block.
        blocks: their number.
        attention: whether an attention block follows each.
        resample: "downsample", "upsample" or None, after the blocks.
        groups, dropout: see :class:`ConvAutoencoder`.
        conv: makes the blocks' 3x3 convolutions.
    """

    def __init__(
        self, channels_in: int, channels: int, blocks: int, attention: bool, resample: str | None, groups: int,
        dropout: float, conv: Conv = plain_conv,
    ) -> None:  # fmt: skip
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(channels if i else channels_in, channels, groups, dropout, conv) for i in range(blocks)
        )
        self.attn = nn.ModuleList(AttentionBlock(channels, groups) for _ in range(blocks if attention else 0))
        self.downsample = Downsample(channels) if resample == "downsample" else nn.Identity()
        self.upsample = Upsample(channels) if resample == "upsample" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H', W')."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    """Residual block, attention where asked for, residual block, at the lowest resolution."""

    def __init__(self, channels: int, attention: bool, groups: int, dropout: float, conv: Conv = plain_conv) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups, dropout, conv)
        self.attn_1 = AttentionBlock(channels, groups) if attention else nn.Identity()
        self.block_2 = ResidualBlock(channels, channels, groups, dropout, conv)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Levels from full to lowest resolution, the middle, and a convolution to the latent."""

    def __init__(
        self, channels_in: int, width: int, widths: Sequence[int], blocks: int, attention: bool,
        middle_attention: bool, latent_channels: int, groups: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(channels_in, width, 3, padding=1)
        self.down = nn.ModuleList(
            Level(before, after, blocks, attention and i == last, "downsample" if i < last else None, groups, dropout)
            for i, (before, after) in enumerate(zip((width, *widths[:-1]), widths, strict=True))
        )
        self.mid = Middle(widths[-1], middle_attention, groups, dropout)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, C, h, w)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x)), inplace=True))


class Decoder(nn.Module):
    """The middle, levels from lowest to full resolution, and a convolution to the output."""

    def __init__(
        self, channels_out: int, widths: Sequence[int], blocks: int, attention: bool, middle_attention: bool,
        latent_channels: int, groups: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], middle_attention, groups, dropout, DecoderConv)
        # numbered by resolution as in the encoder, so run in reverse
        self.up = nn.ModuleList(
            Level(
                before, after, blocks, attention and i == last, "upsample" if i else None, groups, dropout, DecoderConv
            )
            for i, (before, after) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True))
        )
        self.norm_out = group_norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], channels_out, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, channels_out, H, W)."""
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True))


class ConvAutoencoder(nn.Module):
    """Images -> latents at 1 / 2^(levels - 1) of the resolution -> images, by residual convolutions.

    The parameter names are those of VQGAN's and VAR's published checkpoints, the 3x3 convolutions on the latent's two
    sides (`quant_conv`, `post_quant_conv`) included.

    Args:
        channels_in: of the images: 1 (gray) or 3 (RGB).
        width: channels at full resolution before the multipliers.
        multipliers: of the width, one a resolution from full to lowest; each next one has half the side.
        encoder_blocks, decoder_blocks: residual blocks a resolution.
        attention: whether attention follows every block of the lowest resolution.
        middle_attention: whether the middle has attention.
        latent_channels: C.
        groups: most groups of a norm; fewer where they do not divide the channels.
        dropout: inside the residual blocks, in training.

    Raises:
        UserError: `channels_in` is neither 1 nor 3, or a size is below 1.

    Shape notation: B batch, C latent channels, H W image, h w latent grid (H / h = `downsampling`).
    """

    name = "vqgan"

    def __init__(
        self,
        channels_in: int = 3,
        width: int = 160,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        encoder_blocks: int = 2,
        decoder_blocks: int = 3,
        attention: bool = True,
        middle_attention: bool = True,
        latent_channels: int = 32,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if channels_in not in (1, 3):
            raise UserError(f"images have 1 channel (gray) or 3 (RGB), not {channels_in}")
        if not multipliers or min(width, *multipliers, encoder_blocks, decoder_blocks, latent_channels, groups) < 1:
            raise UserError("width, multipliers, blocks, latent channels and groups of an autoencoder start at 1")
        self.channels_in, self.latent_channels = channels_in, latent_channels
        self.config = {
            "channels_in": channels_in, "width": width, "multipliers": list(multipliers),
            "encoder_blocks": encoder_blocks, "decoder_blocks": decoder_blocks, "attention": attention,
            "middle_attention": middle_attention, "latent_channels": latent_channels, "groups": groups,
            "dropout": dropout,
        }  # fmt: skip
        self.downsampling = 2 ** (len(multipliers) - 1)
        widths = [width * multiplier for multiplier in multipliers]
        common = (attention, middle_attention, latent_channels, groups, dropout)
        self.encoder = Encoder(channels_in, width, widths, encoder_blocks, *common)
        self.decoder = Decoder(channels_in, widths, decoder_blocks, *common)
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def to_config(self) -> dict:
        """Arguments that build this autoencoder again, for JSON."""
        return dict(self.config)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, whose gradients the adaptive adversarial weight compares."""
        return self.decoder.conv_out.weight

    def encode(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) in [-1, 1] -> (B, C, h, w).

        Raises:
            UserError: H or W is no multiple of `downsampling`.
        """
        if any(side % self.downsampling for side in x.shape[2:]):
            height, width = x.shape[2:]
            raise UserError(f"an image of {width} x {height} does not divide by {self.downsampling}: crop or resize it")
        return self.quant_conv(self.encoder(x.contiguous(memory_format=torch.channels_last)))

    def decode_raw(self, latent: Tensor) -> Tensor:
        """Decode without the clamp, for training losses: (B, C, h, w) -> (B, channels_in, H, W)."""
        return self.decoder(self.post_quant_conv(latent.contiguous(memory_format=torch.channels_last)))

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, channels_in, H, W) in [-1, 1]."""
        return self.decode_raw(latent).clamp(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> the same, through the latent."""
        return self.decode(self.encode(x))


AUTOENCODERS = {ConvAutoencoder.name: ConvAutoencoder}


def build_autoencoder(name: str, **options: Any) -> ConvAutoencoder:
    """Build an autoencoder from its name and the arguments of its class, as `to_config` returns them.

    Raises:
        UserError: unknown name or option.
    """
    if name not in AUTOENCODERS:
        raise UserError(f"unknown autoencoder '{name}': choose one of {', '.join(AUTOENCODERS)}")
    try:
        return AUTOENCODERS[name](**options)
    except TypeError as error:
        raise UserError(f"autoencoder '{name}' cannot be built: {error}") from error


for _name in AUTOENCODERS:
    register_autoencoder(_name, partial(build_autoencoder, _name))
