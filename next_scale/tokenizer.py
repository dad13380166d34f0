"""An autoencoder and a multi-scale quantizer as one tokenizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from next_scale.quantizer import MultiScaleQuantizer


class Tokenizer(nn.Module):
    """Samples -> token pyramid -> samples.

    Args:
        autoencoder: has ``encode(x) -> (B, C, *grid)``, ``decode(latent) -> x`` and ``to_config()``.
        quantizer: its pyramid.

    Shape notation: B batch, C latent channels, L tokens of the pyramid.
    """

    def __init__(self, autoencoder: nn.Module, quantizer: MultiScaleQuantizer):
        super().__init__()
        self.autoencoder, self.quantizer = autoencoder, quantizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.quantizer.codebooks[0].weight.device

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """(B, ...) samples -> tokens (B, L) int64."""
        return self.quantizer.encode(self.autoencoder.encode(x))

    @torch.no_grad()
    def decode(self, tokens: Tensor, scales: int | None = None, grid: tuple[int, ...] | None = None) -> Tensor:
        """Tokens (B, L) -> (B, ...) samples, from the first `scales` scales only where given."""
        return self.autoencoder.decode(self.quantizer.decode(tokens, scales, grid))
