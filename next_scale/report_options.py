"""What the commands `evaluate` of all programs share: their common options, and the command that a report states."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection

from next_scale.cli import whole_number


def add_report_options(
    parser: argparse.ArgumentParser, default: str, data: str, data_help: str, batch_size: int
) -> None:
    """The checkpoint, ``--data``, ``--out``, ``--device`` and ``--batch-size``.

    Args:
        default: says which checkpoint is used without one.
        data: used where none is given; `data_help` says what it may be.
        batch_size: likewise.
    """
    parser.add_argument(
        "checkpoint", nargs="?", metavar="CHECKPOINT",
        help=f"folder, .safetensors file, or hub id owner/name (default: {default})",
    )  # fmt: skip
    parser.add_argument("--data", default=data, metavar="DATA", help=f"{data_help} (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="created if missing")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto, a GPU where there is one)")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=batch_size, metavar="N",
        help="computed at once (default: %(default)s)",
    )  # fmt: skip


def report_command(program: str, kind: str, args: argparse.Namespace, flags: Collection[str] = ()) -> str:
    """The command that makes a report again: every option that is not left at nothing.

    Args:
        flags: options without a value, which are left out where they are not set.
    """
    words = [program, "evaluate", kind, *([args.checkpoint] if args.checkpoint else [])]
    for name, value in vars(args).items():
        option = f"--{name.replace('_', '-')}"
        if name in ("checkpoint", "run", "extra", "device") or value is None or (name in flags and not value):
            continue
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        else:
            words += [option, str(value)]
    return shlex.join(words)
