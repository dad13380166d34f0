"""Does a generator make what it is asked for, and as varied as real images? Judged by the fixed evaluator.

Shape notation: N images, C channels, H W image, K scales, L tokens of a pyramid, E features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from image_var.evaluator import Evaluator, Judgement
from image_var.reports.images import Images, image_shape
from image_var.reports.sheets import Sheet, draw_sheets
from next_scale.cli import Outputs
from next_scale.errors import UserError
from next_scale.figure import draw_confusion, new_figure
from next_scale.metrics import ScaleUsage, codebook_usage, frechet_distance
from next_scale.model import Generator, fingerprint
from next_scale.report import (
    NEIGHBOURS,
    ScaleEntropy,
    confusion_counts,
    distances,
    draw_conditions,
    even_draw,
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


@dataclass(frozen=True)
class GeneratorOptions:
    """What to measure.

    Args:
        count: images to generate, and real images to compare them with, as far as there are so many.
        seed: draws the conditions and the images.
        sampling: how tokens are drawn.
        examples: images of every class drawn, generated and real.
        batch_size: images at once.
    """

    count: int = 1000
    seed: int = 0
    sampling: SamplingOptions = SamplingOptions()
    examples: int = 10
    batch_size: int = 64


@dataclass
class Verdict:
    """What the evaluator says of one set of images.

    Attributes:
        images: N.
        accuracy: share whose class is that asked for (of real images: theirs).
        frechet, kernel: distances to held-out real images; None for those images themselves.
        frechet_reconstructed: Frechet distance to their reconstructions.
        precision, recall, density, coverage: against held-out real images.
    """

    name: str
    images: int
    accuracy: float
    frechet: float | None = None
    frechet_reconstructed: float | None = None
    kernel: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None


@dataclass
class ClassVerdict:
    """Shares of one class that the evaluator finds: generated, reconstructed, and real ones."""

    name: str
    images: int
    found: float | None
    reconstructed_found: float | None
    real_found: float | None


@dataclass
class UsagePair:
    """How one scale uses its codes: tokens of real images, and generated ones."""

    scale: int
    size: int | str
    real: ScaleUsage
    generated: ScaleUsage


@dataclass
class GeneratorResult:
    """Everything a report shows. `bits`: cross-entropy of an image's tokens; a dimension is one of C x H x W values.

    `examples`: a class, and generated and real images (C, H, W) of it.
    """

    fingerprint: str
    data: str
    shape: list[int]
    seed: int
    sampling: dict
    features: str
    labels: list[str]
    verdicts: list[Verdict]
    classes: list[ClassVerdict]
    confusion: list[list[int]]
    real_confusion: list[list[int]]
    bits: float
    bits_a_token: float
    bits_a_dimension: float
    entropy: list[ScaleEntropy]
    usage: list[UsagePair]
    examples: list[tuple[str, list[Tensor], list[Tensor]]] = field(repr=False, default_factory=list)

    def to_data(self) -> dict:
        """All figures, for JSON."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "examples"}
        tables = ("verdicts", "classes", "entropy", "usage")
        return data | {name: [asdict(entry) for entry in data[name]] for name in tables}


def evaluate_generator(model: Generator, data: str, evaluator: Evaluator, options: GeneratorOptions) -> GeneratorResult:
    """Generate images of all classes and compare them with held-out ones.

    Conditions are drawn evenly from those that the data set holds, each once before any twice; real images evenly from
    the classes too, so that all sets have the same mix.

    Raises:
        UserError: no such data set, a model or an evaluator of other images, or too few images for a distance.
    """
    shape = image_shape(model.tokenizer)
    test, train = (Images(data, split, shape) for split in ("test", "train"))
    _check(model, test)
    labels = [str(name) for name in test.condition_spec["label"]]
    evaluator.check(test.condition_spec["label"], shape)
    classes, count, seed = len(labels), options.count, options.seed

    conditions = draw_conditions({"label": torch.arange(classes)}, count, seed)
    made, made_tokens = generate(model, conditions, seed, options.sampling, options.batch_size)
    generated = evaluator.judge(made, description="judging generated images")
    held_out = even_draw(test.label, classes, count, seed)
    label = test.label[held_out]
    reference = evaluator.judge(test.read(held_out), description="judging held-out images")
    rest = torch.tensor(sorted(set(range(len(test))) - set(held_out.tolist())), dtype=torch.int64)
    beside = rest[even_draw(test.label[rest], classes, count, seed)]  # disjoint from those compared with
    more = evaluator.judge(test.read(rest), description="judging held-out images") if len(rest) else None
    other = even_draw(train.label, classes, count, seed)
    training = evaluator.judge(train.read(other), description="judging training images")
    tokens, reconstructed = reconstruct(model.tokenizer, test.read, held_out, options.batch_size)
    again = evaluator.judge(reconstructed, description="judging reconstructions")

    features, own = reference.embedding, again.embedding
    whole_label = torch.cat([label, test.label[rest]])
    whole = torch.cat([reference.label, more.label]) if more else reference.label
    verdicts = [
        Verdict("real test images, all", len(whole), share(whole == whole_label)),
        Verdict("real test images, compared with", len(label), share(reference.label == label)),
        _verdict("their reconstructions", again, label, features),
    ]
    if len(beside) == len(held_out):
        inside = torch.isin(rest, beside)
        judged = Judgement(more.embedding[inside], more.label[inside])
        verdicts.append(_verdict("other real test images", judged, test.label[beside], features, own))
    verdicts += [
        _verdict("real training images", training, train.label[other], features, own),
        _verdict("generated", generated, conditions["label"], features, own),
    ]
    schedule, size = model.predictor.schedule, model.predictor.codebook_size
    entropy = scale_entropy(model, tokens, {"label": label}, options.batch_size)
    bits = sum(entry.bits for entry in entropy)
    usage = zip(*(codebook_usage(part, schedule, size) for part in (tokens, made_tokens)), strict=True)
    return GeneratorResult(
        fingerprint=fingerprint(model.tokenizer),
        data=test.name,
        shape=list(shape),
        seed=seed,
        sampling=asdict(options.sampling),
        features=evaluator.describe(),
        labels=labels,
        verdicts=verdicts,
        classes=[
            ClassVerdict(
                name,
                int((conditions["label"] == index).sum()),
                share(generated.label[conditions["label"] == index] == index),
                share(again.label[label == index] == index),
                share(whole[whole_label == index] == index),
            )
            for index, name in enumerate(labels)
        ],
        confusion=confusion_counts(conditions["label"], generated.label, classes),
        real_confusion=confusion_counts(whole_label, whole, classes),
        bits=bits,
        bits_a_token=bits / schedule.length,
        bits_a_dimension=bits / (shape[0] * shape[1] * shape[2]),
        entropy=entropy,
        usage=[UsagePair(e.scale, e.size, *pair) for e, pair in zip(entropy, usage, strict=True)],
        examples=_examples(made, conditions["label"], test, held_out, labels, options.examples),
    )


def _check(model: Generator, images: Images) -> None:
    if {name: list(values) for name, values in model.condition_spec.items()} != images.condition_spec:
        known = ", ".join(f"{name} ({len(values)})" for name, values in model.condition_spec.items()) or "none"
        raise UserError(f"the model was trained on other conditions ({known}): evaluate it on its own images")


def _verdict(
    name: str, judgement: Judgement, label: Tensor, real: Tensor, reconstructed: Tensor | None = None
) -> Verdict:
    """Accuracy of one set, and its distances to the features of real images (N, E) and of their reconstructions."""
    verdict = Verdict(name, len(label), share(judgement.label == label), **distances(real, judgement.embedding))
    if reconstructed is not None:
        verdict.frechet_reconstructed = frechet_distance(reconstructed, judgement.embedding)
    return verdict


def _examples(
    made: Tensor, asked: Tensor, test: Images, held_out: Tensor, labels: list[str], count: int
) -> list[tuple[str, list[Tensor], list[Tensor]]]:
    """The first generated images of every class beside as many held-out ones of it."""
    label, examples = test.label[held_out], []
    for index, name in enumerate(labels):
        own, real = (asked == index).nonzero()[:, 0], held_out[label == index]
        shown = min(count, len(own), len(real))
        if shown:
            examples.append((name, list(made[own[:shown]]), list(test.read(real[:shown]))))
    return examples


def write_generator_report(result: GeneratorResult, command: str, outputs: Outputs, out: Path, data: str) -> None:
    """Write report.json, report.md, confusion.png, usage.png and images.png into `out`; measured on `data`."""
    text = _page(result, command)
    json_path, page_path = outputs.file(out / "report.json"), outputs.file(out / "report.md")
    write_report(result.to_data(), text, json_path, page_path, command, data)
    _draw_confusion(result, outputs.file(out / "confusion.png"))
    _draw_usage(result, outputs.file(out / "usage.png"))
    if result.examples:
        names, made, real = zip(*result.examples, strict=True)
        columns = min(map(len, made))  # of a sheet, all rows are alike
        sheets = [Sheet("generated", [row[:columns] for row in made]), Sheet("real", [row[:columns] for row in real])]
        draw_sheets(sheets, names, outputs.file(out / "images.png"))


def _page(result: GeneratorResult, command: str) -> str:
    measures = ("FD real", "FD reconstructed", "KD real", "precision", "recall", "density", "coverage")
    table = markdown_table(
        ("", "N", "class found", *measures),
        [
            (
                v.name, f"{v.images:,}", percent(v.accuracy), number(v.frechet, 3), number(v.frechet_reconstructed, 3),
                number(v.kernel, 4), percent(v.precision), percent(v.recall), number(v.density, 2),
                percent(v.coverage),
            )
            for v in result.verdicts
        ],
    )  # fmt: skip
    classes = markdown_table(
        ("class", "generated", "found", "reconstructed: found", "real test images: found"),
        [
            (c.name, c.images, *(percent(value) for value in (c.found, c.reconstructed_found, c.real_found)))
            for c in result.classes
        ],
    )
    entropy = markdown_table(
        ("scale", "size", "bits", "bits a token", "bits without a model", "with code frequencies only"),
        [
            (
                e.scale, e.size, number(e.bits, 1), number(e.bits_a_token, 3), number(e.uniform_bits, 0),
                number(pair.real.entropy, 1),
            )
            for e, pair in zip(result.entropy, result.usage, strict=True)
        ],
    )  # fmt: skip
    usage = markdown_table(
        ("scale", "size", "codes used: real", "generated", "perplexity: real", "generated",
         "entropy, bits a token: real", "generated"),
        [
            (
                pair.scale, pair.size,
                *(f"{use.used} ({use.expected:.0f})" for use in (pair.real, pair.generated)),
                *(number(use.perplexity, 0) for use in (pair.real, pair.generated)),
                *(number(use.entropy / use.tokens, 2) for use in (pair.real, pair.generated)),
            )
            for pair in result.usage
        ],
    )  # fmt: skip
    uniform = sum(e.uniform_bits for e in result.entropy)
    sampling = ", ".join(f"{name} {value}" for name, value in result.sampling.items())
    reference = result.verdicts[1]
    channels, height, width = result.shape
    return f"""# Generator on the tokenizer {result.fingerprint}

`{command}`

Sampling: {sampling}; seed {result.seed}. The same number of images of every class, {width} x {height} with {channels}
channel{"s" if channels > 1 else ""}; real ones from {result.data}.

{table}
- class found: share that the image evaluator finds to be of the class asked for. It was trained on real training
  images, some of them degraded on purpose; what it finds on real test images is the ceiling.
- FD: Frechet distance between features ({result.features})
  to {reference.images:,} real test images, drawn evenly from the classes, and to their reconstructions by the
  tokenizer. It depends on N and on the features: compare it with the lines of other real test images and of training
  images, the floor. The line of reconstructions is of the same images and so lower than others can be.
- KD: kernel distance on the same features, unbiased. Precision, recall, density, coverage: {NEIGHBOURS} nearest
  neighbours, against the real test images.

## Classes

{classes}
![Classes asked for and found, of generated and of real images](confusion.png)

## Bits: cross-entropy on held-out images

{result.bits:,.1f} bits an image of {uniform:,.0f} without a model: {result.bits_a_token:.3f} a token,
{result.bits_a_dimension:.4f} a dimension ({channels} x {height} x {width} values). Over the {reference.images:,} images
compared with, each under its own class. These are the bits of the tokens, not of the image that they decode to. The
last column is what an ideal code for each scale's code frequencies would take, on the same tokens.

{entropy}
## Use of codes

Tokens of {reference.images:,} real and {sum(c.images for c in result.classes):,} generated images; in brackets, how
many codes so few tokens would touch if all codes were used alike.

{usage}
![Use of codes by real and by generated tokens](usage.png)

![Generated images and real test images of the same classes](images.png)
"""


def _draw_confusion(result: GeneratorResult, path: Path) -> None:
    figure = new_figure(13, 5.6)
    panels = figure.subplots(1, 2)
    for axis, counts, title in zip(
        panels, (result.confusion, result.real_confusion), ("generated", "real"), strict=True
    ):
        draw_confusion(axis, counts, result.labels)
        axis.set(xlabel="found", ylabel="asked for" if title == "generated" else "class", title=title)
    figure.savefig(path, format="png")


def _draw_usage(result: GeneratorResult, path: Path) -> None:
    figure = new_figure(10, 3.6)
    left, right = figure.subplots(1, 2)
    scales = [pair.scale for pair in result.usage]
    for axis, measure in ((left, "used"), (right, "perplexity")):
        for name, place in (("real", -0.2), ("generated", 0.2)):
            values = [getattr(getattr(pair, name), measure) for pair in result.usage]
            axis.bar([scale + place for scale in scales], values, width=0.4, label=name)
        axis.set(xlabel="scale", ylabel="codes used" if measure == "used" else measure, xticks=scales)
        axis.legend()
    figure.savefig(path, format="png")
