"""`audio-var codec-report`: codecs side by side on recordings; `audio-var codec-import`: a codec as a checkpoint."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from next_scale.cli import Outputs, whole_number
from next_scale.errors import UserError

_REPORT = """Compare codecs on the same recordings at their bit rates: SI-SDR, multi-resolution STFT and log-mel
distance, ViSQOL, tokens and bits a second, real-time factors, and how they use their codes. Writes report.md,
report.csv, report.json and rate_distortion.png.

--codec takes, as often as wanted:

  shipped, CHECKPOINT           a tokenizer of this project; @8,14 decodes its first 8 and 14 scales
  opus@8,12,16                  Opus at these rates in kbit/s (needs ffmpeg)
  encodec:24khz@1.5,6           EnCodec, 24khz or 48khz, at these rates; published weights, or
  encodec:24khz=FILE@6          those of a file
  snac:24khz, snac=FOLDER       SNAC: 24khz, 32khz, 44khz, a hub id, or a folder as the hub has it
  dac:44khz@8, dac=FILE         DAC of the descript-audio-codec package
  transformers:ID@6             EnCodec, DAC or Mimi of the transformers library: a hub id, or
  transformers=FOLDER           a folder as the hub has it
  encodec:24khz/8-4-2-1         a codec's own codebooks with strides: level q's residual averaged over so many frames

Published weights are downloads: where there is no network, give their files or folders."""

_REPORT_EPILOG = """examples:
  audio-var codec-report --data samples/demo_notes --codec shipped --codec opus@8,12 --out reports/codecs
  audio-var codec-report --data speech/ --codec snac:24khz --codec encodec:24khz@1.5,3,6 --out reports/speech"""

_IMPORT = """Write a published codec as a checkpoint of this project: its encoder and decoder, with its own codebooks as
the scales. `reconstruct`, `tokenize`, `info` and the training of predictors then take it as any other. SPEC is as for
codec-report; --name-weights leaves the weights out and names where they come from, with their checksum."""

_IMPORT_EPILOG = """examples:
  audio-var codec-import snac:24khz --out runs/snac
  audio-var codec-import encodec:24khz/8-4-2-1 --out runs/encodec_pyramid"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``codec-report`` and ``codec-import``."""
    parser = subparsers.add_parser("codec-report", description=_REPORT, epilog=_REPORT_EPILOG)
    parser.add_argument("--data", required=True, metavar="DIR", help="recordings, or a set of notes (its test split)")
    parser.add_argument(
        "--codec", action="append", metavar="SPEC", help="see above (default: shipped and opus@8,12,16,24)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="created if missing")
    parser.add_argument("--limit", type=whole_number(1), default=64, metavar="N", help="clips (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="cut longer recordings (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=whole_number(4000, 192_000), metavar="HZ", help="compare at (default: the data's)"
    )
    parser.add_argument(
        "--visqol", type=whole_number(0), default=0, metavar="N",
        help="clips for ViSQOL, from 16 kHz up (needs visqol-python; default: none)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=8, metavar="N", help="windows at once (default: %(default)s)"
    )
    parser.set_defaults(run=run_report)

    parser = subparsers.add_parser("codec-import", description=_IMPORT, epilog=_IMPORT_EPILOG)
    parser.add_argument("spec", metavar="SPEC", help="such as snac:24khz, encodec:24khz@6, encodec:24khz/8-4-2-1")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the checkpoint")
    parser.add_argument("--name-weights", action="store_true", help="name the weights instead of holding them")
    parser.set_defaults(run=run_import)


def run_report(args: argparse.Namespace) -> None:
    """Measure, write the report, and say the figures that count."""
    from audio_var.codecs.spec import parse_spec
    from audio_var.reports.codecs import SHORTEST, compare_codecs, write_codec_report

    if not args.seconds >= SHORTEST:
        raise UserError(f"--seconds must be at least {SHORTEST:g}, got {args.seconds:g}")
    specs = [parse_spec(text) for text in args.codec or ("shipped", "opus@8,12,16,24")]
    out = Path(args.out)
    with Outputs() as outputs:
        outputs.folder(out)
        result = compare_codecs(
            specs, args.data, args.limit, args.seconds, args.rate, args.visqol, args.batch_size, args.device
        )
        write_codec_report(result, _command(args), outputs, out, args.data)
    for s in result.systems:
        speed = "" if s.encode_rtf is None else f", {s.encode_rtf:.3f} + {s.decode_rtf:.3f} s a second"
        print(f"{s.name}: {s.kbits:.2f} kbit/s, SI-SDR {s.si_sdr:.1f} dB, log-mel {s.mel:.3f}{speed}")
    print(f"report in {out / 'report.md'}")


def _command(args: argparse.Namespace) -> str:
    """The command that makes this report again."""
    words = ["audio-var", "codec-report", "--data", args.data]
    for text in args.codec or ():
        words += ["--codec", text]
    words += ["--limit", str(args.limit), "--seconds", f"{args.seconds:g}"]
    words += ["--rate", str(args.rate)] if args.rate else []
    words += ["--visqol", str(args.visqol)] if args.visqol else []
    return shlex.join([*words, "--out", args.out])


def run_import(args: argparse.Namespace) -> None:
    """Write the checkpoint and say what it is."""
    from audio_var.codecs.pretrained import native_tokenizer
    from audio_var.codecs.spec import describe, levels_at, open_codec, parse_spec
    from next_scale.checkpoint import save_pretrained

    spec = parse_spec(args.spec)
    if spec.kind in ("opus", "checkpoint") or len(spec.numbers) > 1:
        raise UserError(f"'{args.spec}' is no single codec to import: give one such as snac:24khz or encodec:24khz@6")
    codec = open_codec(spec, embed=not args.name_weights)
    own = codec.levels
    strides = spec.strides or own.strides
    if spec.numbers:
        count = levels_at(spec.numbers[0], strides, len(own.codebooks[0]), codec.sample_rate / codec.hop)
        strides = strides[:count]
    tokenizer = native_tokenizer(codec, len(strides), strides)
    save_pretrained(tokenizer, args.out)
    rates = f"{codec.sample_rate:,} Hz, strides {' '.join(map(str, tokenizer.quantizer.schedule.strides))}"
    print(f"{describe(spec)} in {args.out}: {rates}, codebooks of {tokenizer.quantizer.codebook_size:,}")
