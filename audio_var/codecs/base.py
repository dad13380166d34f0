"""The interface that every codec implements."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from next_scale.errors import UserError

_MOST_RATE, _MOST_HOP = 768_000, 1 << 20


class Codec(nn.Module, ABC):
    """An autoencoder between waveforms and latents at a fixed stride.

    Args:
        sample_rate: of the waveforms, in Hz.
        hop: samples a latent frame stands for.
        latent_channels: channels of the latent, C.

    Raises:
        UserError: one of them out of range.

    Shape notation: B batch, N samples, C latent channels, T = N / hop latent frames.
    """

    name: str  # of the class among the codecs, as checkpoints say it
    channels: int = 1  # of the waveforms
    multiple: int = 1  # latent frames come in multiples of this
    context: int | None = None  # frames on either side that decoding a frame sees; None where that has no clear end

    def __init__(self, sample_rate: int, hop: int, latent_channels: int):
        super().__init__()
        if not (1 <= sample_rate <= _MOST_RATE and 1 <= hop <= _MOST_HOP and latent_channels >= 1):
            raise UserError(
                f"a codec has 1 to {_MOST_RATE:,} samples a second, a hop of 1 to {_MOST_HOP:,} and at least one "
                f"channel, not {sample_rate}, {hop} and {latent_channels}"
            )
        self.sample_rate, self.hop, self.latent_channels = sample_rate, hop, latent_channels
        self.config: dict = {}

    @abstractmethod
    def encode(self, waveform: Tensor) -> Tensor:
        """(B, 1, N) float in [-1, 1] -> (B, C, T); N must be a multiple of `hop`."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, T) -> (B, 1, T * hop)."""

    def to_config(self) -> dict:
        """Arguments that build this codec again, for JSON."""
        return dict(self.config)
