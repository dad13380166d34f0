"""Spectral distances between waveforms: the log-mel metric and the losses that train codecs.

All of them accept waveforms of any leading shape with time last. Their transforms run in float32 whatever the precision
around them (in float64 for float64 waveforms).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

MEL_WINDOWS = (512, 1024, 2048)
MEL_BANDS = (40, 80, 128)
MEL_FLOOR = 1e-5


class Spectrum(nn.Module):
    """Short-time power spectrum |STFT|^2: Hann window, centred frames, no normalisation.

    The input is padded with zeros, so any length from one sample up is accepted.

    Args:
        window: length of the window and of the transform, samples.
        hop: samples between frames; a quarter of the window when not given.

    Shapes: waveform (..., T) float -> power (N, F, T/hop + 1) float32; N product of the leading sizes,
    F = window/2 + 1.
    """

    def __init__(self, window: int, hop: int | None = None) -> None:
        super().__init__()
        self.size = window
        self.hop = window // 4 if hop is None else hop
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            flat = waveform.reshape(-1, waveform.shape[-1])  # (..., T) -> (N, T)
            flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
            spectrum = torch.stft(
                flat,
                self.size,
                self.hop,
                window=self.window.to(flat.dtype),
                pad_mode="constant",
                return_complex=True,
            )
            # Sum of squares rather than abs(): its gradient is zero, not undefined, at silence.
            return spectrum.real.square() + spectrum.imag.square()


class MelSpectrum(nn.Module):
    """Power mel spectrogram: triangular filters on the HTK mel scale from 0 Hz to Nyquist, peak 1 (not normalised).

    Args:
        sample_rate: Hz.
        window: samples; the hop is a quarter of it.
        bands: number of mel filters.

    Shapes: waveform (..., T) float -> (N, M, T/hop + 1) float32; N product of the leading sizes, M bands.
    """

    def __init__(self, sample_rate: int, window: int, bands: int) -> None:
        super().__init__()
        self.spectrum = Spectrum(window)
        filters = melscale_fbanks(window // 2 + 1, 0.0, sample_rate / 2, bands, sample_rate, norm=None, mel_scale="htk")
        self.register_buffer("filters", filters.T.contiguous(), persistent=False)  # (F, M) -> (M, F)

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            power = self.spectrum(waveform)
            return self.filters.to(power.dtype) @ power


class LogMelLoss(nn.Module):
    """Mean |log10 mel| difference over several windows; differentiable.

    d(x, y) = mean over windows of mean over bands and frames of |log10 max(mel x, floor) - log10 max(mel y, floor)|,
    with `mel` the power mel spectrogram of `MelSpectrum`. Bands where both lie below the floor cost nothing.

    Args:
        sample_rate: Hz.
        windows: window lengths, samples.
        bands: mel bands of each window.
        floor: smallest mel power told apart from silence.
        soft: add the floor instead of clamping to it. A clamp has no gradient below the floor; with `soft` a
            reconstruction that lies below it is still pulled up. The value differs from the metric by about 1%.

    Shapes: estimate (..., T), target (..., T) float -> scalar float32.
    """

    def __init__(
        self,
        sample_rate: int,
        windows: Sequence[int] = MEL_WINDOWS,
        bands: Sequence[int] = MEL_BANDS,
        floor: float = MEL_FLOOR,
        soft: bool = True,
    ) -> None:
        super().__init__()
        self.mels = nn.ModuleList(MelSpectrum(sample_rate, w, m) for w, m in zip(windows, bands, strict=True))
        self.floor = floor
        self.soft = soft

    def log_mel(self, mel: Tensor) -> Tensor:
        return torch.log10(mel + self.floor if self.soft else mel.clamp_min(self.floor))

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        distances = []
        for mel in self.mels:
            with torch.set_grad_enabled(torch.is_grad_enabled() and target.requires_grad):
                wanted = self.log_mel(mel(target))
            distances.append(F.l1_loss(self.log_mel(mel(estimate)), wanted))
        return torch.stack(distances).mean()


class MultiResolutionSTFTLoss(nn.Module):
    """Spectral convergence plus log-magnitude L1 over several windows (Parallel WaveGAN, arXiv 1910.11480, sec. 2.2).

    Spectral convergence ||X - Y||_F / ||X||_F is taken per waveform, so loud ones do not hide quiet ones; a waveform's
    norm is bounded below by `floor` times the root of its number of bins, so a silent target stays finite.

    Args:
        windows: window lengths, samples; each hop is a quarter of its window.
        convergence: weight of the spectral convergence.
        log_magnitude: weight of the mean |ln X - ln Y|.
        floor: magnitude added before the logarithm.

    Shapes: estimate (..., T), target (..., T) float -> scalar float32.
    """

    def __init__(
        self,
        windows: Sequence[int] = (256, 512, 1024, 2048),
        convergence: float = 1.0,
        log_magnitude: float = 1.0,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        self.spectra = nn.ModuleList(Spectrum(w) for w in windows)
        self.convergence = convergence
        self.log_magnitude = log_magnitude
        self.floor = floor

    def magnitude(self, power: Tensor) -> Tensor:
        # The constant bounds the root's gradient at silence; it lies 60 dB under the floor.
        return torch.sqrt(power + (1e-3 * self.floor) ** 2)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        terms = []
        for spectrum in self.spectra:
            with torch.set_grad_enabled(torch.is_grad_enabled() and target.requires_grad):
                wanted = self.magnitude(spectrum(target))
            found = self.magnitude(spectrum(estimate))
            term = 0.0
            if self.convergence:
                term = term + self.convergence * spectral_convergence(found, wanted, self.floor).mean()
            if self.log_magnitude:
                term = term + self.log_magnitude * F.l1_loss(
                    torch.log(found + self.floor), torch.log(wanted + self.floor)
                )
            terms.append(term)
        return torch.stack(terms).mean()


def spectral_convergence(found: Tensor, wanted: Tensor, floor: float) -> Tensor:
    """||wanted - found||_F / ||wanted||_F of magnitude spectrograms.

    Shapes: found (N, F, T), wanted (N, F, T) float -> (N,).
    """
    bins = wanted.shape[1] * wanted.shape[2]
    # A norm at zero has no gradient: the tiny constant gives it one (zero) when both are equal.
    error = torch.sqrt((wanted - found).square().sum((1, 2)) + 1e-12)
    size = torch.linalg.vector_norm(wanted, dim=(1, 2)).clamp_min(floor * bins**0.5)
    return error / size


class MelDistance(nn.Module):
    """The log-mel metric of the result tables: mean |log10 mel| difference, windows 512/1024/2048, 40/80/128 mels.

    Power mel spectrogram as in `MelSpectrum` (|STFT|^2, Hann, hop a quarter window, HTK scale, filters of peak 1, those
    of torchaudio's MelSpectrogram), clamped below at 1e-5. As the floor is absolute, the distance depends on loudness:
    both waveforms are first multiplied by the gain that brings the reference's peak to `peak`; the estimate gets the
    reference's gain, so an error in level counts. Under this definition Opus scores as the tables of the project say.

    Args:
        sample_rate: Hz.
        peak: amplitude that the reference is scaled to; None compares the waveforms as they are.

    Shapes: reference (..., T), estimate (..., T) float -> (N,) float32, one distance a waveform.
    """

    def __init__(self, sample_rate: int, peak: float | None = 0.9) -> None:
        super().__init__()
        self.mels = nn.ModuleList(MelSpectrum(sample_rate, w, m) for w, m in zip(MEL_WINDOWS, MEL_BANDS, strict=True))
        self.peak = peak

    @torch.no_grad()
    def forward(self, reference: Tensor, estimate: Tensor) -> Tensor:
        if self.peak is not None:
            gain = self.peak / reference.abs().amax(-1, keepdim=True).clamp_min(1e-4)
            reference, estimate = reference * gain, estimate * gain
        total = 0.0
        for mel in self.mels:
            a, b = (mel(x).clamp_min(MEL_FLOOR).log10() for x in (reference, estimate))
            total = total + (a - b).abs().mean((1, 2))
        return total / len(self.mels)


def log_mel_distance(a: Tensor, b: Tensor, sample_rate: int, peak: float | None = 0.9) -> Tensor:
    """`MelDistance` of estimate b from reference a, averaged over all waveforms.

    Shapes: a (..., T), b (..., T) float -> scalar float32.
    """
    return MelDistance(sample_rate, peak).to(a.device)(a, b).mean()
