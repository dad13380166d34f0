"""What a tokenizer keeps of held-out images: distances and classes, scale by scale, beside JPEG and WebP.

Shape notation: N images, C channels, H W image, K scales, L tokens of a pyramid, E features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from image_var.baselines import coded
from image_var.evaluator import Evaluator
from image_var.metrics import psnr, squared_error, ssim
from image_var.reports.images import Images, image_shape
from image_var.reports.sheets import Sheet, draw_sheets
from next_scale.cli import Outputs, progress
from next_scale.figure import draw_usage, new_figure
from next_scale.metrics import ScaleUsage, codebook_usage, frechet_distance
from next_scale.model import fingerprint
from next_scale.report import (
    decode,
    draw,
    even_draw,
    markdown_table,
    number,
    percent,
    reconstruct,
    share,
    shown_scales,
    size_name,
    write_report,
)
from next_scale.tokenizer import Tokenizer

QUALITIES = {"JPEG": (5, 10, 25, 50, 75), "WEBP": (0, 10, 25, 50, 75)}
NAMES = {"JPEG": "JPEG", "WEBP": "WebP"}


@dataclass(frozen=True)
class TokenizerOptions:
    """What to measure.

    Args:
        limit: images; None for all of the split.
        subset: images for the profile, which takes long.
        baselines: whether to measure JPEG and WebP beside.
        examples: images drawn, as even a number of every class as can be.
        batch_size: images at once.
    """

    limit: int | None = None
    subset: int = 2000
    baselines: bool = True
    examples: int = 10
    batch_size: int = 64


@dataclass
class Quality:
    """How near images are to the originals; None where that says nothing.

    Attributes:
        images: N.
        psnr: dB, mean of the images' own; psnr_pooled: of the mean squared error of all.
        ssim: structural similarity, mean.
        frechet: Frechet distance of the evaluator's features to those of the originals.
        accuracy: share whose class the evaluator finds.
    """

    images: int
    psnr: float | None = None
    psnr_pooled: float | None = None
    ssim: float | None = None
    frechet: float | None = None
    accuracy: float | None = None


@dataclass
class System:
    """One row of the table: a coder at a rate. `bits` are those of an image."""

    name: str
    bits: float | None
    bits_a_pixel: float | None
    quality: Quality


@dataclass
class Step:
    """The pyramid's first k scales: bits so far, what is decoded from them, and how scale k uses its codes."""

    scale: int
    size: int | str
    bits: float
    bits_a_pixel: float
    quality: Quality
    usage: ScaleUsage


@dataclass
class ClassQuality:
    """The reconstructions of one class; `found` and `real_found`: shares of them and of the originals recognised."""

    name: str
    images: int
    psnr: float
    found: float
    real_found: float


@dataclass
class TokenizerResult:
    """Everything a report shows.

    `examples`: a class and images (C, H, W), the original first, then decoded from the first scales, `shown` of them.
    """

    fingerprint: str
    data: str
    shape: list[int]
    codebook_size: int
    features: str
    systems: list[System]
    profile: list[Step]
    classes: list[ClassQuality]
    shown: list[int]
    examples: list[tuple[str, list[Tensor]]] = field(repr=False, default_factory=list)

    def to_data(self) -> dict:
        """All figures, for JSON."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("examples", "shown")}
        return data | {name: [asdict(entry) for entry in data[name]] for name in ("systems", "profile", "classes")}


class Meter:
    """Measures what became of a set of images; the originals are judged once.

    Args:
        original: (N, C, H, W) float32 in -1 .. 1.
        label: (N,) int64, their classes.
        batch_size: images at once, to bound memory.
    """

    def __init__(self, evaluator: Evaluator, original: Tensor, label: Tensor, batch_size: int = 500):
        self.evaluator, self.original, self.label, self.batch_size = evaluator, original, label, batch_size
        self.real = evaluator.judge(original, description="judging originals")

    def __call__(self, estimate: Tensor) -> tuple[Quality, Tensor, Tensor]:
        """(N, C, H, W) -> figures of all, PSNR of each (N,), and whether its class was found (N,) bool."""
        errors, likeness = [], []
        for part, original in zip(*(x.split(self.batch_size) for x in (estimate, self.original)), strict=True):
            errors.append(squared_error(original, part))
            likeness.append(ssim(original, part))
        error = torch.cat(errors).double()
        seen = self.evaluator.judge(estimate)
        found = seen.label == self.label
        quality = Quality(
            images=len(estimate),
            psnr=float(psnr(error).mean()),
            psnr_pooled=psnr(float(error.mean())),
            ssim=None if likeness[0] is None else float(torch.cat(likeness).double().mean()),
            frechet=frechet_distance(self.real.embedding, seen.embedding),
            accuracy=share(found),
        )
        return quality, psnr(error), found


def evaluate_tokenizer(
    tokenizer: Tokenizer, data: str, evaluator: Evaluator, options: TokenizerOptions
) -> TokenizerResult:
    """Measure a tokenizer on the test split of a data set.

    Raises:
        UserError: no such data set, an evaluator of other images, or too few images for a distance.
    """
    shape = image_shape(tokenizer)
    images, train = (Images(data, split, shape) for split in ("test", "train"))
    labels = images.condition_spec["label"]
    evaluator.check(labels, shape)
    schedule, size = tokenizer.quantizer.schedule, tokenizer.quantizer.codebook_size
    pixels = shape[1] * shape[2]

    chosen = draw(options.limit or len(images), len(images))
    tokens, made = reconstruct(tokenizer, images.read, chosen, options.batch_size)
    original, label = images.read(chosen), images.label[chosen]
    meter = Meter(evaluator, original, label)
    quality, own_psnr, found = meter(made)
    bits = schedule.bits(size)
    real_found = meter.real.label == label
    others = draw(len(chosen), len(train), seed=1)
    other = evaluator.judge(train.read(others), description="judging training images")
    systems = [
        System("real test images", None, None, Quality(len(chosen), accuracy=share(real_found))),
        System(
            "real training images", None, None,
            Quality(
                len(others), frechet=frechet_distance(meter.real.embedding, other.embedding),
                accuracy=share(other.label == train.label[others]),
            ),
        ),
        System("this tokenizer", bits, bits / pixels, quality),
    ]  # fmt: skip
    if options.baselines:
        settings = [(form, quality) for form, qualities in QUALITIES.items() for quality in qualities]
        with progress("JPEG and WebP", len(settings)) as advance:
            for form, level in settings:
                decoded, spent = coded(original, form, level)
                systems.append(System(f"{NAMES[form]}, quality {level}", spent, spent / pixels, meter(decoded)[0]))
                advance(1)

    inner = draw(options.subset, len(chosen), seed=1)  # the subset, among the chosen
    part_meter = Meter(evaluator, original[inner], label[inner])
    rows = even_draw(label, len(labels), options.examples, seed=2)[: options.examples]
    rows = rows[label[rows].argsort(stable=True)]
    shown = shown_scales(schedule.scales, 8)
    profile, spent = [], 0.0
    examples = [(str(labels[label[row]]), [original[row]]) for row in rows.tolist()]
    with progress("profile", schedule.scales) as advance:
        for k, use in enumerate(codebook_usage(tokens, schedule, size), start=1):
            spent += use.bits
            figures = part_meter(decode(tokenizer, tokens[inner], options.batch_size, k))[0]
            name = size_name(schedule.sizes[k - 1])
            profile.append(Step(k, name, spent, spent / pixels, figures, use))
            if k in shown:
                for (_, stages), stage in zip(examples, decode(tokenizer, tokens[rows], len(rows), k), strict=True):
                    stages.append(stage)
            advance(1)

    classes = []
    for index, name in enumerate(labels):
        mine = label == index
        if mine.any():
            figures = (own_psnr[mine].mean(), found[mine].double().mean(), real_found[mine].double().mean())
            classes.append(ClassQuality(str(name), int(mine.sum()), *map(float, figures)))
    return TokenizerResult(
        fingerprint=fingerprint(tokenizer),
        data=images.name,
        shape=list(shape),
        codebook_size=size,
        features=evaluator.describe(),
        systems=systems,
        profile=profile,
        classes=classes,
        shown=shown,
        examples=examples,
    )


def write_tokenizer_report(result: TokenizerResult, command: str, outputs: Outputs, out: Path, data: str) -> None:
    """Write report.json, report.md, profile.png and pyramids.png into `out`; measured on `data`."""
    text = _page(result, command)
    json_path, page_path = outputs.file(out / "report.json"), outputs.file(out / "report.md")
    write_report(result.to_data(), text, json_path, page_path, command, data)
    _draw_profile(result, outputs.file(out / "profile.png"))
    if result.examples:
        columns = ["real", *(f"1 to {k}" if k > 1 else "scale 1" for k in result.shown)]
        names = [name for name, _ in result.examples]
        sheet = Sheet("decoded from the first scales only", [stages for _, stages in result.examples], columns)
        draw_sheets([sheet], names, outputs.file(out / "pyramids.png"))


def _page(result: TokenizerResult, command: str) -> str:
    rows = []
    for system in result.systems:
        q = system.quality
        spent = (number(system.bits, 0), number(system.bits_a_pixel, 3))
        near = (number(q.psnr, 2), number(q.psnr_pooled, 2), number(q.ssim, 4), number(q.frechet, 3))
        rows.append((system.name, f"{q.images:,}", *spent, *near, percent(q.accuracy)))
    header = ("", "N", "bits an image", "bits a pixel", "PSNR, dB", "PSNR, pooled", "SSIM", "FD", "class found")
    table = markdown_table(header, rows)
    profile = markdown_table(
        ("scale", "size", "bits so far", "bits a pixel", "PSNR, dB", "SSIM", "FD", "class found", "codes used",
         "perplexity", "entropy, bits a token"),
        [
            (
                step.scale, step.size, f"{step.bits:,.0f}", number(step.bits_a_pixel, 3), number(step.quality.psnr, 2),
                number(step.quality.ssim, 4), number(step.quality.frechet, 3), percent(step.quality.accuracy),
                f"{step.usage.used} of {result.codebook_size} ({step.usage.expected:.0f})",
                number(step.usage.perplexity, 0), number(step.usage.entropy / step.usage.tokens, 2),
            )
            for step in result.profile
        ],
    )  # fmt: skip
    classes = markdown_table(
        ("class", "N", "PSNR, dB", "found", "originals found"),
        [(c.name, c.images, number(c.psnr, 2), percent(c.found), percent(c.real_found)) for c in result.classes],
    )
    own = next(system for system in result.systems if system.name == "this tokenizer")
    entropy = sum(step.usage.entropy for step in result.profile)
    channels, height, width = result.shape
    subset = result.profile[-1].quality.images
    beside = "\n- JPEG, WebP: as Pillow codes them, all images on one sheet, so that headers do not count."
    return f"""# Tokenizer {result.fingerprint} on held-out images

`{command}`

Test images of {result.data}, {width} x {height} with {channels} channel{"s" if channels > 1 else ""}.

{table}
- PSNR: of values from 0 to 1, mean of the images' own; pooled: of the mean squared error of all images. SSIM: mean,
  Gaussian window of 11 x 11, sigma 1.5.
- FD: Frechet distance of features ({result.features})
  to those of the test images themselves. It depends on N and on the features. The line of real training images shows
  what other real images have; a coder is measured on the same images and so can be below it.
- class found: share whose class the same network finds.{beside if len(result.systems) > 3 else ""}

## Classes

{classes}
## The pyramid, scale by scale

Decoded from the first scales only, {subset:,} images. Use of codes over {own.quality.images:,} images; in brackets, how
many codes so few tokens would touch if all codes were used alike. An ideal code for each scale's code frequencies would
take {entropy:,.0f} bits an image, {entropy / height / width:.3f} a pixel.

{profile}
![Distortion and use of codes after each scale](profile.png)

![Real images and what the first scales give](pyramids.png)
"""


def _draw_profile(result: TokenizerResult, path: Path) -> None:
    figure = new_figure(14, 3.8)
    panels = figure.subplots(1, 4)
    rates = [step.bits_a_pixel for step in result.profile]
    measures = (("psnr", "PSNR, dB"), ("frechet", "Frechet distance"), ("accuracy", "class found"))
    for axis, (name, title) in zip(panels, measures, strict=False):
        _draw_curve(axis, rates, [step.quality for step in result.profile], name, "o", "first k scales")
        for form, marker in zip(NAMES.values(), "s^", strict=True):
            systems = [system for system in result.systems if system.name.startswith(form)]
            if systems:
                spent = [system.bits_a_pixel for system in systems]
                _draw_curve(axis, spent, [system.quality for system in systems], name, marker, form)
        axis.set(xscale="log", xlabel="bits a pixel", ylabel=title)
        axis.grid(alpha=0.3)
    panels[1].set_yscale("log")  # coarse scales are orders of magnitude away
    panels[2].axhline(result.systems[0].quality.accuracy, color="k", lw=0.8, label="real images")
    panels[2].set_ylim(0, 1)
    panels[2].legend()
    draw_usage(panels[3], [step.usage for step in result.profile], result.codebook_size)
    figure.savefig(path, format="png")


def _draw_curve(axis, rates: Sequence[float], qualities: Sequence[Quality], name: str, marker: str, label: str) -> None:
    axis.plot(rates, [getattr(quality, name) for quality in qualities], marker=marker, label=label)
