"""A codec at frame rate: log-magnitude STFT in, ConvNeXt blocks, log-magnitude STFT out, phase by locking."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_var.codecs.base import Codec
from audio_var.harmonics import tune_harmonics
from audio_var.phase import locked_phase
from next_scale.errors import UserError

_MOST_POLISH = 1000


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer norm, two-layer MLP, learned residual gain (ConvNeXt, arXiv 2201.03545, in 1D)."""

    def __init__(self, width: int, expansion: int, kernel: int, gain: float):
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.gain = nn.Parameter(torch.full((width,), gain))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        mixed = self.mix(x.transpose(1, 2)).transpose(1, 2)
        return x + self.gain * self.down(F.gelu(self.up(self.norm(mixed))))


class Trunk(nn.Module):
    """Linear in, ConvNeXt blocks, linear out, all at frame rate: (B, T, in) -> (B, T, out)."""

    def __init__(self, channels_in: int, channels_out: int, width: int, depth: int, expansion: int, kernel: int):
        super().__init__()
        self.enter = nn.Linear(channels_in, width)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, expansion, kernel, 1 / depth) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.leave = nn.Linear(width, channels_out)

    def features(self, x: Tensor) -> Tensor:
        """What the heads see: (B, T, in) -> (B, T, W)."""
        x = self.norm_in(self.enter(x))
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.features(x))


class SpectrumCodec(Codec):
    """A codec that writes magnitude spectra, and what turns waveforms into spectra and back.

    The decoder writes log magnitudes, and for every bin a small correction of the frequency that the magnitudes around
    it tell. Phases are not transmitted but follow from both (:func:`audio_var.phase.locked_phase`), so training needs
    no inverse STFT and no bits go into phase. GANSynth (arXiv 1902.08710) found frequencies better than phases for
    notes.

    Args:
        sample_rate: of the waveforms, in Hz.
        hop: samples that a latent frame stands for.
        latent_channels: C.
        fft_size, frame_hop: of the STFT, in samples.
        polish: Griffin-Lim iterations after locking that make overlapping frames agree (the fast variant,
            Perraudin et al., WASPAA 2013).
        fundamentals: lowest and highest, in Hz, of single notes, whose partials the decoder puts in tune with each
            other (:func:`audio_var.harmonics.tune_harmonics`); None, for any other sound, leaves them as written.

    Raises:
        UserError: `fundamentals` that are not two rising frequencies above 0.

    Shape notation: B batch, F = fft_size / 2 + 1 bins, T frames, N samples.
    """

    floor = 1e-4  # smallest magnitude told apart: 128 dB below a full-scale sinusoid at fft_size 1024
    center, spread = -4.0, 4.0  # of log magnitudes, to put network inputs and outputs near unit variance
    ceiling = 6.5

    def __init__(
        self, sample_rate: int, hop: int, latent_channels: int, fft_size: int, frame_hop: int, polish: int,
        fundamentals: Sequence[float] | None,
    ):  # fmt: skip
        super().__init__(sample_rate=sample_rate, hop=hop, latent_channels=latent_channels)
        if not (1 <= frame_hop <= fft_size and fft_size % 2 == 0 and 0 <= polish <= _MOST_POLISH):
            raise UserError(
                f"an STFT has an even fft_size and a hop of 1 to fft_size, and polish is 0 to {_MOST_POLISH}, got "
                f"{fft_size}, {frame_hop} and {polish}"
            )
        if fundamentals is not None and not 0 < fundamentals[0] < fundamentals[1]:
            raise UserError(f"fundamentals must be two rising frequencies in Hz, got {list(fundamentals)}")
        self.fft_size, self.frame_hop, self.polish, self.fundamentals = fft_size, frame_hop, polish, fundamentals
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)

    @abstractmethod
    def decode_spectrum(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latent -> log magnitudes (B, F, T) and frequency corrections (B, F, T) in bins."""

    def stft(self, waveform: Tensor) -> Tensor:
        """(B, N) -> (B, F, T) complex, T = N / frame_hop: frame t is centred on hop t's middle; zeros around it all."""
        margin = (self.fft_size - self.frame_hop) // 2
        padded = F.pad(waveform, (margin, margin))
        return torch.stft(padded, self.fft_size, self.frame_hop, window=self.window, center=False, return_complex=True)

    def overlap_add(self, spectrum: Tensor) -> Tensor:
        """Frames (B, F, T) complex -> their windowed sum and the power of the windows: (B + 1, N), margins included."""
        frames = torch.fft.irfft(spectrum, self.fft_size, dim=1) * self.window[:, None]  # (B, fft_size, T)
        length = (spectrum.shape[2] - 1) * self.frame_hop + self.fft_size
        envelope = self.window.square()[None, :, None].expand(1, -1, spectrum.shape[2])
        both = torch.cat([frames, envelope])
        # (B + 1, fft_size, T) -> (B + 1, length)
        return F.fold(both, (1, length), (1, self.fft_size), stride=(1, self.frame_hop)).flatten(1)

    def inverse_stft(self, spectrum: Tensor) -> Tensor:
        """(B, F, T) complex -> (B, T * frame_hop), the least-squares inverse of :meth:`stft`."""
        added = self.overlap_add(spectrum)
        margin = (self.fft_size - self.frame_hop) // 2
        added = added[:, margin : added.shape[1] - margin]
        return added[:-1] / added[-1:].clamp_min(1e-8)

    def log_magnitude(self, waveform: Tensor) -> Tensor:
        """(B, 1, N) -> (B, F, T) natural log magnitudes, softly floored."""
        return 0.5 * torch.log(self.stft(waveform.squeeze(1)).abs().square() + self.floor**2)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent -> (B, 1, N)."""
        return self.synthesize(*self.decode_spectrum(latent))

    def synthesize(self, log_magnitude: Tensor, correction: Tensor | None = None) -> Tensor:
        """Log magnitudes (B, F, T) and frequency corrections (B, F, T), 0 by default -> (B, 1, N).

        Differentiable in the magnitudes; phases count as constants.
        """
        if self.fundamentals is not None:
            correction = torch.zeros_like(log_magnitude) if correction is None else correction
            correction = tune_harmonics(log_magnitude, correction, *self.fundamental_bins)
        phase = locked_phase(log_magnitude.detach(), self.fft_size, self.frame_hop, correction)
        magnitude = self.magnitude(log_magnitude)
        if self.polish:
            phase = self._polish(magnitude.detach(), phase)
        return self.inverse_stft(torch.polar(magnitude, phase)).unsqueeze(1)

    @property
    def fundamental_bins(self) -> tuple[float, float]:
        """The range of fundamentals, in bins."""
        low, high = (frequency * self.fft_size / self.sample_rate for frequency in self.fundamentals)
        return low, high

    def magnitude(self, log_magnitude: Tensor) -> Tensor:
        """Log magnitudes to magnitudes, by the soft floor's inverse: what was silent comes out silent."""
        return (torch.exp(2 * log_magnitude) - self.floor**2).clamp_min(1e-12).sqrt()

    @torch.no_grad()
    def _polish(self, magnitude: Tensor, phase: Tensor, momentum: float = 0.9) -> Tensor:
        """Fast Griffin-Lim from `phase` on: (B, F, T) -> (B, F, T)."""
        before = None
        for _ in range(self.polish):
            again = self.stft(self.inverse_stft(torch.polar(magnitude, phase)))
            ahead = again if before is None else again + momentum * (again - before)
            before, phase = again, ahead.angle()
        return phase


class SpectralCodec(SpectrumCodec):
    """Waveform -> latent -> waveform through magnitude spectra.

    The encoder reads log magnitudes, and the decoder writes them and frequencies, both at frame rate. The layout is
    that of Vocos (arXiv 2306.00814) with frequencies in place of its phase output.

    Args:
        sample_rate: of the waveforms, in Hz.
        fft_size, hop: of the STFT, in samples; hop is also the stride of the latent.
        latent_channels: C.
        width, expansion, kernel: of the ConvNeXt blocks.
        encoder_depth, decoder_depth: numbers of blocks.
        polish, fundamentals: see :class:`SpectrumCodec`.

    Raises:
        UserError: `fundamentals` that are not two rising frequencies above 0.

    Shape notation: B batch, C latent channels, F = fft_size / 2 + 1 bins, T frames, N samples.
    """

    name = "spectral"

    def __init__(
        self,
        sample_rate: int = 16000,
        fft_size: int = 1024,
        hop: int = 256,
        latent_channels: int = 64,
        width: int = 256,
        expansion: int = 3,
        kernel: int = 7,
        encoder_depth: int = 4,
        decoder_depth: int = 6,
        polish: int = 0,
        fundamentals: tuple[float, float] | None = None,
    ):
        super().__init__(sample_rate, hop, latent_channels, fft_size, hop, polish, fundamentals)
        self.config = {
            "sample_rate": sample_rate,
            "fft_size": fft_size,
            "hop": hop,
            "latent_channels": latent_channels,
            "width": width,
            "expansion": expansion,
            "kernel": kernel,
            "encoder_depth": encoder_depth,
            "decoder_depth": decoder_depth,
            "polish": polish,
            "fundamentals": None if fundamentals is None else list(fundamentals),
        }
        self.context = decoder_depth * (kernel // 2)
        bins = fft_size // 2 + 1
        self.encoder = Trunk(bins, latent_channels, width, encoder_depth, expansion, kernel)
        self.decoder = Trunk(latent_channels, bins, width, decoder_depth, expansion, kernel)
        self.frequency = nn.Linear(width, bins)
        nn.init.zeros_(self.frequency.weight)
        nn.init.zeros_(self.frequency.bias)

    def encode(self, waveform: Tensor) -> Tensor:
        """(B, 1, N) -> (B, C, T)."""
        return self.encode_log_magnitude(self.log_magnitude(waveform))

    def encode_log_magnitude(self, log_magnitude: Tensor) -> Tensor:
        """(B, F, T) -> (B, C, T)."""
        x = (log_magnitude - self.center) / self.spread
        return self.encoder(x.transpose(1, 2)).transpose(1, 2)

    def decode_spectrum(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T) -> log magnitudes (B, F, T) and frequency corrections (B, F, T) in bins."""
        x = self.decoder.features(latent.transpose(1, 2))
        log_magnitude = self.decoder.leave(x).transpose(1, 2) * self.spread + self.center
        return log_magnitude.clamp_max(self.ceiling), self.frequency(x).transpose(1, 2)
