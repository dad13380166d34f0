"""How fast VAR's published transformer and autoencoder run here, and in their own code.

    python -m recipes.benchmarks.published_var --published ../VAR

takes a clone of https://github.com/FoundationVision/VAR, builds its model, fills it with random weights (speed does not
depend on their values, and nothing is downloaded), writes them as its released checkpoints are written, and loads
those here as `image-var import` does. Two processes then generate images of 256 x 256 in turns, with the sampling of
the published scores: guidance 1.5, top-k 900, top-p 0.96. Written are PUBLISHED_VAR.md and published_var.json:

- seconds from the label to the pixels, the median of the runs, and their ratio;
- the largest difference of any logit, and of any pixel, when both take the most likely code at every step; of 8-bit
  integers the logits after the same tokens;
- the peak memory of each process, its start included;
- where the time goes, by torch.profiler in a run of its own.

Without --published only this project is measured. With --int8 a third process measures it with 8-bit integers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from image_var.autoencoder import build_autoencoder
from image_var.published import SAMPLING, SIDES_256, VAE, VAR, build_generator, square_schedule
from next_scale.cli import Outputs, Parser, progress, run_program, whole_number
from next_scale.model import Generator
from next_scale.predictors import NextScale, drawing
from next_scale.published import read_weights
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.tokenizer import Tokenizer
from recipes.benchmarks.generate import describe_machine

LABEL = 207
LINEAR = ("aten::addmm", "aten::mm", "mkldnn::_linear_pointwise", "onednn::qlinear_pointwise")
ATTENTION = "scaled_dot_product"
TITLES = {"theirs": "VAR's code", "ours": "this project", "int8": "this project, --int8"}


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recipes.benchmarks.published_var", description=__doc__)
    parser.add_argument("--published", metavar="PATH", help="a clone of VAR's repository; its code is run from there")
    parser.add_argument("--depth", type=whole_number(1), default=16, help="of the transformer (default: %(default)s)")
    parser.add_argument(
        "--images", type=whole_number(1), nargs="+", default=[1, 4], metavar="N", help="batch sizes (default: 1 4)"
    )
    parser.add_argument("--runs", type=whole_number(1), default=3, metavar="N", help="of each batch (default: 3)")
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="of torch (default: its own choice)")
    parser.add_argument("--int8", action="store_true", help="also measure this project with 8-bit integers")
    parser.add_argument("--out", default=str(Path(__file__).parent), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--worker", choices=TITLES, help=argparse.SUPPRESS)  # one of the processes that are measured
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.worker:
        serve(args)
        return
    results = measure(args, argv)
    page = write_page(results, "python -m recipes.benchmarks.published_var " + " ".join(argv))
    with Outputs() as outputs:
        out = outputs.folder(args.out)
        outputs.file(out / "published_var.json").write_text(json.dumps(results, indent=1) + "\n")
        outputs.file(out / "PUBLISHED_VAR.md").write_text(page, encoding="utf-8")
    print(page)


# The models


def random_weights(model: nn.Module, random: torch.Generator) -> None:
    """Fill a published model with numbers of such sizes that every part of it has a say in the result."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if name.endswith("scale_mul_1H11"):
                parameter.fill_(math.log(4))
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * noise)
            elif parameter.dim() == 3 or "emb" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)


def build_theirs(args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """VAR's autoencoder and transformer, in its own code, with random weights."""
    sys.path.insert(0, str(Path(args.published).resolve()))
    from models import build_vae_var  # VAR's package

    vae, var = build_vae_var(
        V=4096, Cvae=32, ch=160, share_quant_resi=4, device="cpu", patch_nums=SIDES_256, num_classes=1000,
        depth=args.depth, shared_aln=False,
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    for model in (vae, var):
        random_weights(model, random)
    return vae.eval(), var.eval()


def build_ours(args: argparse.Namespace) -> Generator:
    """The same model here: from the weights that the other process wrote, or of the same sizes."""
    files = [args.weights / name for name in ("vae.pth", "var.pth")]
    if files[0].exists():
        return build_generator(read_weights(files[0], VAE), read_weights(files[1], VAR))
    schedule, width = square_schedule(SIDES_256), 64 * args.depth
    quantizer = MultiScaleQuantizer(schedule, 32, 4096, shared_codebook=True, phi_margin=1 / 12, update="gradient")
    predictor = NextScale(
        schedule, 4096, 32, {"label": list(range(1000))}, width, args.depth, heads=args.depth, qk_norm=True
    )
    return Generator(Tokenizer(build_autoencoder("vqgan"), quantizer), predictor, SAMPLING).eval()


class Theirs:
    """VAR's code: `draw` gives images, `greedy` logits too."""

    def __init__(self, args: argparse.Namespace):
        self.vae, self.var = build_theirs(args)
        torch.save(self.vae.state_dict(), args.weights / "vae.pth")
        torch.save(self.var.state_dict(), args.weights / "var.pth")

    def draw(self, count: int, seed: int, top_k: int = SAMPLING.top_k, top_p: float = SAMPLING.top_p) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        labels = torch.full((count,), LABEL)
        return self.var.autoregressive_infer_cfg(
            count, labels, g_seed=seed, cfg=SAMPLING.cfg, top_k=top_k, top_p=top_p
        )  # fmt: skip

    def greedy(self) -> tuple[Tensor, Tensor]:
        """Logits of all steps, before guidance (2, L, V), and the image."""
        steps: list[Tensor] = []
        inner = self.var.get_logits
        with patch.object(self.var, "get_logits", lambda *args: steps.append(inner(*args)) or steps[-1].clone()):
            image = self.draw(1, 0, top_k=1, top_p=0.0)
        return torch.cat(steps, 1), image

    def parts(self) -> list[tuple[object, str, str]]:
        """What is timed as a part: owner, attribute, name."""
        return [
            (self.vae, "fhat_to_img", "decoder"),
            (sys.modules[type(self.var).__module__], "sample_with_top_k_top_p_", "sampling"),
        ]


class Ours:
    """This project."""

    def __init__(self, args: argparse.Namespace):
        self.model = build_ours(args).pack(int8=args.worker == "int8")

    def draw(self, count: int, seed: int, **options: float) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        seeds = [1000 * seed + i for i in range(count)]
        condition = {"label": torch.full((count,), LABEL)}
        return (self.model.generate(condition, seeds, replace(SAMPLING, **options))[0] + 1) / 2

    def greedy(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of all steps, before guidance (2, L, V), the image, and its tokens (1, L)."""
        steps: list[Tensor] = []
        inner = self.model.predictor._logits
        options, condition = replace(SAMPLING, temperature=0.0), {"label": torch.tensor([LABEL])}
        with patch.object(self.model.predictor, "_logits", lambda *args: steps.append(inner(*args)) or steps[-1]):
            image, tokens = self.model.generate(condition, [0], options)
        return torch.cat(steps, 1), (image + 1) / 2, tokens

    def logits_after(self, tokens: Tensor) -> Tensor:
        """Logits (2, L, V), with and without the label, of every step after these tokens (1, L)."""
        predictor, inputs = self.model.predictor, self.model.tokenizer.quantizer.teacher_forcing(tokens)
        return torch.cat([predictor(inputs, {"label": torch.tensor([LABEL])}), predictor(inputs, {})])

    def parts(self) -> list[tuple[object, str, str]]:
        """What is timed as a part: owner, attribute, name."""
        sampling = [(drawing, name, "sampling") for name in ("guide", "sample")]
        return [
            (self.model.tokenizer.autoencoder, "decode", "decoder"),
            (drawing.NoiseStreams, "gumbel", "sampling"),
            *sampling,
        ]


# The process that is measured


def serve(args: argparse.Namespace) -> None:
    """Answer the commands that come as lines of JSON: build a model first, then run it as often as told."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the models print must not come between
    with torch.inference_mode():
        model = Theirs(args) if args.worker == "theirs" else Ours(args)
        print(json.dumps({}), file=replies, flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            answer = {"run": _run, "greedy": _greedy, "shares": _shares, "memory": _memory}[command.pop("do")]
            print(json.dumps(answer(model, args, **command)), file=replies, flush=True)


def _run(model: Theirs | Ours, args: argparse.Namespace, count: int, seed: int) -> dict:
    start, busy = time.perf_counter(), time.process_time()
    model.draw(count, seed)
    return {"wall": time.perf_counter() - start, "processor": time.process_time() - busy}


def _greedy(model: Theirs | Ours, args: argparse.Namespace) -> dict:
    if args.worker == "int8":
        _, _, tokens = torch.load(args.weights / "greedy_ours.pth", weights_only=True)
        made = (model.logits_after(tokens),)
    else:
        made = model.greedy()
    torch.save(made, args.weights / f"greedy_{args.worker}.pth")
    return {}


def _shares(model: Theirs | Ours, args: argparse.Namespace) -> dict:
    """Shares of one image's time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled, record_function("everything"):
        _with_parts(model.parts(), lambda: model.draw(1, 1))
    events = {event.key: event for event in profiled.key_averages()}
    total = events["everything"].cpu_time_total
    shares = {
        "linear layers": sum(events[name].self_cpu_time_total for name in LINEAR if name in events),
        "attention": sum(event.self_cpu_time_total for name, event in events.items() if ATTENTION in name),
        "decoder": events["decoder"].cpu_time_total,
        "sampling": events["sampling"].cpu_time_total,
    }
    shares["everything else"] = max(0.0, total - sum(shares.values()))
    return {name: value / total for name, value in shares.items()}


def _with_parts(parts: list[tuple[object, str, str]], run: Callable[[], object]) -> None:
    """Run with the calls of some functions recorded under the names of their parts."""
    if not parts:
        run()
        return
    owner, attribute, name = parts[0]
    inner = getattr(owner, attribute)

    def recorded(*args, **kwargs):
        with record_function(name):
            return inner(*args, **kwargs)

    with patch.object(owner, attribute, recorded):
        _with_parts(parts[1:], run)


def _memory(model: Theirs | Ours, args: argparse.Namespace) -> dict:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"GiB": peak / 2 ** (30 if sys.platform == "darwin" else 20)}  # bytes on macOS, else KiB


class Worker:
    """The other end of :func:`serve`."""

    def __init__(self, name: str, argv: list[str], weights: Path):
        command = [sys.executable, "-m", "recipes.benchmarks.published_var", *argv]
        self.process = subprocess.Popen(
            [*command, "--worker", name, "--weights", str(weights)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._answer()

    def ask(self, do: str, **options: int) -> dict:
        """Let it do something, and wait for the answer."""
        self.process.stdin.write(json.dumps({"do": do, **options}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(self.process.wait() or 1)  # it has said why
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait()


# The measurement


def measure(args: argparse.Namespace, argv: list[str]) -> dict:
    """All figures."""
    names = (["theirs"] if args.published else []) + ["ours"] + (["int8"] if args.int8 else [])
    if args.published:
        argv = [*argv, "--published", str(Path(args.published).resolve())]
    results = {"machine": describe_machine("cpu"), "depth": args.depth, "runs": args.runs}
    results |= {name: {"seconds": {}, "processor": {}} for name in names}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder, progress("measuring", args.runs * len(args.images)) as advance:
        weights = Path(folder)
        try:
            for name in names:
                workers[name] = Worker(name, argv, weights)
            for worker in workers.values():
                worker.ask("greedy")  # the first run, too, of which no time counts
            results["differences"] = differences(weights, names)
            for count in args.images:
                runs = {name: [] for name in names}
                for seed in range(args.runs):
                    for name, worker in workers.items():
                        runs[name].append(worker.ask("run", count=count, seed=seed))
                    advance(1)
                for name in names:
                    for key, unit in (("seconds", "wall"), ("processor", "processor")):
                        results[name][key][count] = statistics.median(run[unit] for run in runs[name])
                    results[name].setdefault("GiB", {})[count] = workers[name].ask("memory")["GiB"]
            for name, worker in workers.items():
                results[name]["shares"] = worker.ask("shares")
        finally:
            for worker in workers.values():
                worker.close()
    return results


def differences(weights: Path, names: list[str]) -> dict:
    """Largest differences of logits and pixels; of 8-bit integers also how often the most likely code stays."""
    made = {name: torch.load(weights / f"greedy_{name}.pth", weights_only=True) for name in names}
    ours, image, _ = made["ours"]
    found = {"spread of the logits": ours.std().item()}
    if "theirs" in made:
        logits, picture = made["theirs"]
        found["theirs"] = {
            "logits": (ours - logits).abs().max().item(),
            "pixels": (image - picture).abs().max().item(),
        }
    if "int8" in made:
        (logits,) = made["int8"]
        found["int8"] = {
            "logits": (ours - logits).abs().max().item(),
            "root mean square": (ours - logits).square().mean().sqrt().item(),
            "same code": (ours.argmax(-1) == logits.argmax(-1)).float().mean().item(),
        }
    return found


def write_page(results: dict, command: str) -> str:
    """The figures as Markdown."""
    names = [name for name in TITLES if name in results]
    first = results[names[0]]
    machine = "\n".join(f"- {name}: {value}" for name, value in results["machine"].items() if value is not None)
    lines = [
        "| | images | seconds | processor seconds | times as fast | peak memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for count in first["seconds"]:
        for name in names:
            own = results[name]
            ratio = f"{first['seconds'][count] / own['seconds'][count]:.2f}" if name != names[0] else ""
            lines.append(
                f"| {TITLES[name]} | {count} | {own['seconds'][count]:.2f} | {own['processor'][count]:.2f} | {ratio} "
                f"| {own['GiB'][count]:.2f} GiB |"
            )
    shares = ["| one image | " + " | ".join(TITLES[name] for name in names) + " |", "|---|" + "---:|" * len(names)]
    for part in first["shares"]:
        shares.append(f"| {part} | " + " | ".join(f"{results[name]['shares'][part]:.0%}" for name in names) + " |")
    text = f"""# VAR-d{results["depth"]} on this machine

`{command.strip()}`

{machine}

{chr(10).join(lines)}

Medians of {results["runs"]} runs each, the processes taking turns, from the label to images of 256 x 256 with
guidance {SAMPLING.cfg}, top-k {SAMPLING.top_k} and top-p {SAMPLING.top_p}. Peak memory is that of the whole process up
to there.

{chr(10).join(shares)}
"""
    found = results["differences"]
    if "theirs" in found:
        text += f"""
When both take the most likely code at every step, logits differ by at most {found["theirs"]["logits"]:.1e} (they spread
by {found["spread of the logits"]:.2f}), and pixels from 0 to 1 by {found["theirs"]["pixels"]:.1e}.
"""
    if "int8" in found:
        text += f"""
With 8-bit integers, after the same tokens, logits differ by at most {found["int8"]["logits"]:.1e} and by
{found["int8"]["root mean square"]:.1e} in the root mean square (they spread by {found["spread of the logits"]:.2f});
the most likely code is the same in {found["int8"]["same code"]:.1%}.
"""
    return text


if __name__ == "__main__":
    sys.exit(run_program("benchmark", main))
