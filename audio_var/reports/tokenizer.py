"""What a tokenizer keeps of held-out notes: distances and pitch, scale by scale, beside Opus.

Shape notation: N notes, T samples, K scales, L tokens of a pyramid.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audio_var.baselines import opus_roundtrip
from audio_var.data.notes import Notes
from audio_var.io import write_audio
from audio_var.metrics import (
    MelDistance,
    cents_between,
    estimate_pitch,
    multi_resolution_convergence,
    refine_pitch,
    si_sdr,
    visqol,
)
from audio_var.plots import spectrogram_sheet
from next_scale.cli import Outputs, condition_stem, progress
from next_scale.errors import UserError
from next_scale.figure import draw_usage, new_figure
from next_scale.metrics import ScaleUsage, codebook_usage
from next_scale.model import fingerprint
from next_scale.report import decode, draw, encode, markdown_table, number, percent, shown_scales, write_report
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer

CENTS = 20.0
VISQOL_MODE = "audio"


@dataclass(frozen=True)
class TokenizerOptions:
    """What to measure.

    Args:
        limit: notes; None for all of the split.
        subset: notes for what takes long: the profile, Opus and ViSQOL.
        opus: bits per second to ask Opus for; empty for none.
        visqol: notes of the subset for ViSQOL; 0 for none.
        usage: count the use of codes over these splits, `test` or `all`.
        clips: notes written as audio and drawn.
        batch_size: notes at once.
    """

    limit: int | None = None
    subset: int = 320
    opus: tuple[int, ...] = ()
    visqol: int = 0
    usage: str = "test"
    clips: int = 6
    batch_size: int = 32


@dataclass
class Quality:
    """Means over notes.

    Attributes:
        notes: N.
        mel: log-mel distance of :class:`audio_var.losses.MelDistance`.
        convergence: multi-resolution spectral convergence.
        si_sdr: dB.
        in_tune: share of notes whose pitch, refined within a semitone of the played one, moved by at most 20 cents.
        cents: by how much it moved, median.
        in_tune_blind: the same with both pitches searched over the whole range.
        visqol: mean opinion score, None where not measured.
    """

    notes: int
    mel: float
    convergence: float
    si_sdr: float
    in_tune: float
    cents: float
    in_tune_blind: float
    visqol: float | None = None


@dataclass
class System:
    """One row of the table: a codec at a rate."""

    name: str
    kbits: float
    quality: Quality


@dataclass
class Step:
    """The pyramid's first k scales: bits so far, what is decoded from them, and how scale k uses its codes."""

    scale: int
    size: int
    bits: float
    kbits: float
    quality: Quality
    usage: ScaleUsage


@dataclass
class Register:
    """Notes from one MIDI pitch to another: low ones are the harder to keep in tune."""

    lowest: int
    highest: int
    quality: Quality


@dataclass
class TokenizerResult:
    """Everything a report shows. `clips` holds (name, real (T,), {k: decoded (T,)}) for a few notes."""

    fingerprint: str
    sample_rate: int
    seconds: float
    codebook_size: int
    usage_notes: int
    visqol_notes: int
    systems: list[System]
    profile: list[Step]
    registers: list[Register]
    clips: list[tuple[str, np.ndarray, dict[int, np.ndarray]]] = field(repr=False, default_factory=list)

    def to_data(self) -> dict:
        """All figures, for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "clips"}


def _plain(value: object) -> object:
    return [asdict(entry) for entry in value] if isinstance(value, list) else value


class Meter:
    """Measures reconstructions of notes; the originals' pitches are found once.

    Args:
        original: (N, T) float32.
        nominal: (N,) Hz, the pitches that were played.
        batch_size: notes at once, to bound memory.
    """

    def __init__(self, original: Tensor, nominal: Tensor, sample_rate: int, batch_size: int = 32):
        self.original, self.nominal = original, nominal
        self.sample_rate, self.batch_size = sample_rate, batch_size
        self.mel = MelDistance(sample_rate)
        self.pitch = refine_pitch(original, sample_rate, nominal)
        self.blind_pitch = estimate_pitch(original, sample_rate)[0]

    def __call__(self, estimate: Tensor) -> dict[str, Tensor]:
        """(N, T) -> figures of each note (N,)."""
        parts = [self._batch(rows, estimate[rows]) for rows in torch.arange(len(estimate)).split(self.batch_size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _batch(self, rows: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        original = self.original[rows]
        pitch = refine_pitch(estimate, self.sample_rate, self.nominal[rows])
        blind, _ = estimate_pitch(estimate, self.sample_rate)
        return {
            "mel": self.mel(original, estimate),
            "convergence": multi_resolution_convergence(original, estimate),
            "si_sdr": si_sdr(original, estimate),
            "cents": cents_between(pitch, self.pitch[rows]).abs(),
            "cents_blind": cents_between(blind, self.blind_pitch[rows]).abs(),
        }


def evaluate_tokenizer(tokenizer: Tokenizer, folder: str | Path, options: TokenizerOptions) -> TokenizerResult:
    """Measure a tokenizer on the test split of a set of notes.

    Raises:
        UserError: no notes there, or a tokenizer for another rate or length.
    """
    notes = Notes(folder, "test")
    schedule = check_tokenizer(tokenizer, notes)
    chosen = draw(options.limit or len(notes), len(notes))
    inner = draw(options.subset, len(chosen), seed=1)  # the subset, among the chosen
    subset = chosen[inner]
    size, rate = tokenizer.quantizer.codebook_size, notes.sample_rate
    seconds = notes.clip_samples / rate

    tokens, every = _measure(tokenizer, notes, chosen, options.batch_size)
    kbits = schedule.bits(size) / seconds / 1000
    original = notes.audio_batch(subset)[:, 0]
    meter = Meter(original, nominal_pitch(notes, subset), rate, options.batch_size)
    decoded = {}
    profile_figures = []
    with progress("profile", schedule.scales) as advance:
        for k in range(1, schedule.scales + 1):
            decoded[k] = decode(tokenizer, tokens[inner], options.batch_size, k)[:, 0]
            profile_figures.append(meter(decoded[k]))
            advance(1)
    whole = decoded[schedule.scales]
    systems = [System(f"this tokenizer, {len(chosen):,} notes", kbits, _mean(every))]
    if len(subset) < len(chosen) or options.visqol:
        quality = _mean(profile_figures[-1])
        quality.visqol = _visqol(original, whole, rate, options.visqol, "this tokenizer")
        systems.append(System(f"this tokenizer, {len(subset):,} notes", kbits, quality))
    for asked in options.opus:
        coded, actual = opus_roundtrip(original.numpy(), rate, asked)
        coded = torch.from_numpy(coded)
        quality = _mean(meter(coded))
        quality.visqol = _visqol(original, coded, rate, options.visqol, f"Opus {asked // 1000}k")
        systems.append(System(f"Opus, {len(subset):,} notes", actual / 1000, quality))

    counted = tokens if options.usage == "test" else _all_tokens(tokenizer, folder, options.batch_size)
    usage = codebook_usage(counted, schedule, size)
    profile, bits = [], 0.0
    for k, (figures, use) in enumerate(zip(profile_figures, usage, strict=True), start=1):
        bits += use.bits
        profile.append(Step(k, schedule.sizes[k - 1][0], bits, bits / seconds / 1000, _mean(figures), use))

    clips = []
    for row in draw(options.clips, len(subset), seed=2).tolist():
        condition = {name: int(index[0]) for name, index in notes.condition_batch([int(subset[row])]).items()}
        clip = {k: decoded[k][row].numpy() for k in shown_scales(schedule.scales)}
        name = f"{condition_stem(notes.condition_spec, condition)}_{int(subset[row]):04}"
        clips.append((name, original[row].numpy(), clip))
    heard = min(options.visqol, len(subset))
    name = fingerprint(tokenizer)
    registers = _registers(notes, chosen, every)
    return TokenizerResult(name, rate, seconds, size, len(counted), heard, systems, profile, registers, clips)


def _registers(notes: Notes, indices: Tensor, figures: dict[str, Tensor]) -> list[Register]:
    """The figures of notes (N,), octave by octave."""
    midi = torch.tensor(notes.condition_spec["pitch"])[notes.condition_batch(indices)["pitch"]]
    registers = []
    for octave in torch.unique(midi // 12).tolist():
        inside = midi // 12 == octave
        quality = _mean({name: values[inside] for name, values in figures.items()})
        registers.append(Register(int(midi[inside].min()), int(midi[inside].max()), quality))
    return registers


def check_tokenizer(tokenizer: Tokenizer, notes: Notes) -> Schedule:
    """The schedule for one note. Raises UserError where the tokenizer is for another rate or length."""
    codec = tokenizer.autoencoder
    if codec.sample_rate != notes.sample_rate:
        rates = f"{codec.sample_rate} Hz, the notes have {notes.sample_rate}"
        raise UserError(f"the tokenizer works at {rates}: evaluate it on notes of its own rate")
    if notes.clip_samples % codec.hop:
        raise UserError(f"notes of {notes.clip_samples} samples are no multiple of the codec's hop {codec.hop}")
    return tokenizer.quantizer.schedule_at((notes.clip_samples // codec.hop,))


def nominal_pitch(notes: Notes, indices: Tensor) -> Tensor:
    """The pitches that were played: (N,) Hz."""
    midi = torch.tensor(notes.condition_spec["pitch"])[notes.condition_batch(indices)["pitch"]]
    return 440 * 2 ** ((midi - 69) / 12)


def _measure(tokenizer: Tokenizer, notes: Notes, indices: Tensor, batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Tokens (N, L) and the figures of every note."""
    tokens, figures = [], []
    with progress("reconstructing", len(indices)) as advance:
        for part in indices.split(batch_size):
            original = notes.audio_batch(part)
            tokens.append(encode(tokenizer, original))
            made = decode(tokenizer, tokens[-1], batch_size)[:, 0]
            meter = Meter(original[:, 0], nominal_pitch(notes, part), notes.sample_rate)
            figures.append(meter(made))
            advance(len(part))
    return torch.cat(tokens), {name: torch.cat([f[name] for f in figures]) for name in figures[0]}


def _mean(figures: dict[str, Tensor]) -> Quality:
    return Quality(
        notes=len(figures["mel"]),
        **{name: float(figures[name].double().mean()) for name in ("mel", "convergence", "si_sdr")},
        in_tune=float((figures["cents"] <= CENTS).double().mean()),
        cents=float(figures["cents"].median()),
        in_tune_blind=float((figures["cents_blind"] <= CENTS).double().mean()),
    )


def _visqol(original: Tensor, estimate: Tensor, rate: int, count: int, name: str) -> float | None:
    """Mean ViSQOL of the first `count` notes."""
    if not count:
        return None
    scores = []
    with progress(f"ViSQOL, {name}", min(count, len(original))) as advance:
        for was, now in zip(original[:count], estimate[:count], strict=True):
            # full level for both: the notes' own level is that of their velocity, not of a listener's knob
            gain = 0.9 / was.abs().max().clamp_min(1e-4)
            scores.append(visqol(gain * was, gain * now, rate, VISQOL_MODE))
            advance(1)
    return float(torch.cat(scores).double().mean())


def _all_tokens(tokenizer: Tokenizer, folder: str | Path, batch_size: int) -> Tensor:
    notes = Notes(folder, "all")
    tokens = []
    with progress("use of codes", len(notes)) as advance:
        for part in torch.arange(len(notes)).split(batch_size):
            tokens.append(encode(tokenizer, notes.audio_batch(part)))
            advance(len(part))
    return torch.cat(tokens)


def write_tokenizer_report(result: TokenizerResult, command: str, outputs: Outputs, out: Path, data: str) -> None:
    """Write report.json, report.md, profile.png, spectrograms.png and clips/ into `out`; measured on `data`."""
    outputs.folder(out / "clips")
    text = _page(result, command)
    write_report(
        result.to_data(), text, outputs.file(out / "report.json"), outputs.file(out / "report.md"), command, data
    )
    _draw_profile(result, outputs.file(out / "profile.png"))
    sheet = []
    for name, real, decoded in result.clips:
        gain = 0.9 / max(float(np.abs(real).max()), 1e-4)  # one gain for a note and all that is decoded for it
        write_audio(outputs.file(out / "clips" / f"{name}_real.flac"), gain * real, result.sample_rate)
        sheet.append((f"{name}, real", gain * real))
        for k, clip in sorted(decoded.items(), reverse=True):
            write_audio(outputs.file(out / "clips" / f"{name}_scales{k:02}.flac"), gain * clip, result.sample_rate)
            title = "first scale" if k == 1 else f"first {k} scales" if k < len(result.profile) else f"all {k} scales"
            sheet.append((title, gain * clip))
    if sheet:
        columns = len(sheet) // len(result.clips)
        spectrogram_sheet(outputs.file(out / "spectrograms.png"), sheet, result.sample_rate, columns)


def _page(result: TokenizerResult, command: str) -> str:
    rows = []
    for system in result.systems:
        q = system.quality
        figures = (number(q.mel, 3), number(q.convergence, 3), number(q.si_sdr, 1))
        pitch = (percent(q.in_tune), number(q.cents, 1), percent(q.in_tune_blind))
        rows.append((system.name, number(system.kbits, 2), *figures, *pitch, number(q.visqol, 2)))
    header = ("", "kbit/s", "log-mel", "convergence", "SI-SDR, dB", "pitch", "median, cents", "pitch, blind", "ViSQOL")
    table = markdown_table(header, rows)
    figures = ("log-mel", "convergence", "pitch", "perplexity", "codes used")
    profile = markdown_table(
        ("scale", "size", "bits so far", "kbit/s so far", *figures),
        [
            (
                step.scale, step.size, f"{step.bits:,.0f}", number(step.kbits, 3), number(step.quality.mel, 3),
                number(step.quality.convergence, 3), percent(step.quality.in_tune), number(step.usage.perplexity, 0),
                f"{step.usage.used} of {result.codebook_size} ({step.usage.expected:.0f})",
            )
            for step in result.profile
        ],
    )  # fmt: skip
    registers = markdown_table(
        ("MIDI pitch", "N", "log-mel", "convergence", "pitch", "median, cents", "pitch, blind"),
        [
            (
                f"{r.lowest} to {r.highest}", r.quality.notes,
                number(r.quality.mel, 3), number(r.quality.convergence, 3),
                percent(r.quality.in_tune), number(r.quality.cents, 1), percent(r.quality.in_tune_blind),
            )
            for r in result.registers
        ],
    )  # fmt: skip
    visqol_text = ""
    if result.visqol_notes:
        visqol_text = (
            f"\n- ViSQOL: predicted mean opinion score of the first {result.visqol_notes:,} notes of the subset, "
            f"{VISQOL_MODE} mode, upsampled to 48 kHz, at peak 0.9."
        )
    entropy = sum(step.usage.entropy for step in result.profile) / result.seconds / 1000
    subset = result.profile[-1].quality.notes
    return f"""# Tokenizer {result.fingerprint} on held-out notes

`{command}`

{table}
- log-mel: mean |log10 mel| difference, windows 512/1024/2048, 40/80/128 mels, floor 1e-5, every note at peak 0.9.
- convergence: spectral convergence of magnitude spectra, mean over windows 512/1024/2048; 0 is perfect.
- SI-SDR compares waveforms sample by sample: a codec that does not transmit phase scores low however it sounds.
- pitch: share of notes whose pitch moved by at most {CENTS:g} cents, both pitches refined within a semitone of the one
  that was played (where no tone is left, chance finds about a fifth), and the median movement; blind: both searched
  over the whole range, so that an octave error of the estimator counts.
- Opus: libopus, variable rate, all notes in one stream; bits counted from its packets.{visqol_text}

## Low and high notes

{registers}
## The pyramid, scale by scale

Decoded from the first scales only, {subset:,} notes. Use of codes over {result.usage_notes:,} notes; in brackets, how
many codes so few tokens would touch if all codes were used alike. An ideal code for each scale's code frequencies would
take {entropy:.2f} kbit/s.

{profile}
![Distortion and use of codes after each scale](profile.png)

![Spectrograms of real notes and of what the first scales give](spectrograms.png)

`clips/` holds these notes as audio.
"""


def _draw_profile(result: TokenizerResult, path: Path) -> None:
    figure = new_figure(12, 3.6)
    rates = [step.kbits for step in result.profile]
    opus = [system for system in result.systems if system.name.startswith("Opus")]
    panels = figure.subplots(1, 3)
    for axis, name, title in zip(panels, ("mel", "convergence"), ("log-mel", "spectral convergence"), strict=False):
        axis.plot(rates, [getattr(step.quality, name) for step in result.profile], marker="o", label="first k scales")
        if opus:
            points = [getattr(system.quality, name) for system in opus]
            axis.plot([system.kbits for system in opus], points, marker="s", label="Opus")
            axis.legend()
        axis.set(xscale="log", xlabel="kbit/s", ylabel=title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    draw_usage(panels[2], [step.usage for step in result.profile], result.codebook_size)
    figure.savefig(path, format="png")
