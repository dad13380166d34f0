"""Codecs side by side on the same recordings: distortion, rate, speed, and use of codes.

Shape notation: T samples of a clip, W windows, L tokens of a pyramid, K scales, V codes.
"""

from __future__ import annotations

import csv
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audio_var.baselines import opus_roundtrip
from audio_var.io import check_audio, read_audio
from audio_var.losses import MultiResolutionSTFTLoss
from audio_var.metrics import MelDistance, si_sdr, visqol
from next_scale.cli import Outputs, progress
from next_scale.errors import UserError
from next_scale.figure import new_figure
from next_scale.report import draw, markdown_table, number, percent, write_report
from next_scale.tokenizer import Tokenizer

if TYPE_CHECKING:
    from audio_var.codecs.spec import Spec

PEAK = 0.9  # amplitude that every clip is brought to before it is measured
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)  # Hz
SHORTEST = 0.1  # seconds
VISQOL_RATE = 16000  # Hz below which ViSQOL would judge mostly bands that are empty in both signals


class Clip(NamedTuple):
    """A recording: its name and its samples, float32 (T,)."""

    name: str
    samples: np.ndarray


@dataclass
class Usage:
    """How one scale uses its codebook: codes in it and used, tokens counted, entropy of one token in bits."""

    codes: int
    used: int
    tokens: int
    entropy: float

    @property
    def expected(self) -> float:
        """Codes that would occur in as many tokens if all were used alike."""
        return self.codes * (1 - (1 - 1 / self.codes) ** self.tokens)


@dataclass
class Measured:
    """One codec at one rate, means over clips.

    Attributes:
        name: of the codec. sample_rate: that it works at, in Hz.
        kbits: kbit/s spent, with what completes the last window of a clip. tokens: a second; None for Opus.
        si_sdr: dB. stft, mel: distances. visqol: mean opinion score; None where not measured.
        encode_rtf, decode_rtf: seconds of work a second of audio; None for Opus, which runs as a program of its own.
        usage: of every scale.
        entropy_kbits: kbit/s of an ideal code for the frequencies of each scale's codes.
    """

    name: str
    sample_rate: int
    kbits: float
    tokens: float | None
    si_sdr: float
    stft: float
    mel: float
    visqol: float | None
    encode_rtf: float | None = None
    decode_rtf: float | None = None
    usage: list[Usage] = field(default_factory=list)

    @property
    def used(self) -> float | None:
        """Share of all codebooks' entries that occur, of those that so many tokens could reach."""
        reach = sum(usage.expected for usage in self.usage)
        return min(1.0, sum(usage.used for usage in self.usage) / reach) if reach else None

    @property
    def perplexity(self) -> float | None:
        """2 to the entropy of a token, mean over scales, as a share of the codes."""
        if not self.usage:
            return None
        return sum(2**usage.entropy / usage.codes for usage in self.usage) / len(self.usage)

    @property
    def entropy_kbits(self) -> float | None:
        """kbit/s that an ideal code for each scale's frequencies would take."""
        bits = sum(usage.tokens * math.log2(usage.codes) for usage in self.usage)
        return self.kbits * sum(u.tokens * u.entropy for u in self.usage) / bits if bits else None


@dataclass
class CodecResult:
    """Everything a report shows."""

    data: str
    clips: int
    seconds: float
    sample_rate: int
    visqol_clips: int
    threads: int
    skipped: dict[str, int]
    systems: list[Measured]


def load_clips(
    folder: str | Path, limit: int, seconds: float, sample_rate: int | None = None
) -> tuple[list[Clip], int, dict[str, int]]:
    """Recordings of a folder: notes of the test split where it holds a set of notes, any audio files elsewhere.

    Args:
        limit: how many, drawn at random but always the same.
        seconds: longer ones are cut to this.
        sample_rate: to resample to, Hz; by default the commonest one among the files.

    Returns:
        Clips, their sample rate, and how many files were left out for which reason.

    Raises:
        UserError: nothing there that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: check the path")
    if (folder / "manifest.json").is_file():
        return *_notes(folder, limit, seconds, sample_rate), {}
    from audio_var.data.folder import SUFFIXES

    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    rates, skipped = {}, Counter()
    for path in found:
        try:
            info = check_audio(path)
        except UserError:
            skipped["cannot be read"] += 1
            continue
        if info.duration < SHORTEST:
            skipped[f"shorter than {SHORTEST:g} s"] += 1
        else:
            rates[path] = info.samplerate
    if not rates:
        raise UserError(f"{folder} holds no audio that can be used ({len(found)} files): give wav, flac, ogg or mp3")
    rate = sample_rate or Counter(rates.values()).most_common(1)[0][0]
    clips: list[Clip] = []
    order = torch.randperm(len(rates), generator=torch.Generator().manual_seed(0)).tolist()
    paths = list(rates)
    for index in order:
        if len(clips) == limit:
            break
        path = paths[index]
        try:
            samples = read_audio(path, rate, max_seconds=None, first=seconds)[: round(seconds * rate)]
        except UserError:
            skipped["damaged"] += 1
            continue
        if np.abs(samples).max() < 1e-3:
            skipped["silent"] += 1
            continue
        clips.append(Clip(path.relative_to(folder).as_posix(), samples))
    if not clips:
        raise UserError(f"{folder} holds only silence or damaged files: give recordings")
    return sorted(clips), rate, dict(skipped)


def _notes(folder: Path, limit: int, seconds: float, sample_rate: int | None) -> tuple[list[Clip], int]:
    from audio_var.data.notes import Notes

    notes = Notes(folder, "test")
    rate = sample_rate or notes.sample_rate
    chosen = draw(limit, len(notes))
    audio = notes.audio_batch(chosen)[:, 0].numpy()
    if rate != notes.sample_rate:
        audio = np.stack([_resampled(clip, notes.sample_rate, rate) for clip in audio])
    audio = audio[:, : round(seconds * rate)]
    return [Clip(f"note {int(index)}", clip) for index, clip in zip(chosen, audio, strict=True)], rate


def _resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """(T,) at one rate -> (T',) at another, float32."""
    import soxr

    return samples if rate == wanted else soxr.resample(samples, rate, wanted, quality="HQ").astype(np.float32)


def _fit(samples: np.ndarray, size: int) -> np.ndarray:
    """Cut or completed with zeros: (T',) -> (size,)."""
    return np.pad(samples, (0, max(0, size - len(samples))))[:size]


class Meter:
    """Measures what codecs make of the clips, all at the clips' own rate."""

    def __init__(self, clips: Sequence[Clip], sample_rate: int, visqol_clips: int):
        self.clips, self.sample_rate = clips, sample_rate
        self.visqol_clips = visqol_clips if sample_rate >= VISQOL_RATE else 0
        self.mel, self.stft = MelDistance(sample_rate, peak=None), MultiResolutionSTFTLoss()

    @torch.no_grad()
    def __call__(self, made: Sequence[np.ndarray], name: str) -> dict[str, float | None]:
        """One decoded clip (T,) an original -> means."""
        figures: dict[str, list[float]] = {"si_sdr": [], "stft": [], "mel": [], "visqol": []}
        for number_, (clip, samples) in enumerate(zip(self.clips, made, strict=True)):
            gain = PEAK / np.abs(clip.samples).max()
            was, now = (torch.from_numpy(gain * x.astype(np.float32))[None] for x in (clip.samples, samples))
            figures["si_sdr"].append(float(si_sdr(was, now)))
            figures["stft"].append(float(self.stft(now, was)))
            figures["mel"].append(float(self.mel(was, now)))
            if number_ < self.visqol_clips:
                try:
                    figures["visqol"].append(float(visqol(was, now, self.sample_rate)))
                except UserError as error:
                    raise UserError(f"{name}, {clip.name}: {error}") from error
        means = {key: float(np.mean(values)) if values else None for key, values in figures.items()}
        return means


def measure_tokenizer(name: str, tokenizer: Tokenizer, scales: int | None, meter: Meter, batch_size: int) -> Measured:
    """A tokenizer of any kind over all clips, from its first `scales` scales where given.

    Raises:
        UserError: it has not so many scales.
    """
    from audio_var.cli.clips import decode_audio, encode_audio, schedule_of

    if scales is not None and scales > tokenizer.quantizer.scales:
        raise UserError(f"{name}: it has {tokenizer.quantizer.scales} scales only")
    rate, size = tokenizer.autoencoder.sample_rate, tokenizer.quantizer.codebook_size
    kept = scales or tokenizer.quantizer.scales
    counts = torch.zeros(kept, size, dtype=torch.int64)
    seconds = sum(len(clip.samples) for clip in meter.clips) / meter.sample_rate
    spent, made = {"encode": 0.0, "decode": 0.0}, []

    def silent(_: float) -> None:
        pass

    with progress(name, len(meter.clips)) as advance, torch.inference_mode():
        # the first pass of all kinds of layers sets things up: it is not what a codec costs
        warm = np.zeros(min(len(clip.samples) for clip in meter.clips), np.float32)
        tokens, windows = encode_audio(tokenizer, warm, batch_size, silent)
        decode_audio(tokenizer, tokens, windows, scales, batch_size, silent)
        for clip in meter.clips:
            audio = _resampled(clip.samples, meter.sample_rate, rate)
            start = time.perf_counter()
            tokens, windows = encode_audio(tokenizer, audio, batch_size, silent)
            between = time.perf_counter()
            again = decode_audio(tokenizer, tokens, windows, scales, batch_size, silent)
            spent["encode"] += between - start
            spent["decode"] += time.perf_counter() - between
            for k, ids in enumerate(schedule_of(tokenizer, len(audio)).split(tokens)[:kept]):
                counts[k] += torch.bincount(ids.flatten(), minlength=size)
            made.append(_fit(_resampled(again, rate, meter.sample_rate), len(clip.samples)))
            advance(1)
    total = int(counts.sum())
    return Measured(
        name=name,
        sample_rate=rate,
        kbits=total * math.log2(size) / seconds / 1000,
        tokens=total / seconds,
        encode_rtf=spent["encode"] / seconds,
        decode_rtf=spent["decode"] / seconds,
        usage=[_usage(count) for count in counts],
        **meter(made, name),
    )


def _usage(count: Tensor) -> Usage:
    """Of one scale, from how often each code occurred: (V,)."""
    share = count.double() / count.sum()
    entropy = float(-torch.special.xlogy(share, share).sum()) / math.log(2)
    return Usage(len(count), int((count > 0).sum()), int(count.sum()), entropy)


def measure_opus(kbits: float, meter: Meter) -> Measured:
    """Opus over all clips in one stream, at the lowest of its rates that keeps the clips' bands."""
    rate = next((rate for rate in OPUS_RATES if rate >= meter.sample_rate), OPUS_RATES[-1])
    audio = [_resampled(clip.samples, meter.sample_rate, rate) for clip in meter.clips]
    decoded, actual = opus_roundtrip(np.concatenate(audio), rate, 1000 * kbits)
    parts = np.split(decoded, np.cumsum([len(part) for part in audio])[:-1])
    made = [
        _fit(_resampled(part, rate, meter.sample_rate), len(clip.samples))
        for part, clip in zip(parts, meter.clips, strict=True)
    ]
    return Measured("opus", rate, actual / 1000, None, **meter(made, f"opus, {kbits:g} kbit/s"))


def compare_codecs(
    specs: Sequence[Spec],
    data: str,
    limit: int = 64,
    seconds: float = 10.0,
    sample_rate: int | None = None,
    visqol_clips: int = 0,
    batch_size: int = 8,
    device: str = "cpu",
) -> CodecResult:
    """Measure codecs one after another.

    Args:
        specs: see :func:`audio_var.codecs.spec.parse_spec`.
        data, limit, seconds, sample_rate: see :func:`load_clips`.
        visqol_clips: clips for ViSQOL, which takes about a second each; none below 16 kHz.
        batch_size: windows at once.

    Raises:
        UserError: a codec or the data that cannot be used.
    """
    clips, rate, skipped = load_clips(data, limit, seconds, sample_rate)
    meter = Meter(clips, rate, visqol_clips)
    systems = []
    for spec in specs:
        systems += _measure(spec, meter, batch_size, device)
    total = sum(len(clip.samples) for clip in clips) / rate
    heard = min(meter.visqol_clips, len(clips))
    return CodecResult(data, len(clips), total, rate, heard, torch.get_num_threads(), skipped, systems)


def _measure(spec: Spec, meter: Meter, batch_size: int, device: str) -> list[Measured]:
    from audio_var.cli.models import open_tokenizer
    from audio_var.codecs.spec import native_tokenizers
    from next_scale.cli import resolve_device

    if spec.kind == "opus":
        return [measure_opus(kbits, meter) for kbits in spec.numbers]
    if spec.kind != "checkpoint":
        return [
            measure_tokenizer(name, tokenizer.to(resolve_device(device)), None, meter, batch_size)
            for name, tokenizer in native_tokenizers(spec)
        ]
    shipped = spec.variant == "shipped"
    tokenizer = open_tokenizer(None if shipped else spec.variant, device)
    name = "shipped" if shipped else Path(spec.variant).name
    name = f"{name} ({tokenizer.autoencoder.name})"
    if any(scales != int(scales) or scales < 1 for scales in spec.numbers):
        raise UserError(f"{spec.variant}@... takes numbers of leading scales, such as {spec.variant}@8,14")
    return [
        measure_tokenizer(name if scales is None else f"{name}, {scales:g} scales", tokenizer,
                          None if scales is None else int(scales), meter, batch_size)
        for scales in (spec.numbers or (None,))
    ]  # fmt: skip


COLUMNS = ("codec", "sample_rate", "kbits", "entropy_kbits", "tokens_per_second", "si_sdr", "stft", "mel", "visqol",
           "encode_rtf", "decode_rtf", "codes_used", "perplexity")  # fmt: skip


def _row(system: Measured) -> tuple:
    return (
        system.name, system.sample_rate, system.kbits, system.entropy_kbits, system.tokens, system.si_sdr, system.stft,
        system.mel, system.visqol, system.encode_rtf, system.decode_rtf, system.used, system.perplexity,
    )  # fmt: skip


def write_codec_report(result: CodecResult, command: str, outputs: Outputs, out: Path, data: str) -> None:
    """Write report.md, report.csv, report.json and rate_distortion.png into `out`; measured on `data`."""
    figures = asdict(result)
    for entry, system in zip(figures["systems"], result.systems, strict=True):
        entry |= dict(zip(COLUMNS[1:], _row(system)[1:], strict=True))
    write_report(
        figures,
        _page(result, command),
        outputs.file(out / "report.json"),
        outputs.file(out / "report.md"),
        command,
        data,
    )
    with outputs.file(out / "report.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for system in result.systems:
            writer.writerow(["" if value is None else value for value in _row(system)])
    _draw(result, outputs.file(out / "rate_distortion.png"))


def _page(result: CodecResult, command: str) -> str:
    header = ("codec", "kHz", "kbit/s", "entropy, kbit/s", "tokens/s", "SI-SDR, dB", "STFT", "log-mel", "ViSQOL",
              "encode RTF", "decode RTF", "codes used", "perplexity")  # fmt: skip
    rows = [
        (
            s.name, number(s.sample_rate / 1000, 1).removesuffix(".0"), number(s.kbits, 2), number(s.entropy_kbits, 2),
            number(s.tokens, 0), number(s.si_sdr, 1), number(s.stft, 3), number(s.mel, 3), number(s.visqol, 2),
            number(s.encode_rtf, 3), number(s.decode_rtf, 3), percent(s.used), percent(s.perplexity),
        )
        for s in result.systems
    ]  # fmt: skip
    levels = markdown_table(
        ("codec", "kbit/s", "codes used of each scale's codebook"),
        [
            (s.name, number(s.kbits, 2), " ".join(f"{usage.used}/{usage.codes}" for usage in s.usage))
            for s in result.systems
            if s.usage
        ],
    )
    if result.visqol_clips:
        heard = f"predicted mean opinion score of {result.visqol_clips} clips, audio mode, resampled to 48 kHz"
    elif result.sample_rate < VISQOL_RATE:
        heard = f"not measured: it compares bands that clips at {result.sample_rate:,} Hz leave empty"
    else:
        heard = "not asked for"
    left_out = ", ".join(f"{count} {reason}" for reason, count in result.skipped.items())
    threads = "one thread" if result.threads == 1 else f"{result.threads} threads"
    return f"""# Codecs on {result.clips:,} clips

`{command}`

{result.clips:,} clips, {result.seconds:,.1f} s at {result.sample_rate:,} Hz, from `{result.data}`{
        f" (files left out: {left_out})" if left_out else ""
    }. Every codec gets them resampled to its own rate, and what it decodes is
resampled back: all figures are taken at {result.sample_rate:,} Hz, every clip at peak {PEAK}.

{markdown_table(header, rows)}
![Distortion against rate](rate_distortion.png)

- kbit/s counts every token at log2 of its codebook's size, with what completes the last window of each clip; for Opus
  the bits of its packets, all clips in one stream. Entropy: an ideal code for the frequencies of each scale's codes.
- SI-SDR compares waveforms sample by sample: a codec that does not transmit phase scores low however it sounds.
- STFT: spectral convergence plus mean |ln magnitude| difference, windows 256 to 2048. log-mel: mean |log10 mel|
  difference, windows 512/1024/2048, 40/80/128 mels, floor 1e-5. Lower is better.
- ViSQOL: {heard}.
- RTF: seconds of work a second of audio, {threads}, clip by clip; Opus runs as a program of its own and is not timed.
- Codes used: entries that occur, over those that would if all were used alike; perplexity: mean over scales, as a share
  of the codebook.

## Use of codes

{levels}"""


def _draw(result: CodecResult, path: Path) -> None:
    panels = [("si_sdr", "SI-SDR, dB"), ("stft", "STFT distance"), ("mel", "log-mel distance")]
    if any(system.visqol is not None for system in result.systems):
        panels.append(("visqol", "ViSQOL"))
    figure = new_figure(4.2 * len(panels), 4.2)
    families: dict[str, list[Measured]] = {}
    for system in result.systems:
        families.setdefault(system.name.split(", ")[0], []).append(system)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (key, title) in zip(axes, panels, strict=True):
        for name, systems in families.items():
            systems = sorted(systems, key=lambda system: system.kbits)
            axis.plot([s.kbits for s in systems], [getattr(s, key) for s in systems], marker="o", label=name)
        axis.set(xscale="log", xlabel="kbit/s", ylabel=title)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=7)
    figure.savefig(path, format="png")
