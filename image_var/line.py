"""Images as a line: their pixels one after the other, and a latent of one dimension."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from next_scale.errors import UserError
from next_scale.line import line_of
from next_scale.network import Decoder, Encoder, conv


class LineAutoencoder(nn.Module):
    """Images -> a line of pixels -> a latent line at 1 / 2^(levels - 1) of its length -> images.

    The network is that of :class:`image_var.autoencoder.ConvAutoencoder` with convolutions along the line in place of
    those on the grid. Images of all sizes with one number of pixels have latents of one length, but the order, and so
    the image, is that of `height` and `width`.

    Args:
        order: of the pixels: "raster", row after row, or "hilbert", along Hilbert's curve, where what is near on the
            line is near in the image too.
        channels_in: of the images: 1 (gray) or 3 (RGB).
        height, width: of the images.
        base: channels at full length before the multipliers.
        multipliers: of the base, one a level; each has half the length of the one before.
        encoder_blocks, decoder_blocks, attention, middle_attention, latent_channels, groups, dropout: as of the
            autoencoder on the grid.

    Raises:
        UserError: `channels_in` is neither 1 nor 3, an unknown order, or one that these sizes do not have.

    Shape notation: B batch, C latent channels, P = height * width pixels, T = P / `downsampling`.
    """

    name = "line"

    def __init__(
        self,
        order: str = "hilbert",
        channels_in: int = 1,
        height: int = 32,
        width: int = 32,
        base: int = 16,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        encoder_blocks: int = 1,
        decoder_blocks: int = 1,
        attention: bool = False,
        middle_attention: bool = True,
        latent_channels: int = 16,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if channels_in not in (1, 3):
            raise UserError(f"images have 1 channel (gray) or 3 (RGB), not {channels_in}")
        self.channels_in, self.height, self.width, self.latent_channels = channels_in, height, width, latent_channels
        self.downsampling = 2 ** (len(multipliers) - 1)
        if height * width % self.downsampling:
            raise UserError(f"a line of {height * width} pixels does not divide by {self.downsampling}")
        self.config = {
            "order": order, "channels_in": channels_in, "height": height, "width": width, "base": base,
            "multipliers": list(multipliers), "encoder_blocks": encoder_blocks, "decoder_blocks": decoder_blocks,
            "attention": attention, "middle_attention": middle_attention, "latent_channels": latent_channels,
            "groups": groups, "dropout": dropout,
        }  # fmt: skip
        line = line_of(order, height, width)
        self.register_buffer("line", line, persistent=False)
        self.register_buffer("back", line.argsort(), persistent=False)
        widths = [base * multiplier for multiplier in multipliers]
        common = (attention, middle_attention, latent_channels, groups, dropout)
        self.encoder = Encoder(1, channels_in, base, widths, encoder_blocks, *common)
        self.decoder = Decoder(1, channels_in, widths, decoder_blocks, *common)
        self.quant_conv = conv(1, latent_channels, latent_channels)
        self.post_quant_conv = conv(1, latent_channels, latent_channels)

    def to_config(self) -> dict:
        """Arguments that build this autoencoder again, for JSON."""
        return dict(self.config)

    def size_of(self, grid: Sequence[int]) -> tuple[int, int]:
        """(H, W) of the images of a latent line (T,): always the same."""
        return self.height, self.width

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, whose gradients the adaptive adversarial weight compares."""
        return self.decoder.conv_out.weight

    def encode(self, x: Tensor) -> Tensor:
        """(B, channels_in, height, width) in [-1, 1] -> (B, C, T). Raises UserError for another size."""
        if x.shape[2:] != (self.height, self.width):
            found = " x ".join(map(str, x.shape[2:]))
            raise UserError(f"this model takes images of {self.height} x {self.width}, not {found}: resize them")
        return self.quant_conv(self.encoder(x.flatten(2)[:, :, self.line]))  # (B, c, H, W) -> (B, c, P)

    def decode_raw(self, latent: Tensor) -> Tensor:
        """Decode without the clamp, for training losses: (B, C, T) -> (B, channels_in, height, width)."""
        line = self.decoder(self.post_quant_conv(latent))
        return line[:, :, self.back].unflatten(2, (self.height, self.width))  # (B, c, P) -> (B, c, H, W)

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, T) -> (B, channels_in, height, width) in [-1, 1]."""
        return self.decode_raw(latent).clamp(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, height, width) -> the same, through the latent."""
        return self.decode(self.encode(x))
