"""A score played by a model: every kind of note drawn once, in a batch, tuned, and mixed where it belongs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audio_var.data.families import PROGRAM_FAMILY
from audio_var.long import plan_lasting, sound_long
from audio_var.pitch import HIGHEST, LOWEST, cents_between, estimate_pitch, refine_pitch
from audio_var.score import Score, within
from next_scale.cli import sample_seed
from next_scale.condition import NOT_GIVEN, collate_conditions, encode_condition
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.sampling import SamplingOptions

PEAK = 0.9  # of the mix
CANDIDATES = 4  # drawn of every kind of note
RELEASE = 0.08  # seconds in which a note fades that ends before the model's own does
SHORTEST = 0.05  # seconds that every note lasts
IN_TUNE = 50.0  # cents that a candidate may be off and still be chosen for its timbre
_STEADY = 0.75  # seconds of a note by which its loudness and timbre are judged
_SPREAD = 24.0  # greatest retuning, in semitones
_GRID = 1 / 32  # seconds: to how much the lengths of held notes are rounded, so that many are alike
_LOUDNESS = 2  # amplitude goes with velocity to this power, as General MIDI recommends


@dataclass(frozen=True)
class Kind:
    """What makes notes alike: the condition that the model is given (field -> index), and the pitch wanted."""

    condition: tuple[tuple[str, int], ...]
    pitch: int


@dataclass
class Performance:
    """A score as sound.

    Attributes:
        sound: (N,) float32 at the model's rate.
        kinds: how many kinds of notes were drawn.
        moved: how many notes were moved by octaves, being out of the model's range.
        cents: (kinds,) how far the notes drawn were from the pitch wanted before they were retuned.
    """

    sound: Tensor
    kinds: int
    moved: int
    cents: Tensor


def perform(
    model: Generator,
    score: Score,
    label: str | None = None,
    seed: int = 0,
    sampling: SamplingOptions | None = None,
    candidates: int = CANDIDATES,
    batch_size: int = 16,
    advance: Callable[[float], None] = lambda share: None,
) -> Performance:
    """Play a score.

    Notes of one label, pitch and velocity are of one kind, and drawn once. Of several candidates that one is taken
    that is in tune and, of these, most like the others of its label in timbre: else a melody would go from one
    instrument of a family to another. It is then retuned by what it is off, by resampling (soxr), which moves formants
    by as much: a few cents, or, of a model that is not told pitches, up to two octaves. Where the model knows
    velocities the nearest is asked for; loudness follows the score's velocity in any case, every kind being set to the
    same power first. A note ends with a short fade, or, longer than the model's notes, is held as
    :func:`audio_var.long.sound_long` does and ends with the model's own release.

    Args:
        label: of all notes; by default that of every note's program, and where that is in no family, piano's.
        seed: same seed, same sound.
        sampling: the model's own by default.
        candidates: drawn of every kind.
        advance: told the share of the work that has been done.

    Raises:
        UserError: the model has no such label.
    """
    kinds, moved = _kinds(model, score, label)
    longest: dict[Kind, float] = {}
    for kind, note in zip(kinds, score.notes, strict=True):
        longest[kind] = max(longest.get(kind, SHORTEST), note.duration)
    found = _choose(model, list(longest), seed, sampling, candidates, batch_size, lambda share: advance(share * 0.7))
    sounds = _render(model, longest, found, sampling, batch_size, lambda share: advance(share * 0.3))
    codec = model.tokenizer.autoencoder
    rate, tail = codec.sample_rate, plan_lasting(model, 1).tail * codec.hop / codec.sample_rate
    size = max(round(note.start * rate) + len(sounds[kind]) for kind, note in zip(kinds, score.notes, strict=True))
    mix = torch.zeros(size)
    for kind, note in zip(kinds, score.notes, strict=True):
        sound = _ended(sounds[kind], max(note.duration, SHORTEST), tail, rate)
        start = round(note.start * rate)
        mix[start : start + len(sound)] += sound * (note.velocity / 127) ** _LOUDNESS
    mix *= PEAK / mix.abs().max().clamp_min(1e-9)
    return Performance(mix, len(longest), moved, torch.tensor([pick.cents for pick in found.values()]))


def _kinds(model: Generator, score: Score, label: str | None) -> tuple[list[Kind], int]:
    """The kind of every note, and how many of them are out of range."""
    spec = model.condition_spec
    if label is not None and "label" not in spec:
        raise UserError("this model has no labels: leave --label out")
    pitches, velocities = spec.get("pitch", range(128)), spec.get("velocity", range(1, 128))
    known, kinds, moved = {}, [], 0
    for note in score.notes:
        pitch = within(note.pitch, min(pitches), max(pitches))
        moved += pitch != note.pitch
        asked = (label, note.program, pitch, note.velocity)
        if asked not in known:
            given = {"pitch": pitch, "velocity": min(max(note.velocity, min(velocities)), max(velocities))}
            family = label or PROGRAM_FAMILY.get(note.program, PROGRAM_FAMILY[0])
            if label or family in spec.get("label", ()):
                given["label"] = family
            given = {field: value for field, value in given.items() if field in spec}
            known[asked] = Kind(tuple(sorted(encode_condition(spec, given).items())), pitch)
        kinds.append(known[asked])
    return kinds, moved


@dataclass(frozen=True)
class _Pick:
    """The candidate chosen: its seed, how many cents it is off, and its loudness (root mean square)."""

    seed: int
    cents: float
    power: float

    @property
    def factor(self) -> float:
        """By which its pitch is to be raised."""
        return 2 ** (-self.cents / 1200)


def _choose(
    model: Generator,
    kinds: Sequence[Kind],
    seed: int,
    sampling: SamplingOptions | None,
    candidates: int,
    batch_size: int,
    advance: Callable[[float], None],
) -> dict[Kind, _Pick]:
    """The best candidate of every kind."""
    seeds = [sample_seed(seed, number) for number in range(candidates)]
    jobs = [(kind, own) for kind in kinds for own in seeds]
    rate = model.tokenizer.autoencoder.sample_rate
    clips = []
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        condition = _collate(model, [kind for kind, _ in batch])
        clips.append(model.generate(condition, [own for _, own in batch], sampling)[0][:, 0].cpu())
        advance(len(batch) / len(jobs))
    clips = torch.cat(clips)  # (kinds * candidates, N)
    wanted = torch.tensor([frequency_of(kind.pitch) for kind in kinds]).repeat_interleave(candidates)
    cents, octaves = (
        part.view(len(kinds), candidates) for part in _off(clips, wanted, rate, "pitch" in model.condition_spec)
    )
    steady = clips[:, : round(_STEADY * rate)]
    power = steady.square().mean(1).sqrt().view(len(kinds), candidates)
    timbre = _timbre(steady, rate).view(len(kinds), candidates, -1)
    # silence, what is out of tune, and what sounds in another octave
    bad = 10.0 * (power < 1e-3) + (cents.abs() - IN_TUNE).clamp_min(0) / 100 + octaves
    by_label: dict[int, list[int]] = {}
    for number, kind in enumerate(kinds):
        by_label.setdefault(dict(kind.condition).get("label", NOT_GIVEN), []).append(number)
    picks = {}
    for rows in by_label.values():
        here = timbre[rows]  # (n, candidates, features)
        centre = here.flatten(0, 1).median(0).values  # the voice of a part: most of what was drawn for it
        distance = (here - centre).norm(dim=2) / here.shape[2] ** 0.5
        for row, best in zip(rows, (distance + bad[rows]).argmin(1).tolist(), strict=True):
            picks[kinds[row]] = _Pick(seeds[best], float(cents[row, best]), float(power[row, best]))
    return {kind: picks[kind] for kind in kinds}


def frequency_of(pitch: float) -> float:
    """Of a MIDI pitch in Hz: 69 is 440."""
    return 440.0 * 2 ** ((pitch - 69) / 12)


def _off(clips: Tensor, wanted: Tensor, rate: int, told: bool) -> tuple[Tensor, Tensor]:
    """How far clips (B, N) are from the pitches wanted, in Hz (B,): in cents (B,), and in octaves beside those (B,).

    A model that is told pitches is off by a semitone at most, or by octaves, as an organ's stops are, which is left so.
    """
    found, confidence = estimate_pitch(clips, rate)
    cents = cents_between(found, wanted)
    if not told:
        return cents.clamp(-100 * _SPREAD, 100 * _SPREAD), torch.zeros_like(cents)
    octaves = (cents / 1200).round()
    folded = cents - 1200 * octaves
    near = cents_between(refine_pitch(clips, rate, wanted), wanted)
    audible = (wanted > LOWEST) & (wanted < HIGHEST) & (confidence > 0.3)
    return torch.where(audible & (folded.abs() > 100), folded, near), torch.where(audible, octaves.abs(), 0.0)


def _timbre(clips: Tensor, rate: int) -> Tensor:
    """What tells one instrument from another, (B, N) -> (B, features): cepstra over eight parts of a note, unit spread.

    Without the level of the whole; its course in time stays.
    """
    from torchaudio.transforms import MFCC

    mel = {"n_fft": 1024, "hop_length": 256, "n_mels": 40}
    clips = torch.nn.functional.pad(clips, (0, max(0, mel["n_fft"] - clips.shape[1])))  # models of very short clips
    cepstra = MFCC(rate, n_mfcc=13, log_mels=True, melkwargs=mel)(clips)  # (B, 13, T)
    cepstra = torch.nn.functional.adaptive_avg_pool1d(cepstra, 8)
    cepstra[:, 0] -= cepstra[:, 0].mean(1, keepdim=True)
    features = cepstra.flatten(1)
    return features / features.std().clamp_min(1e-6)


def _render(
    model: Generator,
    longest: dict[Kind, float],
    picks: dict[Kind, _Pick],
    sampling: SamplingOptions | None,
    batch_size: int,
    advance: Callable[[float], None],
) -> dict[Kind, Tensor]:
    """Every kind at its longest, tuned and at one loudness: (n,) each; those of one length in batches."""
    codec, plan = model.tokenizer.autoencoder, plan_lasting(model, 1)
    rate, own, tail = codec.sample_rate, plan.size * codec.hop, plan.tail * codec.hop
    by_size: dict[int, list[Kind]] = {}
    for kind, seconds in longest.items():
        factor = picks[kind].factor
        held = seconds * (factor if abs(factor - 1) > 0.03 else 1)  # before retuning
        size = max(own, math.ceil(held / _GRID) * round(_GRID * rate) + tail)
        by_size.setdefault(size, []).append(kind)
    sounds = {}
    for size, kinds in by_size.items():
        for start in range(0, len(kinds), batch_size):
            batch = kinds[start : start + batch_size]
            condition = _collate(model, batch)
            pieces = [
                part.cpu() for part in sound_long(model, condition, [picks[k].seed for k in batch], size, sampling)
            ]
            for kind, sound in zip(batch, torch.cat(pieces, 2)[:, 0], strict=True):
                sounds[kind] = _retuned(sound, picks[kind].factor, rate) / max(picks[kind].power, 1e-3)
            advance(len(batch) / len(longest))
    return sounds


def _collate(model: Generator, kinds: Sequence[Kind]) -> dict[str, Tensor]:
    """What the model is to be asked for: field -> (B,) int64."""
    return collate_conditions([dict(kind.condition) for kind in kinds], model.condition_spec, model.vectors)


def _retuned(sound: Tensor, factor: float, rate: int) -> Tensor:
    """A sound (n,) raised in pitch by a factor, and as much shorter."""
    import soxr

    if abs(factor - 1) < 1e-4:
        return sound
    return torch.from_numpy(np.ascontiguousarray(soxr.resample(sound.numpy(), rate * factor, rate, quality="HQ")))


def _ended(sound: Tensor, duration: float, tail: float, rate: int) -> Tensor:
    """A sound (n,) that ends with a release of `tail` seconds, cut to a duration, with a short fade; or as it is."""
    stop, fade = round(duration * rate), round(RELEASE * rate)
    if len(sound) - stop <= max(fade, (tail + 2 * _GRID) * rate):
        return sound
    sound = sound[: stop + fade].clone()
    sound[stop:] *= torch.linspace(math.pi / 2, 0, fade).sin() ** 2
    return sound
