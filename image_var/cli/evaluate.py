"""`image-var evaluate`: reports on a tokenizer or a generator, on held-out images."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_var.cli.models import DEFAULT, open_generator, open_tokenizer
from next_scale.cli import MOST_SAMPLES, Outputs, add_sampling_options, sampling_options, whole_number
from next_scale.report_options import add_report_options, report_command

_DESCRIPTION = """Measure a trained model on images that it never saw, and write a report: figures as JSON, a page with
tables and plots."""

_EPILOG = """examples:
  image-var evaluate tokenizer --data fashion-mnist --out reports/tokenizer
  image-var evaluate generator --data fashion-mnist --count 1000 --out reports/generator"""

_TOKENIZER = """What a tokenizer keeps: PSNR, SSIM, Frechet distance in the shipped evaluator's features and recognised
classes of reconstructed test images, at what bit rate, beside JPEG and WebP; all of it again after each scale of the
pyramid; how every scale uses its codes. Writes report.json, report.md, profile.png and pyramids.png."""

_TOKENIZER_EPILOG = """examples:
  image-var evaluate tokenizer --data fashion-mnist --out reports/tokenizer
  image-var evaluate tokenizer runs/image_fashion/tokenizer --limit 1000 --no-baselines --out reports/quick"""

_GENERATOR = """Whether a model makes what it is asked for: images of every class, judged by the shipped evaluator, with
Frechet distance, precision and recall against held-out real images, the cross-entropy and the use of codes of every
scale. The same figures of real images and of their reconstructions stand beside. Writes report.json, report.md,
confusion.png, usage.png and images.png."""

_GENERATOR_EPILOG = """examples:
  image-var evaluate generator --data fashion-mnist --count 1000 --out reports/generator
  image-var evaluate generator runs/image_fashion/next_scale --cfg 1.5 --top-k 200 --out reports/cfg1.5"""

_DATA = "fashion-mnist, or a folder with a sub-folder of images a class"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``evaluate`` and its subcommands."""
    parser = subparsers.add_parser("evaluate", description=_DESCRIPTION, epilog=_EPILOG)
    kinds = parser.add_subparsers(title="kinds", metavar="KIND", required=True)

    tokenizer = kinds.add_parser(
        "tokenizer", help="how much a tokenizer keeps", description=_TOKENIZER, epilog=_TOKENIZER_EPILOG
    )
    _add_common(tokenizer)
    tokenizer.add_argument("--limit", type=whole_number(2), metavar="N", help="test images to use (default: all)")
    tokenizer.add_argument(
        "--subset", type=whole_number(2), default=2000, metavar="N",
        help="of these, images for the figures after each scale (default: %(default)s)",
    )  # fmt: skip
    tokenizer.add_argument(
        "--baselines", action=argparse.BooleanOptionalAction, default=True,
        help="measure JPEG and WebP beside it (default: yes)",
    )  # fmt: skip
    _add_examples(tokenizer, "images drawn after each scale")
    tokenizer.set_defaults(run=run_tokenizer)

    generator = kinds.add_parser(
        "generator", help="whether a model makes what it is asked for", description=_GENERATOR, epilog=_GENERATOR_EPILOG
    )
    _add_common(generator)
    generator.add_argument(
        "--count", type=whole_number(8, MOST_SAMPLES), default=1000, metavar="N", help="images (default: %(default)s)"
    )
    _add_examples(generator, "images drawn of each class")
    add_sampling_options(generator)
    generator.set_defaults(run=run_generator)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_report_options(parser, DEFAULT, "fashion-mnist", _DATA, batch_size=64)
    parser.add_argument("--evaluator", metavar="FOLDER", help="another evaluator than the shipped one")


def _add_examples(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--examples", type=whole_number(1, 1000), default=10, metavar="N", help=f"{what} (default: %(default)s)"
    )


def run_tokenizer(args: argparse.Namespace) -> None:
    """Measure a tokenizer, write the report, and say the figures that count."""
    from image_var.evaluator import SHIPPED, load_evaluator
    from image_var.reports.tokenizer import TokenizerOptions, evaluate_tokenizer, write_tokenizer_report

    evaluator = load_evaluator(args.evaluator or SHIPPED)
    tokenizer = open_tokenizer(args.checkpoint, args.device)
    options = TokenizerOptions(
        limit=args.limit,
        subset=args.subset,
        baselines=args.baselines,
        examples=args.examples,
        batch_size=args.batch_size,
    )
    out = Path(args.out)
    with Outputs() as outputs:
        outputs.folder(out)
        result = evaluate_tokenizer(tokenizer, args.data, evaluator, options)
        write_tokenizer_report(result, report_command("image-var", "tokenizer", args), outputs, out, args.data)
    for system in result.systems:
        q = system.quality
        rate = "" if system.bits_a_pixel is None else f" {system.bits_a_pixel:.3f} bits a pixel,"
        near = "" if q.psnr is None else f" PSNR {q.psnr:.2f} dB,"
        distance = "" if q.frechet is None else f", FD {q.frechet:.3f}"
        print(f"{system.name}:{rate}{near} class found {100 * q.accuracy:.1f}%{distance}")
    print(f"report in {out / 'report.md'}")


def run_generator(args: argparse.Namespace) -> None:
    """Measure a generator, write the report, and say the figures that count."""
    from image_var.evaluator import SHIPPED, load_evaluator
    from image_var.reports.generator import GeneratorOptions, evaluate_generator, write_generator_report

    evaluator = load_evaluator(args.evaluator or SHIPPED)
    model = open_generator(args.checkpoint, args.device)
    options = GeneratorOptions(
        count=args.count,
        seed=args.seed,
        sampling=sampling_options(args, model.sampling),
        examples=args.examples,
        batch_size=args.batch_size,
    )
    out = Path(args.out)
    with Outputs() as outputs:
        outputs.folder(out)
        result = evaluate_generator(model, args.data, evaluator, options)
        write_generator_report(result, report_command("image-var", "generator", args), outputs, out, args.data)
    for v in result.verdicts:
        distance = "" if v.frechet is None else f", FD {v.frechet:.3f}"
        print(f"{v.name}: {v.images:,} images, class found {100 * v.accuracy:.1f}%{distance}")
    print(f"tokens: {result.bits_a_token:.3f} bits each, {result.bits_a_dimension:.4f} bits a dimension of the image")
    print(f"report in {out / 'report.md'}")
