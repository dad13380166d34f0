"""How much faster a pyramid is drawn scale by scale than token by token, on this machine.

    python -m recipes.benchmarks.orders

draws pyramids of 127, 341 and 680 tokens with a next-scale and a next-token predictor of one size, both with kept keys
and values, at batch 1 and 16; and AAR's case, a pyramid of 455 tokens in 16 steps against 750 tokens in time order, as
of a codec without a pyramid. Both draw in turns in one process, to the latent before the decoder. Weights are random,
for speed does not depend on their values. Written are ORDERS.md and orders.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from next_scale.cli import Outputs, Parser, progress, resolve_device, run_program, whole_number
from next_scale.flops import count_flops
from next_scale.packed import keep_freed_memory
from next_scale.predictors import NextScale, NextToken, Predictor
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.report import markdown_table
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule
from recipes.benchmarks.generate import describe_machine, figure, timed

CHANNELS = 32  # of the latent


class Case(NamedTuple):
    """A pyramid for next-scale prediction, and what next-token prediction draws in its place."""

    name: str
    pyramid: str
    tokens: str

    @classmethod
    def same(cls, name: str, pyramid: Iterable[int], dim: int = 1) -> Case:
        """Both draw the pyramid of these sides."""
        text = " ".join("x".join([str(side)] * dim) for side in pyramid)
        return cls(name, text, text)


CASES = (
    Case.same("127 tokens, line of 64", (1, 2, 4, 8, 16, 32, 64)),
    Case.same("341 tokens, grid of 16x16", (1, 2, 4, 8, 16), dim=2),
    Case.same("680 tokens, VAR's grid of 16x16", (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), dim=2),
    Case("AAR's 455 tokens against 750 in time order", "1 2 4 6 9 12 16 20 25 31 37 43 50 58 66 75", "750"),
)


class Side:
    """One order of one case: a predictor, and the quantizer that it draws for."""

    def __init__(self, family: type[Predictor], schedule: str, args: argparse.Namespace):
        torch.manual_seed(0)
        self.device, self.sampling = args.resolved, args.sampling
        quantizer = MultiScaleQuantizer(Schedule.parse(schedule), CHANNELS, args.codes)
        sizes = {"width": args.width, "depth": args.depth, "heads": args.heads}
        self.predictor = family.for_quantizer(quantizer, {"label": list(range(10))}, **sizes).to(self.device).eval()
        self.quantizer = quantizer.to(self.device).eval()
        self.predictor.pack()
        self.drawn = 0

    @torch.inference_mode()
    def draw(self, batch: int) -> None:
        """Draw `batch` pyramids, of new seeds at every call."""
        condition = {"label": torch.arange(batch, device=self.device) % 10}
        self.predictor.generate(self.quantizer, condition, batch, self.sampling, seeds=self.drawn)
        self.drawn += batch

    def facts(self) -> dict:
        """What does not depend on the machine: tokens, steps, and operations a sample."""
        return {
            "schedule": str(self.predictor.schedule),
            "tokens": self.predictor.schedule.length,
            "steps": self.predictor.steps(self.sampling),
            "flops": count_flops(lambda: self.draw(1)),
        }


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recipes.benchmarks.orders", description=__doc__)
    for name, default, text in (
        ("width", 256, "of the transformers"),
        ("depth", 6, "blocks of the transformers"),
        ("heads", 4, "of attention"),
        ("codes", 1024, "of the codebooks"),
        ("runs", 5, "of each figure"),
    ):
        parser.add_argument(
            f"--{name}", type=whole_number(1), default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )
    parser.add_argument(
        "--batch", type=whole_number(1), nargs="+", default=[1, 16], metavar="N", help="batch sizes (default: 1 16)"
    )
    parser.add_argument("--cfg", type=float, default=0.0, metavar="T", help="guidance (default: none)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw among the K most likely (default: all)")
    parser.add_argument("--top-p", type=float, default=0.0, metavar="P", help="of joint probability P (default: all)")
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="of torch (default: its own choice)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--out", default=str(Path(__file__).parent), metavar="FOLDER", help="default: %(default)s")
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    args.sampling = SamplingOptions(cfg=args.cfg, top_k=args.top_k, top_p=args.top_p)
    args.resolved = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    results = measure(args)
    page = write_page(results, " ".join(["python -m recipes.benchmarks.orders", *argv]))
    with Outputs() as outputs:
        out = outputs.folder(args.out)
        outputs.file(out / "orders.json").write_text(json.dumps(results, indent=1) + "\n")
        outputs.file(out / "ORDERS.md").write_text(page, encoding="utf-8")
    print(page)


def measure(args: argparse.Namespace) -> dict:
    """All figures; seconds are those of every run."""
    results = {
        "machine": describe_machine(args.device),
        "model": {"width": args.width, "depth": args.depth, "heads": args.heads, "codes": args.codes},
        "sampling": asdict(args.sampling),
        "cases": [],
    }
    keep_freed_memory()
    with progress("measuring", len(CASES) * len(args.batch) * (args.runs + 1)) as advance:
        for case in CASES:
            sides = {
                "next_scale": Side(NextScale, case.pyramid, args),
                "next_token": Side(NextToken, case.tokens, args),
            }
            found = {"name": case.name} | {name: side.facts() | {"seconds": {}} for name, side in sides.items()}
            for batch in args.batch:
                seconds = {name: [] for name in sides}
                for run in range(args.runs + 1):  # the first is a warm-up
                    for name, side in sides.items():
                        (time,) = timed(lambda side=side, batch=batch: side.draw(batch), 1, 0, side.device)
                        seconds[name] += [time.wall] if run else []
                    advance(1)
                for name, values in seconds.items():
                    found[name]["seconds"][str(batch)] = values
            results["cases"].append(found)
    return results


def speedups(case: dict, batch: str) -> list[float]:
    """Of every pair of runs that followed each other: seconds of next-token over those of next-scale."""
    slow, fast = (case[name]["seconds"][batch] for name in ("next_token", "next_scale"))
    return [a / b for a, b in zip(slow, fast, strict=True)]


def write_page(results: dict, command: str) -> str:
    """The figures as Markdown."""
    rows = []
    for case in results["cases"]:
        scale, token = case["next_scale"], case["next_token"]
        for batch, seconds in scale["seconds"].items():
            ratios = speedups(case, batch)
            rows.append((
                case["name"], batch,
                figure(statistics.median(seconds), "s"), figure(statistics.median(token["seconds"][batch]), "s"),
                f"**{statistics.median(ratios):.1f}**", f"{min(ratios):.1f} to {max(ratios):.1f}",
                f"{token['steps'] / scale['steps']:.1f} ({token['steps']} / {scale['steps']})",
                f"{token['flops'] / scale['flops']:.2f}",
            ))  # fmt: skip
    header = ["tokens", "batch", "next-scale", "next-token", "times as fast", "range"]
    header += ["ratio of steps", "ratio of operations"]
    aar = results["cases"][-1]
    measured = ", ".join(
        f"{statistics.median(speedups(aar, batch)):.1f} at batch {batch}" for batch in aar["next_scale"]["seconds"]
    )
    model, options = results["model"], results["sampling"]
    machine = "\n".join(f"- {name}: {value}" for name, value in results["machine"].items() if value is not None)
    runs = len(next(iter(aar["next_scale"]["seconds"].values())))
    return f"""# Scale by scale against token by token

`{command}`

{machine}
- transformers: width {model["width"]}, depth {model["depth"]}, {model["heads"]} heads, {model["codes"]} codes
- sampling: {", ".join(f"{name} {value}" for name, value in options.items())}

{markdown_table(header, rows)}
Medians of {runs} runs, both orders taking turns in one process, from the condition to the latent before the decoder,
with kept keys and values on both sides. The ratio is that of runs that followed each other. Samples whose draws
rounding could decide are drawn again alone, which is part of the time.

Two ratios frame the measured one. Where a step takes as long for one token as for many, as on an accelerator with room
to spare, it comes near the ratio of steps. Where arithmetic takes the time, as in large batches, it falls towards the
ratio of operations, about one on equal tokens: what is left is that a product with many rows uses a machine better
than one with a single row, for which every weight is read.

AAR's abstract (arXiv 2408.09027) states 35 times for its system against its baselines. Its step counts in one and the
same transformer give {measured} here. That is no repetition of its figure, in which codecs, models and implementations
differ too: here only the schedule and the order do, and both sides keep keys and values and run the same code.
"""


if __name__ == "__main__":
    sys.exit(run_program("benchmark", main))
