"""A codec whose latent is a grid: the mel spectrogram of a clip as a picture, and a waveform made from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchaudio
from torch import Tensor, nn

from audio_var.codecs.spectral import SpectrumCodec, Trunk
from next_scale.errors import UserError
from next_scale.network import Decoder, Encoder, conv


class MelGridCodec(SpectrumCodec):
    """Waveform -> log-mel spectrogram -> latent of two dimensions -> log-mel spectrogram -> waveform.

    The spectrogram's encoder and decoder are the residual networks that images have (:mod:`next_scale.network`). A
    small spectral decoder makes a waveform of the spectrogram: the energy of every band spread over its bins, corrected
    by ConvNeXt blocks that see the whole spectrum, with frequencies and phases as in
    :class:`audio_var.codecs.spectral.SpectrumCodec`. Training compares spectra, and so trains both parts at once.

    Args:
        sample_rate: of the waveforms, in Hz.
        fft_size, frame_hop: of the STFT, in samples.
        mels: bands of the mel spectrogram (HTK scale, triangles of peak 1).
        latent_channels: C.
        base, multipliers: channels of the networks on the grid: the base at full resolution, times a multiplier a
            level; each level has half the frames and half the bands of the one before.
        blocks: residual blocks a level.
        width, depth, expansion, kernel: of the ConvNeXt blocks of the spectral decoder.
        polish, fundamentals: see :class:`audio_var.codecs.spectral.SpectrumCodec`.

    Raises:
        UserError: bands that the levels do not divide, or so many that some hold no bin.

    Shape notation: B batch, C latent channels, F = fft_size / 2 + 1 bins, T frames, M mel bands, N samples, d the
    downsampling, 2^(levels - 1). The latent is (B, C, T / d, M / d), time first; `hop` = d frame_hop samples are one of
    its rows.
    """

    name = "mel_grid"
    mel_floor = 1e-6  # smallest energy of a band told apart
    mel_center, mel_spread = -4.0, 4.0  # of log energies, to put the networks' inputs and outputs near unit variance

    def __init__(
        self,
        sample_rate: int = 16000,
        fft_size: int = 1024,
        frame_hop: int = 256,
        mels: int = 64,
        latent_channels: int = 16,
        base: int = 24,
        multipliers: Sequence[int] = (1, 2, 2, 4),
        blocks: int = 1,
        width: int = 192,
        depth: int = 3,
        expansion: int = 3,
        kernel: int = 7,
        polish: int = 0,
        fundamentals: tuple[float, float] | None = None,
    ):
        downsampling = 2 ** (len(multipliers) - 1)
        super().__init__(
            sample_rate, downsampling * frame_hop, latent_channels, fft_size, frame_hop, polish, fundamentals
        )
        self.config = {
            "sample_rate": sample_rate, "fft_size": fft_size, "frame_hop": frame_hop, "mels": mels,
            "latent_channels": latent_channels, "base": base, "multipliers": list(multipliers), "blocks": blocks,
            "width": width, "depth": depth, "expansion": expansion, "kernel": kernel, "polish": polish,
            "fundamentals": None if fundamentals is None else list(fundamentals),
        }  # fmt: skip
        if mels % downsampling:
            raise UserError(f"{mels} mel bands do not divide by {downsampling}, as {len(multipliers)} levels need")
        bins = fft_size // 2 + 1
        bank = torchaudio.functional.melscale_fbanks(bins, 0, sample_rate / 2, mels, sample_rate)  # (F, M)
        if (bank.sum(0) == 0).any():
            raise UserError(f"{mels} mel bands are too many for an STFT of {fft_size}: some would hold no frequency")
        self.register_buffer("bank", bank, persistent=False)
        # what is in a band, spread over its bins as evenly as neighbouring triangles allow
        shares = bank / bank.sum(1, keepdim=True).clamp_min(1e-3)  # of a bin, among the bands that hold it
        self.register_buffer("unfold", shares.T / bank.sum(0)[:, None], persistent=False)  # (M, F)
        widths = [base * multiplier for multiplier in multipliers]
        common = (False, True, latent_channels, 32, 0.0)
        self.encoder = Encoder(2, 1, base, widths, blocks, *common)
        self.decoder = Decoder(2, 1, widths, blocks, *common)
        self.quant_conv = conv(2, latent_channels, latent_channels)
        self.post_quant_conv = conv(2, latent_channels, latent_channels)
        self.spectral_decoder = Trunk(mels, bins, width, depth, expansion, kernel)
        self.frequency = nn.Linear(width, bins)
        for layer in (self.spectral_decoder.leave, self.frequency):  # at first the spread energies alone
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def mel(self, log_magnitude: Tensor) -> Tensor:
        """Log magnitudes (B, F, T) -> log energies of mel bands (B, M, T)."""
        energy = torch.exp(2 * log_magnitude).transpose(1, 2) @ self.bank  # (B, F, T) -> (B, T, M)
        return torch.log(energy + self.mel_floor).transpose(1, 2)

    def encode(self, waveform: Tensor) -> Tensor:
        """(B, 1, N) -> (B, C, T / d, M / d); N must be a multiple of `hop`."""
        x = (self.mel(self.log_magnitude(waveform)) - self.mel_center) / self.mel_spread
        return self.quant_conv(self.encoder(x.transpose(1, 2)[:, None]))  # (B, M, T) -> (B, 1, T, M)

    def decode_mel(self, latent: Tensor) -> Tensor:
        """(B, C, T / d, M / d) -> log energies of mel bands (B, M, T)."""
        x = self.decoder(self.post_quant_conv(latent))[:, 0].transpose(1, 2)  # (B, 1, T, M) -> (B, M, T)
        return (x * self.mel_spread + self.mel_center).clamp_max(2 * self.ceiling)

    def spectrum_of(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Log energies of mel bands (B, M, T) -> log magnitudes and frequency corrections, both (B, F, T)."""
        energy = torch.exp(mel).transpose(1, 2) @ self.unfold  # (B, M, T) -> (B, T, F)
        log_magnitude = 0.5 * torch.log(energy + self.floor**2)
        x = self.spectral_decoder.features((mel.transpose(1, 2) - self.mel_center) / self.mel_spread)
        log_magnitude = (log_magnitude + self.spectral_decoder.leave(x)).transpose(1, 2)
        return log_magnitude.clamp_max(self.ceiling), self.frequency(x).transpose(1, 2)

    def decode_spectrum(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T / d, M / d) -> log magnitudes (B, F, T) and frequency corrections (B, F, T) in bins."""
        return self.spectrum_of(self.decode_mel(latent))

    @torch.no_grad()
    def griffin_lim(self, mel: Tensor, iterations: int = 32) -> Tensor:
        """Log energies of mel bands (B, M, T) -> (B, 1, N) without anything learned: the floor of such decoders.

        The bands' energies are unfolded by non-negative least squares, and phases found by Griffin-Lim.
        """
        size, rate = self.fft_size, self.sample_rate
        unfold = torchaudio.transforms.InverseMelScale(size // 2 + 1, mel.shape[1], rate).to(mel.device)
        phases = torchaudio.transforms.GriffinLim(size, iterations, hop_length=self.frame_hop, rand_init=False)
        energy = unfold((torch.exp(mel) - self.mel_floor).clamp_min(0))  # (B, F, T)
        magnitude = torch.cat([energy, energy[..., -1:]], dim=2)  # centred frames are one more
        margin = self.frame_hop // 2  # a frame here is centred on its hop's middle, one there on its start
        waveform = phases.to(mel.device)(magnitude)
        length = mel.shape[2] * self.frame_hop
        return nn.functional.pad(waveform, (margin, 0))[:, None, :length]
