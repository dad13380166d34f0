"""How fast the audio model is on this machine: latency, throughput, cold start, and training.

    python -m recipes.benchmarks.generate --train

measures the shipped model (another: --checkpoint PATH) and writes results.json and RESULTS.md. Times are medians of
repeated runs after warm-up, on the wall clock; whatever else the machine does meanwhile counts, so its load average is
written down too.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
import yaml

from audio_var.cli.models import checkpoint_path, open_generator
from audio_var.objective import AudioObjective
from next_scale import sampling as sampling_module
from next_scale.cli import Outputs, Parser, resolve_device, run_program, sample_seed, whole_number
from next_scale.model import Generator, fingerprint
from next_scale.predictors import drawing
from next_scale.report import markdown_table

RECIPES = Path(__file__).parents[1] / "audio_notes"
BATCH = 16
SECONDS = 25.0  # a measurement stops repeating after so long, however many runs it has


@dataclass
class Measure:
    """One figure: the median of `runs` runs, the least and the greatest. A target is a limit on the median.

    `processor` is the median of the processor seconds that a run took, over all threads of this process: on a busy
    machine it tells how long a run would take on a quiet one.
    """

    name: str
    unit: str
    median: float
    least: float
    greatest: float
    runs: int
    processor: float | None = None
    target: float | None = None
    more_is_better: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.median >= self.target if self.more_is_better else self.median <= self.target


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recipes.benchmarks.generate", description=__doc__)
    parser.add_argument("--checkpoint", metavar="PATH", help="of a generator (default: the shipped one)")
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="of torch (default: its own choice)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--train", action="store_true", help="also measure training of predictor and tokenizer")
    parser.add_argument("--out", default=str(Path(__file__).parent), metavar="FOLDER", help="default: %(default)s")
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = describe_machine(args.device)
    began = time.perf_counter()
    model = open_generator(args.checkpoint, args.device)
    loading = time.perf_counter() - began
    device = resolve_device(args.device)

    bench = Bench(model, device)
    seconds = bench.seconds
    measures = [
        Measure("loading the checkpoint", "s", loading, loading, loading, 1),
        bench.generate("one clip, batch 1, after loading", 1, runs=15, target=0.3),
        bench.generate(f"batch {BATCH}, seconds of audio a second", BATCH, runs=7, target=15.0, real_time=True),
        cold_start(args.checkpoint, args.device, args.threads),
    ]
    shares = {batch: bench.shares(batch, runs) for batch, runs in ((1, 8), (BATCH, 2))}
    if args.train:
        measures += [train_predictor(model, device), train_tokenizer(model, device)]

    results = {
        "machine": machine,
        "model": {
            "tokenizer": fingerprint(model.tokenizer),
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": seconds,
            "sampling": asdict(model.sampling),
        },
        "measures": [asdict(measure) | {"met": measure.met} for measure in measures],
        "shares": shares,
    }
    command = "python -m recipes.benchmarks.generate " + " ".join(argv)
    with Outputs() as outputs:
        out = outputs.folder(args.out)
        outputs.file(out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        page = write_page(results, measures, command.strip())
        outputs.file(out / "RESULTS.md").write_text(page, encoding="utf-8")
    for measure in measures:
        print(f"{measure.name}: {figure(measure.median, measure.unit)}")


def describe_machine(device: str) -> dict:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {
        "processor": model,
        "cores": os.cpu_count(),
        "usable cores": usable,
        "threads of torch": torch.get_num_threads(),
        "load average before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
    }
    if device.startswith("cuda"):
        machine["GPU"] = torch.cuda.get_device_name(device)
    return machine


class Run(NamedTuple):
    """Seconds on the wall clock, and of the processor."""

    wall: float
    processor: float


def timed(run: Callable[[], object], runs: int, warmup: int, device: torch.device) -> list[Run]:
    """Times of each of `runs` runs, fewer where they take long, after `warmup` that do not count."""
    times: list[Run] = []
    began = time.perf_counter()
    for number in range(-warmup, runs):
        start, busy = time.perf_counter(), time.process_time()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 0:
            times.append(Run(time.perf_counter() - start, time.process_time() - busy))
            if time.perf_counter() - began > SECONDS and len(times) > 1:
                break
    return times


def summary(name: str, unit: str, times: list[Run], amount: float | None = None, **options) -> Measure:
    """Seconds a run; or, with an `amount` of something that a run makes, how much of it comes out in a second."""
    values = [time.wall if amount is None else amount / time.wall for time in times]
    processor = statistics.median(time.processor for time in times)
    return Measure(
        name, unit, statistics.median(values), min(values), max(values), len(values), processor,
        more_is_better=amount is not None, **options,
    )  # fmt: skip


class Bench:
    """Generation with a loaded model: every run has new seeds and conditions, and ends with audio on the CPU."""

    def __init__(self, model: Generator, device: torch.device):
        self.model, self.device = model, device
        codec, grid = model.tokenizer.autoencoder, model.predictor.schedule.grid
        self.seconds = grid[0] * codec.hop / codec.sample_rate
        self.drawn = 0

    def run(self, batch: int) -> None:
        """Generate `batch` clips."""
        random = torch.Generator().manual_seed(self.drawn)
        condition = {
            name: torch.randint(len(values), (batch,), generator=random)
            for name, values in self.model.condition_spec.items()
        }
        seeds = [sample_seed(1, self.drawn + i) for i in range(batch)]
        self.drawn += batch
        self.model.generate(condition, seeds)[0].cpu()

    def generate(self, name: str, batch: int, runs: int, target: float, real_time: bool = False) -> Measure:
        """Seconds a batch takes, or how many seconds of audio come out in a second."""
        times = timed(functools.partial(self.run, batch), runs, 2, self.device)
        if real_time:
            return summary(name, "x", times, batch * self.seconds, target=target)
        return summary(name, "s", times, target=target)

    def shares(self, batch: int, runs: int) -> dict[str, float]:
        """Where the time of generation goes: mean milliseconds a batch, by part."""
        times: dict[str, float] = {}
        with ExitStack() as stack:
            for name, owner, attribute in self._parts():
                stack.enter_context(self._watched(times, name, owner, attribute))
            runs_done = timed(functools.partial(self.run, batch), runs, 0, self.device)
        total, count = sum(run.wall for run in runs_done), len(runs_done)
        parts = {name: 1000 * seconds / count for name, seconds in times.items()}
        return parts | {"everything else": 1000 * total / count - sum(parts.values())}

    def _parts(self) -> Iterator[tuple[str, object, str]]:
        tokenizer = self.model.tokenizer
        yield "transformer", self.model.predictor.transformer, "forward"
        yield "noise", sampling_module.NoiseStreams, "gumbel"
        yield "guidance", drawing, "guide"
        yield "drawing", drawing, "sample"
        yield "quantizer, between scales", tokenizer.quantizer, "step"
        yield "quantizer, last sum", tokenizer.quantizer, "decode"
        codec = tokenizer.autoencoder
        if hasattr(codec, "decode_spectrum"):
            yield "codec, network", codec, "decode_spectrum"
            yield "codec, phase and inverse STFT", codec, "synthesize"
        else:
            yield "codec", codec, "decode"

    @contextmanager
    def _watched(self, times: dict[str, float], name: str, owner: object, attribute: str) -> Iterator[None]:
        """Add up in times[name] what calls of owner.attribute take."""
        original = getattr(owner, attribute)

        @functools.wraps(original)
        def watched(*args, **kwargs):
            self._wait()
            start = time.perf_counter()
            result = original(*args, **kwargs)
            self._wait()
            times[name] = times.get(name, 0.0) + time.perf_counter() - start
            return result

        with patch.object(owner, attribute, watched):
            yield

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def cold_start(checkpoint: str | None, device: str, threads: int | None) -> Measure:
    """Seconds of a whole `audio-var generate` process, from its start to its exit."""
    command = [sys.executable, "-m", "audio_var", "generate", "--device", device]
    command += ["--checkpoint", str(Path(checkpoint_path(checkpoint)).resolve())]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with tempfile.TemporaryDirectory() as folder:
        run = functools.partial(
            subprocess.run,
            [*command, "--out", folder],
            check=True,
            stdout=subprocess.DEVNULL,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        times = timed(run, 5, 1, torch.device("cpu"))
    measure = summary("cold start: a whole `audio-var generate`", "s", times, target=10.0)
    measure.processor = None  # it was another process
    return measure


def _recipe(name: str) -> dict:
    return yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))


def train_predictor(model: Generator, device: torch.device) -> Measure:
    """Tokens a second of predictor training: forward, backward, optimizer, on random tokens of the recipe's batch."""
    batch = _recipe("next_scale.yaml")["data"]["batch_size"]
    predictor, quantizer = copy.deepcopy(model.predictor).train(), model.tokenizer.quantizer
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=1e-5)
    length = predictor.schedule.length
    tokens = torch.randint(predictor.codebook_size, (batch, length), device=device)
    condition = {
        name: torch.randint(len(values), (batch,), device=device) for name, values in model.condition_spec.items()
    }

    def step() -> None:
        inputs = quantizer.teacher_forcing(tokens)
        predictor.loss(tokens, inputs, condition).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return summary(f"training the predictor, batch {batch}", "tokens/s", timed(step, 6, 1, device), batch * length)


def train_tokenizer(model: Generator, device: torch.device) -> Measure:
    """Steps a second of tokenizer training with the recipe's objective and batch, on noise."""
    recipe = _recipe("tokenizer.yaml")
    batch = recipe["data"]["batch_size"]
    tokenizer = copy.deepcopy(model.tokenizer).train()
    codec = tokenizer.autoencoder
    weights = recipe["model"]["objective"]["init_args"]
    fitting = {"sample_rate": codec.sample_rate} | ({"fft_size": codec.fft_size} if hasattr(codec, "fft_size") else {})
    objective = AudioObjective(**weights | fitting).to(device)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-5)
    samples = tokenizer.quantizer.schedule.grid[0] * codec.hop
    clips = 0.1 * torch.randn(batch, 1, samples, device=device)

    def step() -> None:
        out = tokenizer.quantizer(codec.encode(clips))
        loss, _ = objective(codec, clips, out.quantized)
        (loss + out.loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    return summary(f"training the tokenizer, batch {batch}", "steps/s", timed(step, 8, 2, device), 1)


def figure(value: float, unit: str) -> str:
    """``0.165 s``, ``17.3 x``, ``2,540 tokens/s``."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f} {unit}"


def write_page(results: dict, measures: list[Measure], command: str) -> str:
    """The results as Markdown."""
    machine = "\n".join(f"- {name}: {value}" for name, value in results["machine"].items() if value is not None)
    rows = []
    for measure in measures:
        target = ""
        if measure.target is not None:
            target = f"{'at least' if measure.more_is_better else 'under'} {measure.target:g} {measure.unit}"
        spread = f"{figure(measure.least, '')}to {figure(measure.greatest, '')}"
        met = {None: "", True: "yes", False: "no"}[measure.met]
        busy = "" if measure.processor is None else figure(measure.processor, "s")
        median = figure(measure.median, measure.unit)
        rows.append((measure.name, median, spread.strip(), measure.runs, busy, target, met))
    table = markdown_table(("", "median", "range", "runs", "processor time a run", "target", "met"), rows)
    shares = results["shares"]
    totals = {batch: sum(parts.values()) for batch, parts in shares.items()}
    names = list(dict.fromkeys(name for parts in shares.values() for name in parts))
    lines = [
        (name, *(f"{parts.get(name, 0):,.1f} ms, {parts.get(name, 0) / totals[batch]:.0%}"
                 for batch, parts in shares.items()))
        for name in names
    ]  # fmt: skip
    parts = markdown_table(("", *(f"batch {batch}" for batch in shares)), lines)
    model = results["model"]
    sampling = ", ".join(f"{name} {value}" for name, value in model["sampling"].items())
    return f"""# Speed

`{command}`

{machine}
- model: {model["parameters"] / 1e6:.1f} million parameters, clips of {model["seconds"]:.3f} s; {sampling}

{table}
Medians of repeated runs after warm-up, on the wall clock; processor time is summed over threads. Training is forward,
backward and optimizer, without logging.

## Where the time of generation goes

{parts}
Samples whose draws rounding could decide are drawn again alone; their time is in these parts.
"""


if __name__ == "__main__":
    sys.exit(run_program("benchmark", main))
