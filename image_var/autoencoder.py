"""The convolutional autoencoder of VQGAN (arXiv 2012.09841, appendix A.1) in the layout that VAR uses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from image_var.line import LineAutoencoder
from next_scale.allowance import check_types
from next_scale.checkpoint import register_autoencoder
from next_scale.errors import UserError, first_line
from next_scale.network import Decoder, Encoder


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
        self.encoder = Encoder(2, channels_in, width, widths, encoder_blocks, *common)
        self.decoder = Decoder(2, channels_in, widths, decoder_blocks, *common)
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def to_config(self) -> dict:
        """Arguments that build this autoencoder again, for JSON."""
        return dict(self.config)

    def size_of(self, grid: Sequence[int]) -> tuple[int, int]:
        """(H, W) of the images of a latent grid (h, w)."""
        height, width = grid
        return height * self.downsampling, width * self.downsampling

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


AUTOENCODERS = {kind.name: kind for kind in (ConvAutoencoder, LineAutoencoder)}


def build_autoencoder(name: str, **options: Any) -> ConvAutoencoder | LineAutoencoder:
    """Build an autoencoder from its name and the arguments of its class, as `to_config` returns them.

    Raises:
        UserError: unknown name or option.
    """
    if name not in AUTOENCODERS:
        raise UserError(f"unknown autoencoder '{name}': choose one of {', '.join(AUTOENCODERS)}")
    check_types(options, AUTOENCODERS[name])
    try:
        return AUTOENCODERS[name](**options)
    except TypeError as error:
        raise UserError(f"autoencoder '{name}' cannot be built: {first_line(error)}") from error


for _name in AUTOENCODERS:
    register_autoencoder(_name, partial(build_autoencoder, _name))
