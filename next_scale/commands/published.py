"""``import`` and ``verify``: published weights as a checkpoint, and whether they compute what their own code does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from next_scale.cli import progress
from next_scale.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from next_scale.model import Generator
    from next_scale.parity import Case, Difference
    from next_scale.tokenizer import Tokenizer

LIMIT = 1e-3

VERIFY = f"""Compare this program with what a published implementation computed. A case is a safetensors file that holds
inputs, expected outputs, and the names and shapes of the weights, whose values follow from the names. Prints the
largest difference of each quantity; exits with code 1 where any token differs, or any value by more than {LIMIT:g}."""


def add_import(subparsers: argparse._SubParsersAction, description: str, epilog: str) -> argparse.ArgumentParser:
    """Add ``import``, which writes a checkpoint; the caller adds the options that name files, and sets ``run``."""
    parser = subparsers.add_parser("import", description=description, epilog=epilog)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="checkpoint to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the weights on disk; they load as float32 (default: %(default)s)",
    )
    return parser


def write_imported(
    args: argparse.Namespace,
    build: Callable[[Callable[[int], None]], Tokenizer | Generator],
    summary: Callable[[Tokenizer | Generator], str],
) -> None:
    """Build a model, write it to the place that was asked for, and say what it is.

    Args:
        build: is given a function that advances the progress bar, by 3 in all.
        summary: of the model, in one line.

    Raises:
        UserError: it cannot be built, or there is a file in its place.
    """
    import torch

    from next_scale.checkpoint import save_pretrained

    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder to write the checkpoint into")
    with progress("importing", 4) as advance:
        model = build(advance)
        save_pretrained(model, out, torch.float16 if args.dtype == "float16" else None)
        advance(1)
    print(f"{out}: {summary(model)}")


def millions(module: nn.Module) -> str:
    """``310.3 M``: how many parameters it has."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} M"


def add_verify(
    subparsers: argparse._SubParsersAction, example: str,
    compare: Callable[[], Callable[[Case], tuple[list[Difference], list[str]]]],
) -> None:  # fmt: skip
    """Add ``verify``; `compare` imports what compares a case, and returns it."""
    parser = subparsers.add_parser("verify", description=VERIFY, epilog=f"example:\n  {example}")
    parser.add_argument("cases", nargs="+", metavar="CASE.safetensors", help="cases to compare with")
    parser.set_defaults(run=partial(_verify, compare=compare))


def _verify(
    args: argparse.Namespace, compare: Callable[[], Callable[[Case], tuple[list[Difference], list[str]]]]
) -> int:  # fmt: skip
    """Print the differences; 1 where one is too large."""
    from next_scale.parity import read_case, report

    failed, compared = False, compare()
    for path in args.cases:
        differences, others = compared(read_case(path))
        if len(args.cases) > 1:
            print(path)
        print(report(differences, LIMIT))
        if others:
            print(f"not compared: {', '.join(others)}")
        failed |= not all(item.passes(LIMIT) for item in differences)
    return int(failed)
