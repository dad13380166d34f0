"""What an audio tokenizer is trained for: spectra, mel spectra, and optionally a discriminator's judgement."""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor, nn

from audio_var.codecs.base import Codec
from audio_var.phase import nearest_peak, peak_frequency
from next_scale import ranks
from next_scale.errors import UserError


class SpectrumLoss(nn.Module):
    """Compares log magnitudes that a spectral codec writes with those of the clip: no waveform is made.

    Four terms: mean |log magnitude| difference; mean |log10 mel| difference for several numbers of mel bands; spectral
    convergence, which looks at the loud bins; and the error, in bins, of the frequency told at each of the clip's
    spectral peaks, weighted by its magnitude. All are taken as if the clip's peak were 0.9, so that quiet
    clips count as much as loud ones and what lies below the evaluation's floor counts for nothing.

    Args:
        sample_rate: in Hz.
        fft_size: of the codec.
        mels: numbers of mel bands.
        mel_floor: smallest mel energy told apart.
        floor: smallest magnitude told apart.

    Shape notation: B batch, F frequency bins, T frames.
    """

    def __init__(
        self,
        sample_rate: int,
        fft_size: int,
        mels: tuple[int, ...] = (40, 80, 128),
        mel_floor: float = 1e-5,
        floor: float = 1e-3,
    ):
        super().__init__()
        bins = fft_size // 2 + 1
        banks = [torchaudio.functional.melscale_fbanks(bins, 0, sample_rate / 2, m, sample_rate) for m in mels]
        self.register_buffer("bank", torch.cat(banks, 1), persistent=False)
        self.mel_floor, self.floor = mel_floor, floor

    def forward(self, output: Tensor, correction: Tensor, target: Tensor, peak: Tensor) -> dict[str, Tensor]:
        """Named scalars.

        Args:
            output, correction: (B, F, T) natural log magnitudes and frequency corrections that a codec wrote.
            target: (B, F, T) log magnitudes of the clip.
            peak: (B,) of the clip's waveform.
        """
        gain = (0.9 / peak.clamp_min(1e-4))[:, None, None]
        made, real = gain * torch.exp(output), gain * torch.exp(target)
        log = [0.5 * torch.log(m.square() + self.floor**2) for m in (made, real)]
        # the soft floor is a third of the evaluation's, so that gradients reach silent bands too
        mel = [torch.log10(m.square().transpose(1, 2) @ self.bank + self.mel_floor / 3) for m in (made, real)]
        return {
            "magnitude": (log[0] - log[1]).abs().mean(),
            "mel": (mel[0] - mel[1]).abs().mean(),
            "convergence": ((made - real).norm(dim=(1, 2)) / (real.norm(dim=(1, 2)) + 1e-2)).mean(),
            "frequency": self._frequency_error(output, correction, target, real),
        }

    def _frequency_error(self, output: Tensor, correction: Tensor, target: Tensor, real: Tensor) -> Tensor:
        """Mean error at the clip's peaks, in bins, larger for low ones: pitch is a ratio of frequencies."""
        nearest = nearest_peak(target)
        bins = torch.arange(target.shape[1], device=target.device)[None, :, None].expand_as(target)
        weight = real * (nearest == bins) * (1 + 64 / (bins + 1))
        # the peak that synthesis will turn there, or, where the codec wrote none in reach, the bin itself
        made = nearest_peak(output.detach())
        made = torch.where((made - bins).abs() <= 2, made, bins)
        error = peak_frequency(output, made) + correction.gather(1, made) - peak_frequency(target, nearest)
        whole = weight.sum().clamp_min(1e-6)
        # processes average their losses: each divides by the mean weight, so that equal weights count the same
        return (weight * error.abs()).sum() / (ranks.mean(whole) if self.training else whole)


class AudioObjective(nn.Module):
    """Training objective of an audio tokenizer: a weighted sum of terms, each switched off by weight 0.

    Args:
        sample_rate, fft_size: of the codec, in Hz and samples.
        magnitude, mel, convergence, frequency: weights of :class:`SpectrumLoss`, for codecs with ``decode_spectrum``.
        waveform_mel, waveform_stft: weights of the multi-resolution log-mel and STFT losses on the decoded waveform.
        adversarial, features: weights of a multi-scale STFT discriminator's hinge loss and of feature matching.
        discriminator_filters: its width.

    Shape notation: B batch, C latent channels, T latent frames, N samples.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        fft_size: int = 1024,
        magnitude: float = 1.0,
        mel: float = 1.0,
        convergence: float = 1.0,
        frequency: float = 5.0,
        waveform_mel: float = 0.0,
        waveform_stft: float = 0.0,
        adversarial: float = 0.0,
        features: float = 0.0,
        discriminator_filters: int = 16,
    ):
        super().__init__()
        from audio_var.losses import LogMelLoss, MultiResolutionSTFTLoss

        self.weights = {"magnitude": magnitude, "mel": mel, "convergence": convergence, "frequency": frequency}
        self.spectrum = SpectrumLoss(sample_rate, fft_size) if any(self.weights.values()) else None
        self.waveform_mel, self.waveform_stft = waveform_mel, waveform_stft
        self.mel_loss, self.stft_loss = LogMelLoss(sample_rate), MultiResolutionSTFTLoss()
        self.adversarial_weight, self.feature_weight = adversarial, features
        self.discriminator = None
        if adversarial > 0 or features > 0:
            from audio_var.discriminator import AdversarialLoss

            self.discriminator = AdversarialLoss(filters=discriminator_filters)

    def forward(self, codec: Codec, waveform: Tensor, latent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Waveform (B, 1, N) and latent (B, C, T) -> loss and its terms, detached, by name.

        Raises:
            UserError: a weight of :class:`SpectrumLoss` with a codec that has no magnitudes.
        """
        loss, logs, _ = self._compare(codec, waveform, latent, self.waveform_mel > 0 or self.waveform_stft > 0)
        return loss, logs

    def _compare(self, codec: Codec, waveform: Tensor, latent: Tensor, make: bool) -> tuple:
        """Loss, its terms by name, and, where asked to `make` it, the decoded waveform (B, 1, N), else None."""
        loss, logs = waveform.new_zeros(()), {}
        decoded = fake = None
        if self.spectrum is not None:
            if not hasattr(codec, "decode_spectrum"):
                cause = f"the codec '{codec.name}' writes no magnitudes"
                raise UserError(f"{cause}: set the objective's magnitude, mel, convergence and frequency to 0")
            decoded = codec.decode_spectrum(latent)
            terms = self.spectrum(*decoded, codec.log_magnitude(waveform), waveform.abs().amax((1, 2)))
            for name, term in terms.items():
                loss = loss + self.weights[name] * term
                logs[name] = term.detach()
        if make:
            fake = codec.decode(latent) if decoded is None else codec.synthesize(*decoded)
            for name, weight, term in (
                ("waveform_mel", self.waveform_mel, self.mel_loss),
                ("waveform_stft", self.waveform_stft, self.stft_loss),
            ):
                if weight > 0:
                    value = term(fake, waveform)
                    loss = loss + weight * value
                    logs[name] = value.detach()
        return loss, logs, fake

    def adversarial(self, codec: Codec, waveform: Tensor, latent: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """As :meth:`forward` with the discriminator's judgement added; returns the decoded waveform (B, 1, N) too."""
        loss, logs, fake = self._compare(codec, waveform, latent, True)
        judged, matched = self.discriminator.generator_loss(waveform, fake)
        loss = loss + self.adversarial_weight * judged + self.feature_weight * matched
        return loss, logs | {"adversarial": judged.detach(), "features": matched.detach()}, fake

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Both (B, 1, N) -> scalar."""
        return self.discriminator.discriminator_loss(real, fake)
