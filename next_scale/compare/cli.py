"""The command `next-scale`: what concerns all modalities that installed packages bring; here, their comparison."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

from next_scale.cli import Parser, run_program, whole_number
from next_scale.errors import UserError

_DESCRIPTION = "Compare next-scale prediction with next-token, masked and diffusion models under one protocol."

_RUN = """Run the cells of a plan that the results lack: tokenizers first, each once, then a predictor a cell, trained
and measured, and last the speed of each, with nothing beside it. Interrupt it whenever you like: run it again, and it
goes on where it was. Results are lines of JSON in OUT/results.jsonl; a changed plan makes new ones.
recipes/compare/README.md says what a plan holds."""

_REPORT = """Write the report of a folder of results as one HTML file with all plots, clips and pictures in it: the
headline ratio with its interval, the tokenizers' floors, quality, likelihood, scaling fits, cost, and every cell. It
opens from disk, on a phone too, and can be written while cells are still missing."""

_RUN_EPILOG = """examples:
  next-scale compare run recipes/compare/debug.yaml --out runs/compare_debug
  next-scale compare run recipes/compare/debug.yaml --out runs/compare_debug --only 1d-natural --jobs 2"""

_REPORT_EPILOG = """examples:
  next-scale compare report runs/compare_debug
  next-scale compare report runs/compare_debug --out report.html"""


_PROGRAM = "What all modalities share: a comparison of predictors, and models of text and samples in one sequence."

_PROGRAM_EPILOG = """commands:
  next-scale compare --help   predictors under one protocol
  next-scale joint --help     one model for text and samples of several kinds"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``compare`` with ``run`` and ``report``."""
    compare = subparsers.add_parser("compare", description=_DESCRIPTION).add_subparsers(dest="what", required=True)
    parser = compare.add_parser("run", description=_RUN, epilog=_RUN_EPILOG)
    parser.add_argument("plan", metavar="PLAN.yaml", help="what to compare")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="results, created if missing")
    parser.add_argument(
        "--jobs", type=whole_number(1, 64), default=1, metavar="N",
        help="cells at once, which share the threads; with GPUs one a GPU (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--only", default="", metavar="TEXT", help="cells with this in their name")
    parser.add_argument("--again", action="store_true", help="measure finished cells again, from their trained models")
    parser.add_argument("--list", action="store_true", help="name the missing cells and stop")
    parser.set_defaults(run=run)
    parser = compare.add_parser("report", description=_REPORT, epilog=_REPORT_EPILOG)
    parser.add_argument("folder", metavar="FOLDER", help="results: the --out of `compare run`")
    parser.add_argument("--out", metavar="FILE.html", help="default: FOLDER/report.html")
    parser.set_defaults(run=report)


def run(args: argparse.Namespace) -> int:
    """Run or list; 1 where a cell failed."""
    from next_scale.compare.cells import read_plan
    from next_scale.compare.runner import keep_plan, missing_cells, run_plan, untimed_cells

    plan, out = read_plan(args.plan), Path(args.out)
    cells = missing_cells(plan, out, args.only, args.again)
    if args.list:
        names = [cell.id for cell in cells] + [f"speed of {cell.id}" for cell in untimed_cells(plan, out, args.only)]
        print("\n".join(names) or "nothing is missing")
        return 0
    if args.only and not fnmatch.filter((cell.id for cell in plan.list_cells()), f"*{args.only}*"):
        raise UserError(f"no cell has '{args.only}' in its name; see --list")
    done = 0

    def tell(text: str) -> None:
        nonlocal done
        done += not text.startswith(("tokenizer ", "speed of "))
        print(f"[{done}/{len(cells)}] {text}", flush=True)

    keep_plan(Path(args.plan), out)
    failed = run_plan(plan, out, args.jobs, args.only, tell, args.again)
    print(f"{len(cells)} cells, {failed} failed: {out / 'results.jsonl'}")
    return int(failed > 0)


def report(args: argparse.Namespace) -> int:
    """Write the report."""
    from next_scale.compare.report import write_report

    folder = Path(args.folder)
    out = Path(args.out) if args.out else folder / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"cannot write the report {out}: end its name in .html")
    print(write_report(folder, out))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit code."""
    return run_program("next-scale", _main, argv)


def _main(argv: list[str]) -> int:
    from next_scale.joint import cli as joint

    if argv[:2] == ["joint", "fit"]:  # which has all of Lightning's options
        return joint.fit(argv[2:])
    parser = Parser(prog="next-scale", description=_PROGRAM, epilog=_PROGRAM_EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_parser(commands)
    joint.add_parser(commands)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
