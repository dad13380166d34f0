"""`audio-var generate`: clips from a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from audio_var.cli.models import DEFAULT, open_generator
from next_scale.cli import (
    MOST_SAMPLES,
    Outputs,
    add_condition_options,
    add_model_options,
    add_sampling_options,
    condition_stem,
    condition_values,
    progress,
    requested_conditions,
    sample_seed,
    sampling_options,
    whole_number,
)
from next_scale.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from next_scale.condition import ConditionSpec
    from next_scale.model import Generator
    from next_scale.sampling import SamplingOptions

_DESCRIPTION = """Generate audio clips. The model draws a pyramid of tokens, one whole scale a step from coarse to fine,
and its codec turns each pyramid into a clip.

Conditions say what to make; `audio-var info` lists those that a checkpoint knows. A condition left out is left to the
model. Of several values every combination is made, --count times. A clip depends on its condition, the seed and its
number only: the same command gives the same clips, whatever else is generated with them."""

_EPILOG = """examples:
  audio-var generate --label flute --pitch 60 --count 8 --seed 0 --out clips
  audio-var generate --label flute brass --pitch 48 60 72 --cfg 2 --out clips --plot clips/sheet.png

a file name tells condition, seed and number: clips/flute_p060_v080_s0_000.wav"""

_FIELDS = {
    "label": "class, such as the instrument family",
    "pitch": "MIDI note number; 60 is middle C",
    "velocity": "how hard the note is struck, 1 to 127; the nearest that the model knows is taken",
}
_LISTED = 20  # clips named in the output one by one
_PLOTTED = 64  # clips on one sheet


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``generate``."""
    parser = subparsers.add_parser("generate", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--out", default="clips", metavar="FOLDER", help="created if missing (default: %(default)s)")
    parser.add_argument(
        "--count", type=whole_number(1, MOST_SAMPLES), default=1, metavar="N", help="clips a condition (default: 1)"
    )
    parser.add_argument("--format", choices=("wav", "flac", "ogg"), default="wav", help="default: %(default)s")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw a sheet of spectrograms")
    add_condition_options(parser, _FIELDS)
    add_sampling_options(parser)
    add_model_options(parser, DEFAULT)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Generate, write, and say where."""
    from audio_var.io import write_audio
    from audio_var.plots import check_plot, spectrogram_sheet

    check_plot(args.plot)
    model = open_generator(args.checkpoint, args.device)
    spec, rate = model.condition_spec, model.tokenizer.autoencoder.sample_rate
    options = sampling_options(args, model.sampling)
    conditions = requested_conditions(args, spec)
    if len(conditions) * args.count > MOST_SAMPLES:
        raise UserError(f"more than {MOST_SAMPLES:,} clips asked for; give fewer conditions or a lower --count")
    jobs = [(condition, number) for condition in conditions for number in range(args.count)]
    names = [f"{condition_stem(spec, condition)}_s{args.seed}_{number:03}" for condition, number in jobs]
    sheet: list[tuple[str, np.ndarray]] = []
    with Outputs() as outputs, progress("generating", len(jobs)) as advance:
        out = outputs.folder(args.out)
        plot = outputs.file(args.plot) if args.plot else None
        for name, clip in zip(names, _clips(model, jobs, args.seed, options, args.batch_size), strict=True):
            write_audio(outputs.file(out / f"{name}.{args.format}"), clip, rate)
            if plot and len(sheet) < _PLOTTED:
                sheet.append((name, clip))
            advance(1)
        if plot:
            spectrogram_sheet(plot, sheet, rate)
    for name in names[:_LISTED]:
        print(out / f"{name}.{args.format}")
    if len(names) > _LISTED:
        print(f"... and {len(names) - _LISTED} more")
    plural = "clip" if len(names) == 1 else "clips"
    print(
        f"{len(names)} {plural} of {len(clip) / rate:.2f} s in {out}: {_summary(spec, conditions)} (seed {args.seed})"
    )
    if plot:
        print(f"spectrograms of {len(sheet)} in {args.plot}")


def _clips(
    model: Generator, jobs: list[tuple[dict[str, int], int]], seed: int, options: SamplingOptions, batch_size: int
) -> Iterator[np.ndarray]:
    """The clip (T,) of every job, a condition and a number."""
    from next_scale.condition import collate_conditions

    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        condition = collate_conditions([condition for condition, _ in batch], model.condition_spec)
        samples, _ = model.generate(condition, [sample_seed(seed, number) for _, number in batch], options)
        yield from samples.cpu().numpy()[:, 0]  # (B, 1, T) -> B times (T,)


def _summary(spec: ConditionSpec, conditions: list[dict[str, int]]) -> str:
    """``label flute, brass; pitch 60``: the values in use, field by field."""
    parts = []
    for field in spec:
        values = dict.fromkeys(condition_values(spec, condition).get(field) for condition in conditions)
        if None not in values:
            parts.append(f"{field} {', '.join(map(str, values))}")
    return "; ".join(parts) or "no condition"
