"""`audio-var evaluate`: reports on a tokenizer or a generator, on held-out notes."""

from __future__ import annotations

import argparse
from pathlib import Path

from audio_var.cli.models import DEFAULT, open_generator, open_tokenizer
from next_scale.cli import MOST_SAMPLES, Outputs, add_sampling_options, sampling_options, whole_number
from next_scale.errors import UserError
from next_scale.report_options import add_report_options, report_command

_DESCRIPTION = """Measure a trained model on notes that it never heard, and write a report: figures as JSON, a page with
tables and plots, and clips."""

_EPILOG = """examples:
  audio-var evaluate tokenizer --data samples/demo_notes --out reports/tokenizer
  audio-var evaluate generator --data samples/demo_notes --count 48 --out reports/generator"""

_TOKENIZER = """What a tokenizer keeps: log-mel distance, spectral convergence, SI-SDR, pitch and optionally ViSQOL of
reconstructed test notes, at what bit rate; all of it again after each scale of the pyramid; how every scale uses its
codes; optionally Opus on the same notes. Writes report.json, report.md, profile.png, spectrograms.png, and clips
decoded from the first scales."""

_TOKENIZER_EPILOG = """examples:
  audio-var evaluate tokenizer --data samples/demo_notes --out reports/tokenizer
  audio-var evaluate tokenizer runs/audio_notes/tokenizer --opus --visqol 100 --out reports/tokenizer"""

_GENERATOR = """Whether a model makes what it is asked for: clips over the grid of family, pitch and velocity, judged by
the shipped evaluator, with Frechet distance, precision and recall against held-out real notes, and the cross-entropy of
every scale. The same figures of real notes and of their reconstructions stand beside. Writes report.json, report.md,
confusion.png, spectrograms.png and clips."""

_GENERATOR_EPILOG = """examples:
  audio-var evaluate generator --data samples/demo_notes --count 48 --out reports/generator
  audio-var evaluate generator runs/audio_notes/next_scale --cfg 1.5 --top-k 200 --out reports/cfg1.5"""

OPUS_RATES = (8000, 12000, 16000, 24000)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``evaluate`` and its subcommands."""
    parser = subparsers.add_parser("evaluate", description=_DESCRIPTION, epilog=_EPILOG)
    kinds = parser.add_subparsers(title="kinds", metavar="KIND", required=True)

    tokenizer = kinds.add_parser(
        "tokenizer", help="how much a tokenizer keeps", description=_TOKENIZER, epilog=_TOKENIZER_EPILOG
    )
    add_report_options(tokenizer, DEFAULT, "data/notes", "folder of notes", batch_size=32)
    tokenizer.add_argument("--limit", type=whole_number(1), metavar="N", help="test notes to use (default: all)")
    tokenizer.add_argument(
        "--subset", type=whole_number(1), default=320, metavar="N",
        help="of these, notes for the profile, Opus and ViSQOL (default: %(default)s)",
    )  # fmt: skip
    tokenizer.add_argument("--opus", action="store_true", help="measure Opus beside it (needs ffmpeg)")
    tokenizer.add_argument(
        "--visqol", type=whole_number(0), default=0, metavar="N",
        help="notes of the subset for ViSQOL (needs visqol-python; default: none)",
    )  # fmt: skip
    tokenizer.add_argument(
        "--usage", choices=("test", "all"), default="test",
        help="count the use of codes over the test notes, or over all notes of the set (default: test)",
    )  # fmt: skip
    tokenizer.add_argument("--clips", type=whole_number(1, 1000), default=6, metavar="N", help="default: %(default)s")
    tokenizer.set_defaults(run=run_tokenizer)

    generator = kinds.add_parser(
        "generator", help="whether a model makes what it is asked for", description=_GENERATOR, epilog=_GENERATOR_EPILOG
    )
    add_report_options(generator, DEFAULT, "data/notes", "folder of notes", batch_size=16)
    generator.add_argument(
        "--count", type=whole_number(8, MOST_SAMPLES), default=1000, metavar="N", help="clips (default: %(default)s)"
    )
    generator.add_argument("--clips", type=whole_number(1, 1000), default=24, metavar="N", help="default: %(default)s")
    generator.add_argument("--evaluator", metavar="FOLDER", help="another evaluator than the shipped one")
    add_sampling_options(generator)
    generator.set_defaults(run=run_generator)


def run_tokenizer(args: argparse.Namespace) -> None:
    """Measure a tokenizer, write the report, and say the figures that count."""
    from audio_var.reports.tokenizer import TokenizerOptions, evaluate_tokenizer, write_tokenizer_report

    _check_data(args.data)
    tokenizer = open_tokenizer(args.checkpoint, args.device)
    options = TokenizerOptions(
        limit=args.limit,
        subset=args.subset,
        opus=OPUS_RATES if args.opus else (),
        visqol=args.visqol,
        usage=args.usage,
        clips=args.clips,
        batch_size=args.batch_size,
    )
    out = Path(args.out)
    with Outputs() as outputs:
        outputs.folder(out)
        result = evaluate_tokenizer(tokenizer, args.data, options)
        write_tokenizer_report(
            result, report_command("audio-var", "tokenizer", args, flags=("opus",)), outputs, out, args.data
        )
    for system in result.systems:
        q = system.quality
        figures = f"log-mel {q.mel:.3f}, convergence {q.convergence:.3f}, pitch within 20 cents {100 * q.in_tune:.1f}%"
        print(f"{system.name}: {system.kbits:.2f} kbit/s, {figures}")
    print(f"report in {out / 'report.md'}")


def run_generator(args: argparse.Namespace) -> None:
    """Measure a generator, write the report, and say the figures that count."""
    from audio_var.evaluator import SHIPPED, load_evaluator
    from audio_var.reports.generator import GeneratorOptions, evaluate_generator, write_generator_report

    _check_data(args.data)
    evaluator = load_evaluator(args.evaluator or SHIPPED)
    model = open_generator(args.checkpoint, args.device)
    options = GeneratorOptions(
        count=args.count,
        seed=args.seed,
        sampling=sampling_options(args, model.sampling),
        clips=args.clips,
        batch_size=args.batch_size,
    )
    out = Path(args.out)
    with Outputs() as outputs:
        outputs.folder(out)
        result = evaluate_generator(model, args.data, evaluator, options)
        write_generator_report(result, report_command("audio-var", "generator", args), outputs, out, args.data)
    for v in result.verdicts:
        distance = "" if v.frechet is None else f", FD {v.frechet:.2f}"
        print(f"{v.name}: {v.notes:,} notes, family {100 * v.family:.1f}%, pitch {100 * v.in_tune:.1f}%{distance}")
    print(f"report in {out / 'report.md'}")


def _check_data(folder: str) -> None:
    if not Path(folder, "manifest.json").is_file():
        raise UserError(f"{folder} holds no notes (no manifest.json); render them with audio-var data notes")
