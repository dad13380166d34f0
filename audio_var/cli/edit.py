"""`audio-var edit`: a recording with a span drawn anew, continued, varied, mixed, or repaired."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audio_var.cli.backend import BACKEND
from next_scale.cli import real_number, sample_seed, whole_number
from next_scale.commands import edit
from next_scale.commands.edit import Edit, Job
from next_scale.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from audio_var.editing import Editor
    from next_scale.model import Generator
    from next_scale.sampling import SamplingOptions

_DESCRIPTION = """Change a recording with a trained model, without training for the task: tokens that stand for what is
known stay, scale by scale, and the model draws the others so that they fit.

IN is resampled to the codec's rate and mixed to mono; any length works, in windows of the model's length. Without
--label, --pitch and so on the model is not told what it hears, and completes what it finds. One verb a call. Several
values of a condition, or --count, give several results: OUT_flute_000.wav, OUT_flute_001.wav and so on."""

_EPILOG = """examples:
  audio-var edit note.wav mended.wav --inpaint 0.3:0.6 --label flute
  audio-var edit note.wav longer.wav --continue 2.0 --seed 1
  audio-var edit note.wav other.wav --variation 0.4 --count 4 --plot others.png
  audio-var edit note.wav brass.wav --relabel brass --pitch 60
  audio-var edit note.wav between.wav --interpolate second.wav --amount 0.3"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``edit``."""
    parser, verbs = edit.add_parser(subparsers, BACKEND, _DESCRIPTION, _EPILOG, ("--keep", "--keep-scales"))
    verbs.add_argument(
        "--inpaint",
        type=_span,
        metavar="START:END",
        help="draw this span anew, in seconds, such as 0.3:0.6. All else keeps its samples, but for a cross-fade of "
        "10 ms at the borders",
    )
    verbs.add_argument(
        "--continue",
        dest="seconds",
        type=real_number(0, 600),
        metavar="S",
        help="append S seconds, in windows that each know the one before. IN keeps its samples, but for its last 10 ms",
    )
    parser.add_argument(
        "--candidates",
        type=whole_number(1, 64),
        default=1,
        metavar="N",
        help="for --inpaint and --continue: draw N, and take the one under which what is known is the likeliest "
        "(default: 1)",
    )
    parser.add_argument(
        "--passes",
        type=whole_number(1, 16),
        default=1,
        metavar="N",
        help="for --inpaint and --continue: draw the finer half of the scales N times, each time with coarser scales "
        "taken from the whole result (default: 1)",
    )
    parser.set_defaults(run=run)


def _span(text: str) -> tuple[float, float]:
    """``0.3:0.6``."""
    try:
        start, end = map(float, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be START:END in seconds, such as 0.3:0.6, got '{text}'") from None
    return start, end


def run(args: argparse.Namespace) -> None:
    """Edit, write, and say where."""
    if args.inpaint is None and args.seconds is None and (args.candidates > 1 or args.passes > 1):
        raise UserError("--candidates and --passes are for --inpaint and --continue: leave them out")
    edit.run(args, BACKEND, _edit_of)


def _edit_of(args: argparse.Namespace, model: Generator, options: SamplingOptions, original: Tensor) -> Edit:
    from audio_var.editing import Editor, check_span

    audio = original[0]
    rate = model.tokenizer.autoencoder.sample_rate
    other = None
    if args.inpaint is not None:
        check_span(*args.inpaint, len(audio) / rate)
        text = "{:g} to {:g} s drawn anew".format(*args.inpaint)
    elif args.seconds is not None:
        text = f"{args.seconds:g} s appended"
    elif args.interpolate is not None:
        other = BACKEND.read(Path(args.interpolate), model.tokenizer, args).sample[0]
        text = f"{edit.amount(args):.0%} of the way to {args.interpolate}"
    else:
        text = edit.varied_text(args, model.tokenizer.quantizer.scales)

    def edited(editor: Editor) -> Tensor:
        if args.inpaint is not None:
            return editor.inpaint(audio, *args.inpaint, args.candidates, args.passes)
        if args.seconds is not None:
            return editor.continued(audio, args.seconds, args.candidates, args.passes)
        if other is not None:
            return editor.interpolate(audio, other, edit.amount(args))
        return editor.vary(audio, edit.strength(args), args.keep_scales or "coarse")

    def samples(jobs: Sequence[Job]) -> Iterator[Tensor]:
        for condition, number in jobs:
            yield edited(Editor(model, condition, sample_seed(args.seed, number), options))[None]

    return Edit(samples, text)
