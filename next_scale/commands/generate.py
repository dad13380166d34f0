"""``generate``: samples from a trained model."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from next_scale.cli import (
    DEFAULT,
    MOST_SAMPLES,
    Outputs,
    add_condition_options,
    add_int8_option,
    add_model_options,
    add_prompt_options,
    add_sampling_options,
    as_generator,
    condition_stem,
    condition_values,
    progress,
    requested_conditions,
    requested_prompts,
    sample_seed,
    sampling_options,
    whole_number,
)
from next_scale.commands.backend import Backend, Tile, Vectors
from next_scale.errors import UserError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from next_scale.condition import ConditionSpec
    from next_scale.model import Generator
    from next_scale.sampling import SamplingOptions

_LISTED = 20  # samples named in the output one by one


def add_parser(subparsers: argparse._SubParsersAction, backend: Backend, description: str, epilog: str) -> None:
    """Add ``generate`` for a backend."""
    parser = subparsers.add_parser("generate", description=description, epilog=epilog)
    parser.add_argument(
        "--out", default=backend.folder, metavar="FOLDER", help="created if missing (default: %(default)s)"
    )
    parser.add_argument(
        "--count",
        type=whole_number(1, MOST_SAMPLES),
        default=1,
        metavar="N",
        help=f"{backend.samples} a condition (default: 1)",
    )
    parser.add_argument("--format", choices=backend.formats, default=backend.formats[0], help="default: %(default)s")
    parser.add_argument(
        f"--{backend.sheet_option}",
        dest="sheet",
        metavar="FILE.png",
        help=backend.sheet_help,
        **({"nargs": "?", "const": ""} if backend.sheet_file else {}),
    )
    backend.add_generate_options(parser)
    add_condition_options(parser, backend.fields)
    add_prompt_options(parser)
    add_sampling_options(parser)
    add_int8_option(parser)
    add_model_options(parser)
    parser.set_defaults(run=partial(run, backend=backend))


class Asked(NamedTuple):
    """What is to be made.

    Attributes:
        spec: condition fields and what their values are called.
        conditions: every combination asked for: field -> index in `spec`.
        jobs: a condition and a number a sample.
        names: of the samples, without suffix.
        wanted: the jobs, with the vectors that conditions stand for.
    """

    spec: ConditionSpec
    conditions: list[dict[str, int]]
    jobs: list[tuple[dict[str, int], int]]
    names: list[str]
    wanted: list[tuple[dict[str, int | Tensor], int]]


def run(args: argparse.Namespace, backend: Backend) -> None:
    """Generate, write, and say where."""
    sheet = _sheet(args, backend)
    if args.checkpoint is None and (args.prompt or args.prompt_file is not None):
        args.checkpoint = backend.prompted_checkpoint()
    model = as_generator(backend.open_model(args.checkpoint, args.device), args.checkpoint or DEFAULT)
    model.pack(args.int8)
    tokenizer = model.tokenizer
    options = sampling_options(args, model.sampling)
    in_pieces = backend.in_pieces(model, args)
    grid = None if in_pieces else backend.grid(tokenizer, args)
    asked = _asked(args, backend, model)
    if in_pieces:
        in_pieces(asked, options, sheet)
        return
    out = Path(args.out)
    tiles: list[Tile] = []
    with Outputs() as outputs, progress("generating", len(asked.jobs)) as advance:
        outputs.folder(out)
        drawn = outputs.file(sheet) if sheet else None
        samples = draw_samples(model, asked.wanted, args.seed, options, args.batch_size, grid=grid)
        for name, (condition, _), sample in zip(asked.names, asked.jobs, samples, strict=True):
            sample = backend.finish(sample, tokenizer, args)
            backend.write(outputs.file(out / f"{name}.{args.format}"), sample, tokenizer)
            if drawn and len(tiles) < backend.most_tiles(sample):
                tiles.append(Tile(name, describe(asked.spec, condition), sample))
            advance(1)
        if drawn:
            backend.draw(drawn, tiles, args.count, tokenizer)
    print_listed([out / f"{name}.{args.format}" for name in asked.names])
    print(summary(args, backend, asked, backend.size_text(sample, tokenizer)))
    if sheet:
        print(f"{backend.sheet} of {len(tiles)} in {sheet}")


def _asked(args: argparse.Namespace, backend: Backend, model: Generator) -> Asked:
    """Raises UserError for what the model does not know, and for too many samples."""
    args.prompt = requested_prompts(args)
    spec, vectors = model.condition_spec, words_vectors(model, args.prompt, backend.program)
    if not vectors:
        vectors = backend.vectors(model, args)
    conditions = [
        {**listed, **dict(zip(vectors, rows, strict=True))}
        for listed in requested_conditions(args, spec)
        for rows in itertools.product(*(range(len(found.names)) for found in vectors.values()))
    ]
    spec = spec | {field: found.names for field, found in vectors.items()}  # by which samples are named
    jobs = list_jobs(conditions, args.count, backend)
    names = [f"{condition_stem(spec, condition)}_s{args.seed}_{number:03}" for condition, number in jobs]
    wanted = [({**condition, **_looked_up(condition, vectors)}, number) for condition, number in jobs]
    return Asked(spec, conditions, jobs, names, wanted)


def words_vectors(model: Generator, prompts: Sequence[str], program: str) -> dict[str, Vectors]:
    """Prompts for a model that reads words, as values of its condition "prompt"; none for one that takes vectors.

    Raises:
        UserError: a prompt that does not fit, or a model of labels.
    """
    if not prompts:
        return {}
    if model.words is None:
        if model.vectors:
            return {}
        options = ", ".join(f"--{name}" for name in model.condition_spec) or "no condition"
        raise UserError(
            f"this model was trained on labels, not words, and takes no prompt: ask for {options}; `{program} info` "
            "lists their values"
        )
    import torch

    from next_scale.conditioning import PROMPT, clean_prompt, encode_prompt

    texts = list(dict.fromkeys(clean_prompt(text) for text in prompts))
    for text in texts:
        model.words.check(text)
    return {PROMPT: Vectors([printable(text) for text in texts], torch.stack([encode_prompt(t) for t in texts]))}


def list_jobs(conditions: Sequence[dict[str, int]], count: int, backend: Backend) -> list[tuple[dict[str, int], int]]:
    """A condition and a number for each of `count` samples a condition. Raises UserError for too many."""
    if len(conditions) * count > MOST_SAMPLES:
        raise UserError(
            f"more than {MOST_SAMPLES:,} {backend.samples} asked for; give fewer conditions or a lower --count"
        )
    return [(condition, number) for condition in conditions for number in range(count)]


def _looked_up(condition: dict[str, int], vectors: dict[str, Vectors]) -> dict[str, Tensor]:
    """The vectors that a condition has the numbers of."""
    return {field: found.values[condition[field]] for field, found in vectors.items()}


def _sheet(args: argparse.Namespace, backend: Backend) -> Path | None:
    """Where the sheet goes that was asked for."""
    if args.sheet is None:
        return None
    sheet = Path(args.sheet or Path(args.out, backend.sheet_file))
    backend.check_sheet(sheet)
    return sheet


def draw_samples(
    model: Generator,
    jobs: Sequence[tuple[dict[str, int | Tensor], int]],
    seed: int,
    options: SamplingOptions,
    batch_size: int,
    known: Tensor | None = None,
    forced: Tensor | None = None,
    grid: tuple[int, ...] | None = None,
) -> Iterator[Tensor]:
    """The sample (C, ...) of every job, a condition and a number.

    Args:
        known, forced: tokens (1, L) int64 that every sample keeps and where, (1, L) bool.
        grid: size of the full grid, of a model of any length.
    """
    from next_scale.condition import collate_conditions

    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        condition = collate_conditions([condition for condition, _ in batch], model.condition_spec, model.vectors)
        seeds = [sample_seed(seed, number) for _, number in batch]
        kept = (None if part is None else part.expand(len(batch), -1) for part in (known, forced))
        samples, _ = model.generate(condition, seeds, options, *kept, grid=grid)
        yield from samples.cpu()


def print_listed(paths: Sequence[Path]) -> None:
    """Name the first files that were written, and count the rest."""
    for path in paths[:_LISTED]:
        print(path)
    if len(paths) > _LISTED:
        print(f"... and {len(paths) - _LISTED} more")


def summary(args: argparse.Namespace, backend: Backend, asked: Asked, size: str) -> str:
    """``2 clips of 1.02 s in clips: label flute (seed 0)``."""
    noun = backend.sample if len(asked.names) == 1 else backend.samples
    made = _conditions_text(asked.spec, asked.conditions)
    return f"{len(asked.names)} {noun} of {size} in {args.out}: {made} (seed {args.seed})"


def describe(spec: ConditionSpec, condition: dict[str, int]) -> str:
    """``flute, pitch 60``: a condition for people, names as they are."""
    values = condition_values(spec, condition).items()
    return ", ".join(value if isinstance(value, str) else f"{name} {value}" for name, value in values)


def _conditions_text(spec: ConditionSpec, conditions: list[dict[str, int]]) -> str:
    """``label flute, brass; pitch 60``: the values in use, field by field."""
    parts = []
    for field in spec:
        values = dict.fromkeys(condition_values(spec, condition).get(field) for condition in conditions)
        if None not in values:
            parts.append(f"{field} {', '.join(map(str, values))}")
    return "; ".join(parts) or "no condition"
