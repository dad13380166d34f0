"""What the kernels take on every supported GPU: registers, shared memory and spills, compiled here without one.

``python -m next_scale.kernels``; exits with code 1 where a kernel spills registers.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from next_scale.cli import progress
from next_scale.errors import first_line
from next_scale.kernels.registry import TARGETS, sources
from next_scale.kernels.runtime import KernelError, compile_source


def main(argv: list[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m next_scale.kernels",
        description="Compile every CUDA kernel and list what it takes: registers a thread, bytes of shared memory a "
        "block, bytes spilled. Needs PyTorch's CUDA build and no GPU.",
        epilog="Example: python -m next_scale.kernels --target sm_90",
    )
    parser.add_argument("--target", action="append", help=f"architecture, may be repeated; default {' '.join(TARGETS)}")
    targets = parser.parse_args(argv).target or TARGETS
    table = Table("kernel", "made for", "target", "registers", "shared", "spilled")
    spilled = 0
    jobs = [(label, source, target) for label, source in sources() for target in targets]
    with progress("compile", len(jobs)) as advance:
        for label, source, target in jobs:
            try:
                resources = compile_source(source, target).resources()
            except KernelError as error:
                print(f"python -m next_scale.kernels: error: {first_line(error)}", file=sys.stderr)
                return 2
            for name, used in sorted(resources.items()):
                table.add_row(name, label, target, *map(str, (used.registers, used.shared, used.spilled)))
                spilled += used.spilled
            advance(1)
    Console(width=100).print(table)
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
