"""The pitch of a note from the spectral peaks of a whole clip, and its partials put in tune with it."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from audio_var.phase import nearest_peak, peak_frequency

CELL = 0.1  # bins: width of a cell of the histogram of peaks
STEP = 10.0  # cents between coarse candidates
FINE = 2.0  # cents between fine ones
REACH = 60.0  # cents searched on either side of a coarse candidate
WIDTH = 0.5  # bins: how far a peak may lie from a harmonic and still speak for the candidate
MOST = 0.5  # bins: a harmonic on average further off is another sound
NEAR = 0.25  # of the fundamental: peaks as near as this to a multiple are that harmonic


@functools.lru_cache(maxsize=4)
def _comb(lowest: float, highest: float, cells: int, harmonics: int) -> tuple[Tensor, Tensor]:
    """Candidates in bins (K,), and the agreement of each with a peak in each cell, (cells, K), from -1 to 1."""
    count = int(1200 * math.log2(highest / lowest) / STEP) + 1
    candidates = lowest * 2 ** (torch.arange(count) * STEP / 1200)
    ratio = (torch.arange(cells)[:, None] + 0.5) * CELL / candidates  # (cells, K)
    inside = (ratio > 0.5) & (ratio < harmonics + 0.5)
    return candidates, torch.where(inside, torch.cos(2 * math.pi * ratio), 0.0)


def _fundamental(histogram: Tensor, lowest: float, highest: float, harmonics: int, tie: float) -> tuple[Tensor, Tensor]:
    """Fundamental in bins and how much of the peaks' weight its harmonics explain: (B, cells) -> (B,), (B,)."""
    cells = histogram.shape[1]
    candidates, comb = (x.to(histogram.device) for x in _comb(lowest, highest, cells, harmonics))
    score = histogram @ comb  # (B, K)
    # A fundamental's sub-multiples explain its peaks as well: of all that do nearly as well as the best, the highest,
    # at the top of its hill.
    good = score >= score.amax(1, keepdim=True) - tie
    index = torch.arange(len(candidates), device=score.device)
    top = (good * index).amax(1, keepdim=True)  # (B, 1)
    rising = torch.diff(score, dim=1, prepend=score[:, :1] - 1) >= 0  # (B, K): as high as the neighbour below
    coarse = torch.where(rising & (index <= top), index, 0).amax(1)
    found = score.gather(1, coarse[:, None])[:, 0]
    fine = torch.arange(-REACH, REACH + FINE / 2, FINE, device=score.device)
    near = candidates[coarse, None] * 2 ** (fine / 1200)  # (B, J)
    place = (torch.arange(cells, device=score.device) + 0.5) * CELL
    number = torch.round(place / near[..., None])  # (B, J, cells)
    away = (place - number * near[..., None]) / WIDTH
    inside = (number >= 1) & (number <= harmonics)
    agreement = (histogram[:, None] * torch.exp(-0.5 * away.square()) * inside).sum(2)  # (B, J)
    return near.gather(1, agreement.argmax(1, keepdim=True))[:, 0], found


@torch.no_grad()
def tune_harmonics(
    log_magnitude: Tensor,
    correction: Tensor,
    lowest: float,
    highest: float,
    harmonics: int = 24,
    power: float = 0.5,
    least: float = 0.3,
    tie: float = 0.02,
) -> Tensor:
    """Frequency corrections under which the partials of a note lie, on average over the clip, on its harmonics.

    An error of a twentieth of a bin is inaudible in the twentieth harmonic and a fifth of a semitone in the first one
    of a low note. So the fundamental is taken from all harmonics together, and every harmonic is moved by the mean of
    its own deviation: vibrato and glides stay, and so do sounds in which no fundamental explains the peaks.

    Args:
        log_magnitude: (B, F, T) float, natural log of STFT magnitudes.
        correction: (B, F, T) float, added to the interpolated frequency of a peak in that bin; in bins.
        lowest, highest: range of fundamentals, in bins.
        harmonics: how many are tuned.
        power: peaks count by their magnitude to this power.
        least: share of the peaks' weight, less what lies between harmonics, that a fundamental must explain.
        tie: how much less of it a higher fundamental may explain and still be preferred.

    Returns:
        (B, F, T) float.

    Shape notation: B batch, F frequency bins, T frames, K, J candidates.
    """
    count = min(log_magnitude.shape[1], math.ceil((harmonics + 1) * highest), math.ceil(100 * lowest))
    magnitude = log_magnitude[:, :count]
    bins = torch.arange(count, device=magnitude.device)[None, :, None].expand_as(magnitude)
    weight = torch.exp(power * magnitude) * (nearest_peak(log_magnitude)[:, :count] == bins)
    weight = weight / weight.sum((1, 2), keepdim=True).clamp_min(1e-12)
    frequency = peak_frequency(log_magnitude, bins.expand_as(magnitude)) + correction[:, :count]
    cells = math.ceil(count / CELL)
    cell = (frequency / CELL).long().clamp(0, cells - 1)
    histogram = weight.new_zeros(len(weight), cells).scatter_add_(1, cell.flatten(1), weight.flatten(1))
    fundamental, explained = _fundamental(histogram, lowest, highest, harmonics, tie)
    fundamental = fundamental[:, None, None]
    for _ in range(3):
        number = torch.round(frequency / fundamental)
        away = frequency - number * fundamental
        inside = (number >= 1) & (number <= harmonics)
        trust = weight * inside * torch.exp(-0.5 * (away / WIDTH).square())
        total = (trust * number.square()).sum((1, 2), keepdim=True)
        fitted = (trust * number * frequency).sum((1, 2), keepdim=True) / total.clamp_min(1e-12)
        fundamental = torch.where(total > 1e-6, fitted, fundamental)
    number = torch.round(frequency / fundamental)
    away = frequency - number * fundamental
    inside = (number >= 1) & (number <= harmonics) & (away.abs() < NEAR * fundamental)
    number = torch.where(inside, number, 0).long()
    share = (weight * inside).flatten(1)
    deviation = weight.new_zeros(len(weight), harmonics + 1)
    total = deviation.scatter_add(1, number.flatten(1), share)
    deviation = deviation.scatter_add(1, number.flatten(1), share * away.flatten(1)) / total.clamp_min(1e-12)
    deviation = torch.where(deviation.abs() < MOST, deviation, 0.0)
    moved = deviation.gather(1, number.flatten(1)).view_as(away) * inside
    moved = moved * (explained > least)[:, None, None]
    tuned = correction.clone()
    tuned[:, :count] -= moved
    return tuned
