"""The interface that every codec implements."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Codec(nn.Module, ABC):
    """An autoencoder between waveforms and latents at a fixed stride.

    Args:
        sample_rate: of the waveforms, in Hz.
        hop: samples a latent frame stands for.
        latent_channels: channels of the latent, C.

    Shape notation: B batch, N samples, C latent channels, T = N / hop latent frames.
    """

    name: str  # of the class among the codecs, as checkpoints say it
    channels: int = 1  # of the waveforms
    multiple: int = 1  # latent frames come in multiples of this
    context: int | None = None  # frames on either side that decoding a frame sees; None where that has no clear end

    def __init__(self, sample_rate: int, hop: int, latent_channels: int):
        super().__init__()
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
