"""How far a decoded clip is from its original: in waveform, spectrum, pitch, and to a listener."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from audio_var.losses import MelDistance, Spectrum, log_mel_distance, spectral_convergence
from audio_var.pitch import cents_between, estimate_pitch, refine_pitch
from next_scale.errors import UserError

if TYPE_CHECKING:
    from visqol import VisqolApi

__all__ = [
    "MelDistance",
    "cents_between",
    "estimate_pitch",
    "log_mel_distance",
    "multi_resolution_convergence",
    "pitch_error_cents",
    "refine_pitch",
    "si_sdr",
    "visqol",
]


def si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al., arXiv 1811.02508), in dB; higher is better.

    It compares waveforms sample by sample: a codec that does not transmit phase scores low however good it sounds.

    Shapes: reference (..., T), estimate (..., T) float -> (...) float32.
    """
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    return scale_invariant_signal_distortion_ratio(estimate.float(), reference.float())


@torch.no_grad()
def multi_resolution_convergence(
    reference: Tensor, estimate: Tensor, windows: tuple[int, ...] = (512, 1024, 2048)
) -> Tensor:
    """Spectral convergence || |X| - |Y| ||_F / || |X| ||_F of magnitude STFTs, averaged over windows; 0 is perfect.

    A silent estimate scores 1. Hann windows, hop a quarter.

    Shapes: reference (..., T), estimate (..., T) float -> (N,) float32, N product of the leading sizes.
    """
    scores = []
    for window in windows:
        spectrum = Spectrum(window).to(reference.device)
        scores.append(spectral_convergence(spectrum(estimate).sqrt(), spectrum(reference).sqrt(), floor=1e-6))
    return torch.stack(scores).mean(0)


def pitch_error_cents(
    original: Tensor, reconstruction: Tensor, sample_rate: int, nominal: Tensor | float | None = None
) -> Tensor:
    """Distance in cents between the pitch of notes and of their reconstructions.

    Without `nominal`, both pitches are estimated over the whole range, independently: an octave error counts 1200,
    whether the codec or the estimator made it. With `nominal`, the pitch that was played, both are looked for within a
    semitone of it: the error of intonation alone, for which the estimator needs no decision about octaves.

    Args:
        original, reconstruction: (B, T) float.
        sample_rate: Hz.
        nominal: Hz, (B,) or one for all.

    Returns:
        (B,) float32, not negative.
    """
    if nominal is None:
        (was, _), (now, _) = (estimate_pitch(x, sample_rate) for x in (original, reconstruction))
    else:
        was, now = (refine_pitch(x, sample_rate, nominal) for x in (original, reconstruction))
    return cents_between(now, was).abs()


@functools.lru_cache(maxsize=2)
def _visqol_api(mode: str) -> VisqolApi:
    try:
        from visqol import VisqolApi
    except ImportError as error:
        raise UserError("ViSQOL is not installed: pip install visqol-python") from error
    logging.getLogger("visqol").setLevel(logging.ERROR)  # it warns of every clip that is shorter than it likes
    api = VisqolApi()
    api.create(mode=mode)
    return api


def visqol(reference: Tensor, estimate: Tensor, sample_rate: int, mode: str = "audio") -> Tensor:
    """ViSQOL v3 (Chinen et al., arXiv 2004.09584): predicted mean opinion score, higher is better.

    From 1 to about 4.7 in `audio` mode and 5 in `speech` mode.

    Clips are resampled to the rate of the mode, 48 kHz for `audio` and 16 kHz for `speech`; a clip of 16 kHz then
    leaves the bands above 8 kHz empty in both signals. A silent reference scores NaN.

    Shapes: reference (T,) or (B, T), estimate likewise, float, full scale 1 -> (B,) float32, B = 1 for single clips.

    Raises UserError where the package is absent, a mode is unknown, or a clip is too short (80 ms) to be compared.
    """
    from torchaudio.functional import resample

    rates = {"audio": 48000, "speech": 16000}
    if mode not in rates:
        raise UserError(f"ViSQOL has no mode '{mode}': choose one of {', '.join(rates)}")
    api = _visqol_api(mode)
    pairs = torch.stack([torch.atleast_2d(x).detach().cpu().float() for x in (reference, estimate)], 1)  # (B, 2, T)
    pairs = resample(pairs, sample_rate, rates[mode]).double().numpy()
    scores = []
    for number, (was, now) in enumerate(pairs):
        try:
            scores.append(api.measure_from_arrays(was, now, rates[mode]).moslqo)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"ViSQOL cannot compare clip {number}: {error}") from error
    return torch.tensor(scores, dtype=torch.float32)
