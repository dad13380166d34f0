"""The training objective of a quantizer on a frozen codec: the latent, and optionally what the frozen decoder makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audio_var.codecs.base import Codec
from audio_var.losses import LogMelLoss, MultiResolutionSTFTLoss


class FrozenCodecObjective(nn.Module):
    """How far the quantized latent is from the codec's own, and the decoded clip from the original.

    The quantizer's own loss already pulls every scale towards the latent; these terms reach the projections around the
    pyramid, where the quantizer has fewer channels than the latent. The waveform terms cost a pass through the decoder
    and back, and weigh what can be heard.

    Args:
        sample_rate: of the codec, in Hz.
        latent: weight of the mean square error of the latent over its variance.
        waveform_mel, waveform_stft: weights of the multi-resolution log-mel and STFT losses on the decoded waveform.

    Shape notation: B batch, C latent channels, T latent frames, N samples.
    """

    discriminator = None  # adversarial training is for decoders that learn

    def __init__(
        self, sample_rate: int = 24000, latent: float = 1.0, waveform_mel: float = 0.0, waveform_stft: float = 0.0
    ):
        super().__init__()
        self.latent, self.waveform_mel, self.waveform_stft = latent, waveform_mel, waveform_stft
        self.mel_loss, self.stft_loss = LogMelLoss(sample_rate), MultiResolutionSTFTLoss()

    def forward(self, codec: Codec, waveform: Tensor, latent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Waveform (B, 1, N) and quantized latent (B, C, T) -> loss and its terms, detached, by name."""
        wanted = codec.encode(waveform)
        terms = {"latent": (self.latent, (latent - wanted).square().mean() / wanted.var().clamp_min(1e-8))}
        if self.waveform_mel > 0 or self.waveform_stft > 0:
            made = codec.decode(latent)[..., : waveform.shape[-1]]
            terms["waveform_mel"] = self.waveform_mel, self.mel_loss(made, waveform)
            terms["waveform_stft"] = self.waveform_stft, self.stft_loss(made, waveform)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        return loss, {name: value.detach() for name, (_, value) in terms.items()}
