"""`audio-var edit`: a recording with a span drawn anew, continued, varied, mixed, or repaired."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audio_var.cli.backend import BACKEND
from next_scale.cli import real_number, sample_seed
from next_scale.commands import edit
from next_scale.commands.backend import Advance
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
  audio-var edit note.wav between.wav --interpolate second.wav --amount 0.3
  audio-var edit noisy.wav clean.wav --denoise --label flute --pitch 72
  audio-var edit note_8khz.wav note_16khz.wav --upsample --label flute --pitch 72"""

_DRAWN = "--inpaint and --continue"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``edit``."""
    parser, verbs = edit.add_parser(subparsers, BACKEND, _DESCRIPTION, _EPILOG, ("--keep", "--keep-scales"), False)
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
    verbs.add_argument(
        "--denoise",
        action="store_true",
        help="take steady noise off. Phases stay those of IN, and so does all that stands out of the noise; what the "
        "model holds likely decides the rest. Tell it --label and --pitch: without, it is about as good as spectral "
        "subtraction (samples/edit)",
    )
    verbs.add_argument(
        "--upsample",
        action="store_true",
        help="add what a recording of a lower rate than the model's lacks above half of its rate, from 1,000 Hz up to "
        "any rate below the model's; what is below stays. Levels come nearer to the truth than without, waveforms do "
        "not, for the phases of what is added are the model's own (samples/edit)",
    )
    edit.add_drawing_options(parser, _DRAWN)
    parser.add_argument(
        "--bridge",
        type=real_number(0, 10),
        metavar="S",
        help=f"for {_DRAWN}: interpolate the spectrogram within S seconds of what is known, where a steady sound "
        "changes less than a codec errs; 0 leaves all to the model, such as where another sound shall begin. A gap of "
        "twice S seconds is only interpolated: no model meets it more closely (samples/edit; default: 0.15)",
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
    drawn = args.inpaint is not None or args.seconds is not None
    edit.check_drawing_options(args, drawn, _DRAWN)
    if not drawn and args.bridge is not None:
        raise UserError(f"--bridge is for {_DRAWN}: leave it out")
    edit.run(args, BACKEND, _edit_of)


def _edit_of(args: argparse.Namespace, model: Generator, options: SamplingOptions, original: Tensor) -> Edit:
    from audio_var.editing import BRIDGED, Editor, check_span
    from audio_var.io import check_audio

    audio = original[0]
    rate = model.tokenizer.autoencoder.sample_rate
    other, cutoff = None, 0.0
    bridged = BRIDGED if args.bridge is None else args.bridge
    if args.inpaint is not None:
        check_span(*args.inpaint, len(audio) / rate)
        text = "{:g} to {:g} s drawn anew".format(*args.inpaint)
    elif args.seconds is not None:
        text = f"{args.seconds:g} s appended"
    elif args.interpolate is not None:
        other = BACKEND.read(Path(args.interpolate), model.tokenizer, args).sample[0]
        text = f"{edit.amount(args):.0%} of the way to {args.interpolate}"
    elif args.denoise:
        text = "noise taken off"
    elif args.upsample:
        cutoff = check_audio(args.input).samplerate / 2
        if cutoff >= rate / 2:
            raise UserError(
                f"{args.input} has {2 * cutoff:,.0f} samples a second, and the model {rate:,}: --upsample takes a "
                "lower rate"
            )
        text = f"drawn above {cutoff:,.0f} Hz"
    else:
        text = edit.varied_text(args, model.tokenizer.quantizer.scales)

    def edited(editor: Editor) -> Tensor:
        if args.inpaint is not None:
            return editor.inpaint(audio, *args.inpaint, args.candidates, args.passes)
        if args.seconds is not None:
            return editor.continued(audio, args.seconds, args.candidates, args.passes)
        if other is not None:
            return editor.interpolate(audio, other, edit.amount(args))
        if args.denoise:
            return editor.denoise(audio)
        if args.upsample:
            return editor.upsample(audio, cutoff)
        return editor.vary(audio, edit.strength(args), args.keep_scales or "coarse")

    def samples(jobs: Sequence[Job], advance: Advance) -> Iterator[Tensor]:
        for condition, number in jobs:
            yield edited(Editor(model, condition, sample_seed(args.seed, number), options, advance, bridged))[None]

    return Edit(samples, text + _adapted(args.input, rate))


def _adapted(path: str, rate: int) -> str:
    """What was done to a recording before it was edited, for people."""
    from audio_var.io import check_audio

    info = check_audio(path)
    done = [f"resampled from {info.samplerate:,} Hz"] if info.samplerate != rate else []
    done += ["mixed to mono"] if info.channels > 1 else []
    return f"; {path} was {' and '.join(done)}" if done else ""
