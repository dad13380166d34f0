"""A codec on the waveform: EnCodec's SEANet encoder and decoder (arXiv 2210.13438, sec. 3.1) without its quantizer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch.nn.functional as F
from encodec.modules import SEANetDecoder, SEANetEncoder
from torch import Tensor

from audio_var.codecs.base import Codec


class SeanetCodec(Codec):
    """Strided convolutions down to the latent and transposed ones back up, with residual units and an LSTM between.

    The modules are those of the `encodec` package, so their parameter names are those of its published checkpoints.

    Args:
        sample_rate: of the waveforms, in Hz.
        dimension: channels of the latent, C.
        n_filters: channels at full rate; they double with each ratio.
        ratios: strides of the decoder, outermost last; the encoder uses them in reverse. The hop is their product.
        n_residual_layers: residual units at each resolution.
        lstm: LSTM layers on the latent's side of encoder and decoder; 0 for none.
        causal: pad only the past, so that a frame never depends on later samples (beyond its own hop).
        norm: of the convolutions: 'weight_norm', 'time_group_norm' (not when causal) or 'none'.

    Shape notation: B batch, N samples, C latent channels, T = ceil(N / hop) latent frames.
    """

    name = "seanet"

    def __init__(
        self,
        sample_rate: int = 16000,
        dimension: int = 64,
        n_filters: int = 16,
        ratios: Sequence[int] = (8, 4, 4, 2),
        n_residual_layers: int = 1,
        lstm: int = 2,
        causal: bool = False,
        norm: str = "weight_norm",
    ):
        super().__init__(sample_rate=sample_rate, hop=math.prod(ratios), latent_channels=dimension)
        self.config = {
            "sample_rate": sample_rate,
            "dimension": dimension,
            "n_filters": n_filters,
            "ratios": list(ratios),
            "n_residual_layers": n_residual_layers,
            "lstm": lstm,
            "causal": causal,
            "norm": norm,
        }
        options = dict(
            dimension=dimension,
            n_filters=n_filters,
            ratios=list(ratios),
            n_residual_layers=n_residual_layers,
            lstm=lstm,
            causal=causal,
            norm=norm,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the package's way of weight norm, which users cannot mend
            self.encoder, self.decoder = SEANetEncoder(**options), SEANetDecoder(**options)

    def encode(self, waveform: Tensor) -> Tensor:
        """(B, 1, N) float -> (B, C, T). A length that is no multiple of the hop is completed with silence."""
        return self.encoder(F.pad(waveform, (0, -waveform.shape[-1] % self.hop)))

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, T) -> (B, 1, T * hop); cut it to the N samples that were encoded."""
        return self.decoder(latent)

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, 1, N) -> (B, 1, N), through the latent."""
        return self.decode(self.encode(waveform))[..., : waveform.shape[-1]]
