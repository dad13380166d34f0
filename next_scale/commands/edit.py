"""``edit``: a sample from a file, changed by one verb at a time."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from next_scale.cli import (
    DEFAULT,
    MOST_SAMPLES,
    Outputs,
    add_condition_options,
    add_int8_option,
    add_model_options,
    add_sampling_options,
    as_generator,
    condition_stem,
    condition_values,
    progress,
    requested_conditions,
    sampling_options,
    whole_number,
)
from next_scale.commands.backend import Advance, Backend, Tile
from next_scale.commands.generate import list_jobs, print_listed
from next_scale.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from next_scale.model import Generator
    from next_scale.sampling import SamplingOptions

AMOUNTS = {"relabel": 0.8, "interpolate": 0.5}
"""What ``--amount`` is by default, for the verbs that take it."""

Job = tuple[dict[str, int], int]
"""A condition and a number: the same seed gives the same sample for both, whatever is made beside it."""


class Edit(NamedTuple):
    """samples: makes the sample (C, ...) of every job, telling shares of a job as it goes. text: what is done."""

    samples: Callable[[Sequence[Job], Advance], Iterator[Tensor]]
    text: str


def add_parser(
    subparsers: argparse._SubParsersAction, backend: Backend, description: str, epilog: str,
    keep: Sequence[str] = ("--keep-scales",), batched: bool = True,
) -> tuple[argparse.ArgumentParser, argparse._MutuallyExclusiveGroup]:  # fmt: skip
    """Add ``edit`` for a backend: all but its own verbs, which it adds to the group, and ``run``.

    The verbs here are ``--variation``, ``--relabel`` and ``--interpolate``.

    Args:
        keep: names of the option for the scales that stay.
        batched: whether several results are computed at once.
    """
    parser = subparsers.add_parser("edit", description=description, epilog=epilog)
    parser.add_argument("input", metavar="IN", help=f"{backend.content} file ({', '.join(backend.typical)}, ...)")
    written = ", ".join(f".{name}" for name in backend.formats)
    parser.add_argument("output", metavar="OUT", help=f"{backend.content} file to write: {written}")
    verbs = parser.add_argument_group("verbs", "One of these").add_mutually_exclusive_group(required=True)
    verbs.add_argument(
        "--variation",
        type=_share,
        metavar="STRENGTH",
        help="keep some scales and draw the others anew; STRENGTH is the share drawn, from 0, which only passes "
        "IN through the tokenizer, to 1, which keeps nothing",
    )
    verbs.add_argument(
        "--relabel",
        metavar="LABEL",
        help=f"a variation under another label, of strength {AMOUNTS['relabel']:g} or --amount",
    )
    verbs.add_argument(
        "--interpolate",
        metavar="OTHER",
        help=f"what lies between IN and OTHER, another {backend.content} file, in the latent; --amount 0 is IN, 1 is "
        f"OTHER (default: {AMOUNTS['interpolate']:g}). Nothing is drawn",
    )
    parser.add_argument(
        "--amount", type=_share, metavar="X", help="from 0 to 1, for --relabel and --interpolate: see there"
    )
    parser.add_argument(
        *keep,
        dest="keep_scales",
        choices=("coarse", "fine"),
        help="the scales that --variation and --relabel keep (default: coarse)",
    )
    parser.add_argument(
        "--count",
        type=whole_number(1, MOST_SAMPLES),
        default=1,
        metavar="N",
        help=f"{backend.samples} a condition (default: 1)",
    )
    parser.add_argument("--force", action="store_true", help="write OUT even where it is IN")
    parser.add_argument(
        f"--{backend.sheet_option}",
        dest="sheet",
        metavar="FILE.png",
        help=f"also draw the original and all {backend.samples} on one",
    )
    backend.add_read_options(parser)
    add_condition_options(parser, backend.fields)
    add_sampling_options(parser)
    add_int8_option(parser)
    add_model_options(parser, batched=batched)
    return parser, verbs


def add_drawing_options(parser: argparse.ArgumentParser, what: str) -> None:
    """``--candidates`` and ``--passes``, for verbs that draw `what`."""
    parser.add_argument(
        "--candidates",
        type=whole_number(1, 64),
        default=1,
        metavar="N",
        help=f"for {what}: draw N, and take the one under which what is known is the likeliest (default: 1)",
    )
    parser.add_argument(
        "--passes",
        type=whole_number(1, 16),
        default=1,
        metavar="N",
        help=f"for {what}: draw the finer half of the scales N times, each time with coarser scales taken from the "
        "whole result (default: 1)",
    )


def check_drawing_options(args: argparse.Namespace, wanted: bool, what: str) -> None:
    """Raise UserError where these options are given to a verb that does not draw `what`."""
    if not wanted and (args.candidates > 1 or args.passes > 1):
        raise UserError(f"--candidates and --passes are for {what}: leave them out")


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got '{text}'")
    return number


def check(args: argparse.Namespace, backend: Backend) -> None:
    """Raise UserError for what can be said before a model is loaded."""
    source, target = Path(args.input), Path(args.output)
    backend.check(source, args)
    backend.check_name(target)
    if args.sheet:
        backend.check_sheet(Path(args.sheet))
    if args.interpolate is not None:
        backend.check(Path(args.interpolate), args)
    _spare(args, [target])
    if args.amount is not None and args.relabel is None and args.interpolate is None:
        raise UserError("--amount is for --relabel and --interpolate: leave it out")
    if args.keep_scales is not None and args.variation is None and args.relabel is None:
        raise UserError("which scales to keep is for --variation and --relabel to know: leave it out")
    if args.relabel is not None:
        if args.label:
            raise UserError("--relabel says the label: leave --label out")
        args.label = [args.relabel]


def _spare(args: argparse.Namespace, targets: Sequence[Path]) -> None:
    """Raise UserError where a file that is read would be written over."""
    read = [Path(path) for path in (args.input, args.interpolate) if path is not None]
    for target in [] if args.force else targets:
        if target.exists() and any(target.samefile(path) for path in read):
            raise UserError(f"{target} is what is read: write elsewhere, or give --force to replace it")


def amount(args: argparse.Namespace) -> float:
    """Of ``--interpolate``: how far the way to the other."""
    return AMOUNTS["interpolate"] if args.amount is None else args.amount


def strength(args: argparse.Namespace) -> float:
    """Of ``--variation`` or ``--relabel``: the share of the scales that is drawn."""
    if args.variation is not None:
        return args.variation
    return AMOUNTS["relabel"] if args.amount is None else args.amount


def varied_text(args: argparse.Namespace, scales: int) -> str:
    """What a variation of K scales is, for people."""
    from next_scale.editing import scales_kept

    kept = scales_kept(scales, strength(args))
    which = {"coarse": "coarsest", "fine": "finest"}[args.keep_scales or "coarse"]
    return f"the {which} {kept} of {scales} scales kept"


def run(
    args: argparse.Namespace,
    backend: Backend,
    edit_of: Callable[[argparse.Namespace, Generator, SamplingOptions, Tensor], Edit],
) -> None:
    """Edit, write, and say where.

    Args:
        edit_of: from arguments that were checked, model, options and the original (C, ...) to what is to be done.
    """
    check(args, backend)
    source, target = Path(args.input), Path(args.output)
    model = as_generator(backend.open_model(args.checkpoint, args.device), args.checkpoint or DEFAULT)
    model.pack(args.int8)
    spec, tokenizer = model.condition_spec, model.tokenizer
    options = sampling_options(args, model.sampling)
    jobs = list_jobs(requested_conditions(args, spec), args.count, backend)
    targets = [
        target if len(jobs) == 1 else target.with_stem(f"{target.stem}_{condition_stem(spec, condition)}_{number:03}")
        for condition, number in jobs
    ]
    _spare(args, targets)
    original = backend.read(source, tokenizer, args).sample
    edit = edit_of(args, model, options, original)
    tiles = [Tile(source.name, "original", original)]
    with Outputs() as outputs, progress("editing", len(jobs)) as advance:
        drawn = outputs.file(args.sheet) if args.sheet else None
        for path, (condition, _), sample in zip(targets, jobs, edit.samples(jobs, advance), strict=True):
            backend.write(outputs.file(path), sample, tokenizer)
            if drawn and len(tiles) <= backend.most_tiles(sample):
                values = condition_values(spec, condition).values()
                tiles.append(Tile(path.name, ", ".join(map(str, values)) or "edited", sample))
        if drawn:
            backend.draw(drawn, tiles, args.count, tokenizer)
    print_listed(targets)
    noun = backend.sample if len(jobs) == 1 else backend.samples
    print(f"{len(jobs)} {noun} of {backend.size_text(sample, tokenizer)}: {edit.text} (seed {args.seed})")
    if args.sheet:
        print(f"{backend.sheet} of {len(tiles)} in {args.sheet}")
