"""What the ops of next_scale.kernels take on this machine, beside what PyTorch offers for the same.

    python -m recipes.benchmarks.kernels [--device cuda]

checks every implementation of every op against its definition, then times it at the sizes of VAR d16 and d30 at 256
and 512 pixels, of AAR, and of the Notes model. Beside the times stands what this machine takes for the copying and the
matrix products that the op cannot do without: its floor. Implementations that cannot run here are listed with the
reason. Written are KERNELS.md and kernels.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer

from next_scale.cli import Outputs, Parser, progress, resolve_device, run_program
from next_scale.errors import UserError, first_line
from next_scale.kernels.runtime import KernelError
from next_scale.report import markdown_table
from recipes.benchmarks.generate import describe_machine, figure
from recipes.benchmarks.kernel_cases import CASES, PLAIN, Case, Problem

SECONDS = 0.4  # of repetitions of each implementation


@dataclass
class Row:
    """An implementation of an op at one size.

    Attributes:
        floor: seconds that this machine takes for the least that must be moved and multiplied.
        moved, products: bytes and FLOPs.
        seconds: median of `repetitions`; None where it cannot run, for `reason`.
        wrong: how far it is from the definition, in the problem's own measure; None where it is not checked.
    """

    op: str
    size: str
    batch: int
    implementation: str
    floor: float
    moved: float
    products: float
    seconds: float | None = None
    repetitions: int = 0
    wrong: float | None = None
    reason: str = ""


class Floor(NamedTuple):
    """What the machine reaches: bytes a second of copying, FLOPs a second of matrix products in two precisions."""

    copy: float
    float32: float
    bfloat16: float

    @classmethod
    def measure(cls, device: torch.device) -> Floor:
        """By a copy of 256 MiB and products of 4,096 by 4,096 matrices (1,024 on CPUs)."""
        data = torch.zeros(2**26, device=device)
        to = torch.empty_like(data)
        side = 4096 if device.type == "cuda" else 1024
        found = [2 * data.nbytes / seconds_of(lambda: to.copy_(data))[0]]
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(side, side, device=device, dtype=dtype)
            found.append(2 * side**3 / seconds_of(lambda a=a: a @ a)[0])
        return cls(*found)

    def seconds(self, problem: Problem) -> float:
        """The least time of a problem: its copying or its products, whichever takes longer."""
        speed = self.bfloat16 if problem.low_precision else self.float32
        return max(problem.moved / self.copy, problem.products / speed)


def seconds_of(run: Callable[[], object]) -> tuple[float, int]:
    """Median of a run, and of how many repetitions; waits for the device."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    found = timer.blocked_autorange(min_run_time=SECONDS)
    return found.median, len(found.times) * found.number_per_run


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recipes.benchmarks.kernels", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their op or size")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--out", default=str(Path(__file__).parent), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--small", action="store_true", help="batches of one sample, to try it out")
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    device = resolve_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    logging.getLogger("torch").setLevel(logging.ERROR)  # of inductor's fallbacks
    cases = [case for case in CASES if args.only in f"{case.op} {case.size}"]
    if not cases:
        raise UserError(f"no case has {args.only!r} in it: leave --only out to see their names")
    floor = Floor.measure(device)
    rows: list[Row] = []
    with progress("measuring", len(cases)) as advance:
        for case in cases:
            rows += measure(case, floor, device, args.small)
            advance(1)
    results = {
        "machine": describe_machine(str(device)),
        "floor": floor._asdict(),
        "rows": [asdict(row) for row in rows],
    }
    page = write_page(results, rows, " ".join(["python -m recipes.benchmarks.kernels", *argv]))
    with Outputs() as outputs:
        out = outputs.folder(args.out)
        outputs.file(out / "kernels.json").write_text(json.dumps(results, indent=1) + "\n")
        outputs.file(out / "KERNELS.md").write_text(page, encoding="utf-8")
    print(page)
    wrong = [row for row in rows if row.reason.startswith("wrong")]
    if wrong:
        raise UserError(f"{len(wrong)} implementations are wrong, the first {wrong[0].implementation} of {wrong[0].op}")


def measure(case: Case, floor: Floor, device: torch.device, small: bool) -> Iterator[Row]:
    """Check and time all implementations of a case."""
    torch.manual_seed(0)
    batch = 1 if small else case.batch
    problem = case.make(device, batch)
    definition, *_ = problem.implementations.values()
    expected = definition()
    for name, run in (problem.implementations | problem.strangers).items():
        row = Row(case.op, case.size, batch, name, floor.seconds(problem), problem.moved, problem.products)
        try:
            found = run()
            if name not in problem.strangers:
                row.wrong = problem.distance(found, expected)
            if row.wrong is not None and not row.wrong <= problem.tolerance:
                row.reason = f"wrong by {row.wrong:.2g}"
            else:
                row.seconds, row.repetitions = seconds_of(run)
        except (UserError, KernelError, ImportError, RuntimeError) as error:
            row.reason = first_line(error)
        yield row


def write_page(results: dict, rows: list[Row], command: str) -> str:
    """The figures as Markdown: a table an op, a column an implementation that could run."""
    machine = "\n".join(f"- {name}: {value}" for name, value in results["machine"].items() if value is not None)
    speeds = results["floor"]
    parts = []
    for op in dict.fromkeys(row.op for row in rows):
        mine = [row for row in rows if row.op == op]
        shown = list(dict.fromkeys(row.implementation for row in mine if row.seconds is not None))
        lines = []
        for size in dict.fromkeys(row.size for row in mine):
            found = {row.implementation: row for row in mine if row.size == size}
            batch = next(iter(found.values())).batch
            times = (_cell(found.get(name), found.get(PLAIN)) for name in shown)
            lines.append((f"{size}, {batch} at once", *_facts(found), *times))
        why = dict.fromkeys(f"- {row.implementation}: {row.reason}" for row in mine if row.reason)
        table = markdown_table(["size", "floor", "the fastest's share of it", *shown], lines)
        parts.append("\n".join([f"## {op}\n", table, *(["Not measured:\n", *why] if why else [])]))
    tables = "\n\n".join(parts)
    return f"""# Kernels

`{command}`

{machine}
- copying {speeds["copy"] / 1e9:,.1f} GB/s; matrix products {speeds["float32"] / 1e12:,.2f} TFLOP/s in float32,
  {speeds["bfloat16"] / 1e12:,.2f} in bfloat16, measured beside the ops

{tables}

Medians of repetitions of at least {SECONDS} s each, in brackets how many times as fast as the plain lines in PyTorch.
"PyTorch, ours" is what CPUs run and GPUs fall back to; the definition is written to be read. An op's floor is the time
of its least traffic or of its matrix products at the machine's speeds above. Everything was compared with the
definition before it was timed, but for what draws noise of its own.
"""


def _facts(found: dict[str, Row]) -> tuple[str, str]:
    """The floor of a size, and what the fastest implementation reaches of it."""
    times = {row.seconds: row for row in found.values() if row.seconds is not None}
    row = times[min(times)]
    speed = f"{row.moved / row.seconds / 1e9:,.1f} GB/s"
    if row.products:
        speed += f", {row.products / row.seconds / 1e12:,.2f} TFLOP/s"
    return figure(1000 * row.floor, "ms"), f"{row.floor / row.seconds:.0%} ({speed})"


def _cell(row: Row | None, plain: Row | None) -> str:
    """Time, and how many times as fast as the plain lines."""
    if row is None or row.seconds is None:
        return "–"
    text = figure(1000 * row.seconds, "ms")
    return text if plain is None or not plain.seconds else f"{text} ({plain.seconds / row.seconds:.2f})"


if __name__ == "__main__":
    sys.exit(run_program("benchmark", main))
