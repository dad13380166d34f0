"""Does a generator make what it is asked for, and as varied as real notes? Judged by the fixed evaluator.

Shape notation: N notes, T samples, K scales, E features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audio_var.data.notes import Notes
from audio_var.evaluator import Evaluator, Judgement
from audio_var.io import write_audio
from audio_var.plots import spectrogram_sheet
from audio_var.reports.tokenizer import check_tokenizer
from next_scale import report
from next_scale.cli import Outputs, condition_stem, progress
from next_scale.errors import UserError
from next_scale.figure import draw_confusion, new_figure
from next_scale.metrics import frechet_distance
from next_scale.model import Generator, fingerprint
from next_scale.report import (
    NEIGHBOURS,
    ScaleEntropy,
    confusion_counts,
    distances,
    generate,
    markdown_table,
    number,
    percent,
    reconstruct,
    scale_entropy,
    share,
    write_report,
)
from next_scale.sampling import SamplingOptions

CENTS = 50.0


@dataclass(frozen=True)
class GeneratorOptions:
    """What to measure.

    Args:
        count: clips to generate, and real notes to compare them with, as far as there are so many.
        seed: draws the conditions and the clips.
        sampling: how tokens are drawn.
        clips: generated clips written as audio.
        batch_size: clips at once.
    """

    count: int = 1000
    seed: int = 0
    sampling: SamplingOptions = SamplingOptions()
    clips: int = 24
    batch_size: int = 16


@dataclass
class Verdict:
    """What the evaluator says of one set of notes.

    Attributes:
        notes: N.
        family: share whose family is that asked for (of real notes: theirs).
        semitone: share whose pitch is the right semitone.
        in_tune: share that also lies within 50 cents of it.
        frechet, kernel: distances to held-out real notes; None for those notes themselves.
        frechet_reconstructed: Frechet distance to their reconstructions.
        precision, recall, density, coverage: against held-out real notes.
    """

    name: str
    notes: int
    family: float
    semitone: float
    in_tune: float
    frechet: float | None = None
    frechet_reconstructed: float | None = None
    kernel: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None


@dataclass
class GeneratorResult:
    """Everything a report shows. `clips` holds (name, generated (T,), real (T,) of a like condition)."""

    fingerprint: str
    sample_rate: int
    seconds: float
    seed: int
    sampling: dict
    features: str
    labels: list[str]
    verdicts: list[Verdict]
    families: list[dict]
    confusion: list[list[int]]
    pitch_errors: list[int]
    entropy: list[ScaleEntropy]
    clips: list[tuple[str, np.ndarray, np.ndarray]] = field(repr=False, default_factory=list)

    def to_data(self) -> dict:
        """All figures, for JSON."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "clips"}
        return data | {name: [asdict(entry) for entry in data[name]] for name in ("verdicts", "entropy")}


def evaluate_generator(
    model: Generator, folder: str | Path, evaluator: Evaluator, options: GeneratorOptions
) -> GeneratorResult:
    """Generate clips over the grid of conditions and compare them with held-out notes.

    Conditions are drawn evenly from the combinations of family, pitch and velocity that the set of notes holds, each
    once before any twice. Real notes are drawn evenly from the families too, so that both sets have the same mix; a
    family with too few held-out notes gives all.

    Raises:
        UserError: no notes there, or a model or an evaluator of other conditions.
    """
    every, test, train = (Notes(folder, split) for split in ("all", "test", "train"))
    spec = every.condition_spec
    _check(model, evaluator, every)
    batch = options.batch_size

    conditions = draw_conditions(every, options.count, options.seed)
    clips, _ = generate(model, conditions, options.seed, options.sampling, batch)
    generated = _judge(evaluator, clips, "judging generated notes")
    held_out = even_draw(test, options.count, options.seed)
    other = even_draw(train, options.count, options.seed)
    reference = _hear(evaluator, test, held_out, "judging held-out notes")
    training = _hear(evaluator, train, other, "judging training notes")
    rest = torch.tensor(sorted(set(range(len(test))) - set(held_out.tolist())), dtype=torch.int64)
    whole = _join(reference, _hear(evaluator, test, rest, "judging held-out notes")) if len(rest) else reference
    tokens, reconstructed = reconstruct(model.tokenizer, test.audio_batch, held_out, batch)
    again = _judge(evaluator, reconstructed, "judging reconstructions")

    real_condition = test.condition_batch(held_out)
    whole_condition = test.condition_batch(torch.cat([held_out, rest]))
    features = reference.embedding
    verdicts = [
        _verdict("real held-out notes, all", evaluator, whole, whole_condition),
        _verdict("real held-out notes, compared with", evaluator, reference, real_condition),
        _verdict("their reconstructions", evaluator, again, real_condition, features),
        _verdict("real training notes", evaluator, training, train.condition_batch(other), features, again.embedding),
        _verdict("generated", evaluator, generated, conditions, features, again.embedding),
    ]
    asked, heard = conditions["label"], generated.label
    right = evaluator.in_tune(generated, conditions["pitch"], CENTS)
    real_right = evaluator.in_tune(whole, whole_condition["pitch"], CENTS)
    families = []
    for index, name in enumerate(spec["label"]):
        mine, real = asked == index, whole_condition["label"] == index
        families.append(
            {
                "family": name,
                "notes": int(mine.sum()),
                "found": share(heard[mine] == index),
                "in_tune": share(right[mine]),
                "real_found": share(whole.label[real] == index),
                "real_in_tune": share(real_right[real]),
            }
        )
    count = sum(parameter.numel() for parameter in evaluator.parameters())
    return GeneratorResult(
        fingerprint=fingerprint(model.tokenizer),
        sample_rate=every.sample_rate,
        seconds=every.clip_samples / every.sample_rate,
        seed=options.seed,
        sampling=asdict(options.sampling),
        features=f"embedding of the note evaluator, {features.shape[1]} features, {count:,} parameters",
        labels=spec["label"],
        verdicts=verdicts,
        families=families,
        confusion=confusion_counts(asked, heard, len(spec["label"])),
        pitch_errors=(generated.pitch - conditions["pitch"]).tolist(),
        entropy=scale_entropy(model, tokens, real_condition, batch),
        clips=_examples(clips, conditions, test, options),
    )


def _check(model: Generator, evaluator: Evaluator, notes: Notes) -> None:
    check_tokenizer(model.tokenizer, notes)
    spec = notes.condition_spec
    if {name: list(values) for name, values in model.condition_spec.items()} != spec:
        known = ", ".join(f"{name} ({len(values)})" for name, values in model.condition_spec.items()) or "none"
        raise UserError(f"the model was trained on other conditions ({known}): evaluate it on its own notes")
    if (evaluator.labels, evaluator.pitches) != (spec["label"], spec["pitch"]):
        raise UserError("the evaluator knows other families or pitches than these notes have: train one on them")
    if evaluator.sample_rate != notes.sample_rate:
        raise UserError(f"the evaluator hears {evaluator.sample_rate} Hz, the notes have {notes.sample_rate} Hz")


def draw_conditions(notes: Notes, count: int, seed: int) -> dict[str, Tensor]:
    """Conditions drawn evenly from the combinations that occur among notes: field -> (count,) int64 indices."""
    return report.draw_conditions(notes.condition_batch(range(len(notes))), count, seed)


def even_draw(notes: Notes, count: int, seed: int) -> Tensor:
    """About `count` notes, the same number of every family where it has so many: sorted indices (n,)."""
    label = notes.condition_batch(range(len(notes)))["label"]
    return report.even_draw(label, len(notes.condition_spec["label"]), count, seed)


def _judge(evaluator: Evaluator, clips: Tensor, description: str) -> Judgement:
    parts = []
    with progress(description, len(clips)) as advance:
        for part in clips.split(64):
            parts.append(evaluator.judge(part))
            advance(len(part))
    return _join(*parts)


def _hear(evaluator: Evaluator, notes: Notes, indices: Tensor, description: str) -> Judgement:
    """The evaluator on real notes, without holding them all."""
    parts = []
    with progress(description, len(indices)) as advance:
        for part in indices.split(64):
            parts.append(evaluator.judge(notes.audio_batch(part)))
            advance(len(part))
    return _join(*parts)


def _join(*parts: Judgement) -> Judgement:
    return Judgement(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _verdict(
    name: str,
    evaluator: Evaluator,
    judgement: Judgement,
    condition: dict[str, Tensor],
    real: Tensor | None = None,
    reconstructed: Tensor | None = None,
) -> Verdict:
    """Accuracy of one set, and its distances to the features of real notes (N, E) and of their reconstructions."""
    verdict = Verdict(
        name=name,
        notes=len(judgement.label),
        family=share(judgement.label == condition["label"]),
        semitone=share(judgement.pitch == condition["pitch"]),
        in_tune=share(evaluator.in_tune(judgement, condition["pitch"], CENTS)),
    )
    if real is not None:
        for measure, value in distances(real, judgement.embedding).items():
            setattr(verdict, measure, value)
    if reconstructed is not None:
        verdict.frechet_reconstructed = frechet_distance(reconstructed, judgement.embedding)
    return verdict


def _examples(
    clips: Tensor, conditions: dict[str, Tensor], notes: Notes, options: GeneratorOptions
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Generated clips, spread over the families, each beside the held-out note of the nearest condition."""
    real = notes.condition_batch(range(len(notes)))
    order = torch.argsort(conditions["label"], stable=True)
    picked = order[torch.linspace(0, len(order) - 1, min(options.clips, len(order))).round().long()]
    examples = []
    for row in picked.tolist():
        condition = {name: int(index[row]) for name, index in conditions.items()}
        away = 1000 * (real["label"] != condition["label"]) + 3 * (real["pitch"] - condition["pitch"]).abs()
        if "velocity" in real:
            away = away + (real["velocity"] - condition["velocity"]).abs()
        name = f"{condition_stem(notes.condition_spec, condition)}_s{options.seed}_{row:04}"
        examples.append((name, clips[row, 0].numpy(), notes.audio_batch([int(away.argmin())])[0, 0].numpy()))
    return examples


def write_generator_report(result: GeneratorResult, command: str, outputs: Outputs, out: Path, data: str) -> None:
    """Write report.json, report.md, confusion.png, spectrograms.png and clips/ into `out`; measured on `data`."""
    outputs.folder(out / "clips")
    text = _page(result, command)
    write_report(
        result.to_data(), text, outputs.file(out / "report.json"), outputs.file(out / "report.md"), command, data
    )
    _draw_confusion(result, outputs.file(out / "confusion.png"))
    sheet = []
    for name, made, real in result.clips:
        write_audio(outputs.file(out / "clips" / f"{name}.flac"), made, result.sample_rate)
        sheet += [(name, made), ("real, held out", real)]
    if sheet:
        spectrogram_sheet(outputs.file(out / "spectrograms.png"), sheet, result.sample_rate, columns=6)


def _page(result: GeneratorResult, command: str) -> str:
    distances = ("FD real", "FD reconstructed", "KD real", "precision", "recall", "density", "coverage")
    table = markdown_table(
        ("", "N", "family", "pitch", *distances),
        [
            (
                v.name, f"{v.notes:,}", percent(v.family), percent(v.in_tune), number(v.frechet, 2),
                number(v.frechet_reconstructed, 2), number(v.kernel, 3), percent(v.precision), percent(v.recall),
                number(v.density, 2), percent(v.coverage),
            )
            for v in result.verdicts
        ],
    )  # fmt: skip
    families = markdown_table(
        ("family", "generated", "family found", "pitch found", "real notes: family", "pitch"),
        [
            (f["family"], f["notes"], *(percent(f[k]) for k in ("found", "in_tune", "real_found", "real_in_tune")))
            for f in result.families
        ],
    )
    entropy = markdown_table(
        ("scale", "size", "bits", "bits a token", "without a model"),
        [
            (e.scale, e.size, number(e.bits, 1), number(e.bits_a_token, 2), number(e.uniform_bits, 0))
            for e in result.entropy
        ],
    )
    bits = sum(e.bits for e in result.entropy)
    uniform = sum(e.uniform_bits for e in result.entropy)
    sampling = ", ".join(f"{name} {value}" for name, value in result.sampling.items())
    reference = result.verdicts[1]
    return f"""# Generator on the tokenizer {result.fingerprint}

`{command}`

Sampling: {sampling}; seed {result.seed}. Conditions: combinations of family, pitch and velocity that exist in the set,
drawn evenly.

{table}
- family, pitch: share found as asked for by the note evaluator, pitch within {CENTS:g} cents (the evaluator's semitone,
  refined to the cent within it). It was trained on real training notes, some of them degraded on purpose; what it finds
  on held-out real notes is the ceiling.
- FD: Frechet distance between features ({result.features})
  to {reference.notes:,} held-out real notes, drawn evenly from the families, and to their reconstructions by the
  tokenizer. It depends on N and on the features: compare it with the line of real training notes, the floor. The line
  of reconstructions is of the same notes and so lower than others can be.
- KD: kernel distance on the same features, unbiased. Precision, recall, density, coverage: {NEIGHBOURS} nearest
  neighbours, against the held-out real notes.

## Families

{families}
![Families asked for and heard, and pitch errors](confusion.png)

## Cross-entropy on held-out notes

{bits:,.0f} bits a note ({bits / result.seconds / 1000:.2f} kbit/s) of {uniform:,.0f} without a model, over the
{reference.notes:,} notes compared with, each under its own condition.

{entropy}
![Generated notes, each before a held-out real one of the same or nearest condition](spectrograms.png)

`clips/` holds the generated ones as audio.
"""


def _draw_confusion(result: GeneratorResult, path: Path) -> None:
    figure = new_figure(11, 5)
    left, right = figure.subplots(1, 2)
    draw_confusion(left, result.confusion, result.labels)
    left.set(xlabel="heard", ylabel="asked for", title="instrument family")
    errors = np.clip(result.pitch_errors, -25, 25)
    right.hist(errors, bins=np.arange(-25.5, 26.5))
    right.set(yscale="log", xlabel="semitones heard above those asked for", ylabel="clips", title="pitch")
    right.set_ylim(bottom=0.5)
    figure.savefig(path, format="png")
