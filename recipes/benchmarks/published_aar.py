"""How fast AAR and SAT run here at the sizes that were released.

    python -m recipes.benchmarks.published_aar

writes random weights (speed does not depend on their values, and nothing is downloaded) in the layout of the released
checkpoints: both tokenizers, 128 and 1,024 channels of the latent, and the transformer of 16 blocks; imports them as
`audio-var import` does; passes one second through each tokenizer and back; and generates clips of one second with the
published sampling: guidance 4, top-k 200, top-p 0.95. Each figure is the median of the runs of a process of its own,
whose peak memory is given, its start included. Written are PUBLISHED_AAR.md and published_aar.json.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from audio_var.published import AAR, FIELD, LENGTHS, SAT, build_generator, build_tokenizer, schedule_of
from next_scale.checkpoint import from_pretrained, save_pretrained
from next_scale.cli import Outputs, Parser, progress, run_program, whole_number
from next_scale.published import read_weights
from recipes.benchmarks.generate import describe_machine

TOKENIZERS = {"SAT, latent of 128": (128, 128), "SAT, latent of 1,024": (1024, 64)}  # latent, pyramid: channels
GENERATOR = "AAR with SAT, latent of 128"
DEPTH, WIDTH, HEADS, EMBEDDING, CODES = 16, 1024, 16, 512, 1024


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recipes.benchmarks.published_aar", description=__doc__)
    parser.add_argument(
        "--clips", type=whole_number(1), nargs="+", default=[1, 4], metavar="N", help="batch sizes (default: 1 4)"
    )
    parser.add_argument("--runs", type=whole_number(1), default=5, metavar="N", help="of each figure (default: 5)")
    parser.add_argument(
        "--depth", type=whole_number(1), default=DEPTH, help="of the transformer (default: %(default)s)"
    )
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="of torch (default: its own choice)")
    parser.add_argument("--out", default=str(Path(__file__).parent), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the model that this process measures
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.worker:
        print(json.dumps(work(args)))
        return
    results = measure(args, argv)
    page = write_page(results, " ".join(["python -m recipes.benchmarks.published_aar", *argv]))
    with Outputs() as outputs:
        out = outputs.folder(args.out)
        outputs.file(out / "published_aar.json").write_text(json.dumps(results, indent=1) + "\n")
        outputs.file(out / "PUBLISHED_AAR.md").write_text(page, encoding="utf-8")
    print(page)


# Weights in the released layout


def sat_weights(dimension: int, channels: int) -> dict[str, Tensor]:
    """State dict of a tokenizer."""
    from encodec.modules import SEANetDecoder, SEANetEncoder

    state = {}
    for part, kind in (("encoder", SEANetEncoder), ("decoder", SEANetDecoder)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module = kind(dimension=dimension, n_filters=32, ratios=[8, 5, 4, 2], norm="weight_norm", lstm=2)
        state |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    quantizer = {}
    if channels != dimension:
        quantizer |= _linear("project_in", channels, dimension) | _linear("project_out", dimension, channels)
    for i in range(6):
        phi = f"quant_resi.qresi_ls.{i}"
        quantizer[f"{phi}.weight"] = torch.randn(channels, channels, 9) / math.sqrt(9 * channels)
        quantizer[f"{phi}.bias"] = torch.zeros(channels)
    for k in range(len(LENGTHS)):
        embed = 0.5 * torch.randn(CODES, channels)
        book = {"inited": torch.ones(1), "cluster_size": torch.ones(CODES), "embed": embed, "embed_avg": embed}
        quantizer |= {f"layers.{k}._codebook.{name}": tensor for name, tensor in book.items()}
    return state | {f"quantizer.vq.{name}": tensor for name, tensor in quantizer.items()}


def aar_weights(depth: int, channels: int) -> dict[str, Tensor]:
    """State dict of a transformer over pyramids of so many channels."""
    length = sum(LENGTHS)
    level = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    state = {
        "pos_start": 0.3 * torch.randn(1, 1, WIDTH),
        "pos_1LC": 0.3 * torch.randn(1, length, WIDTH),
        "uncond_embedding": torch.randn(1, EMBEDDING) / math.sqrt(EMBEDDING),
        "lvl_1L": level[None],
        "attn_bias_for_masking": torch.where(level[:, None] >= level, 0.0, -math.inf)[None, None],
        "lvl_embed.weight": 0.3 * torch.randn(len(LENGTHS), WIDTH),
        **_linear("word_embed", WIDTH, channels),
        **_linear("class_emb.fc1", WIDTH, EMBEDDING, bias=False),
        **_linear("class_emb.fc2", WIDTH, WIDTH, bias=False),
        **_linear("head_nm.ada_lin.1", 2 * WIDTH, WIDTH),
        **_linear("head", CODES, WIDTH),
    }
    for i in range(depth):
        block = {
            "attn.scale_mul_1H11": torch.full((1, HEADS, 1, 1), math.log(4)),
            **{f"attn.{name}": torch.zeros(WIDTH) for name in ("q_bias", "v_bias", "zero_k_bias")},
            **_linear("attn.mat_qkv", 3 * WIDTH, WIDTH, bias=False),
            **_linear("attn.proj", WIDTH, WIDTH),
            **_linear("ffn.fc1", 4 * WIDTH, WIDTH),
            **_linear("ffn.fc2", WIDTH, 4 * WIDTH),
            **_linear("ada_lin.1", 6 * WIDTH, WIDTH),
        }
        state |= {f"blocks.{i}.{name}": tensor for name, tensor in block.items()}
    return state


def _linear(name: str, out: int, inside: int, bias: bool = True) -> dict[str, Tensor]:
    weight = {f"{name}.weight": torch.randn(out, inside) / math.sqrt(inside)}
    return weight | ({f"{name}.bias": torch.zeros(out)} if bias else {})


# Measuring


def measure(args: argparse.Namespace, argv: list[str]) -> dict:
    """Write the weights, measure each model in a process of its own, and gather the figures."""
    results = {"machine": describe_machine("cpu"), "runs": args.runs, "models": {}}
    with tempfile.TemporaryDirectory() as scratch, progress("measuring", len(TOKENIZERS) + 1) as advance:
        torch.manual_seed(0)
        torch.save(aar_weights(args.depth, 128), Path(scratch, "aar.pth"))
        for name in (*TOKENIZERS, GENERATOR):
            torch.save(sat_weights(*TOKENIZERS.get(name, (128, 128))), Path(scratch, "sat.pth"))
            command = [sys.executable, "-m", "recipes.benchmarks.published_aar", *argv]
            done = subprocess.run(
                [*command, "--worker", name, "--weights", scratch], check=True, stdout=subprocess.PIPE, text=True
            )
            results["models"][name] = json.loads(done.stdout)
            advance(1)
    return results


def work(args: argparse.Namespace) -> dict:
    """What one process finds: seconds of the import, of loading, and of every run."""
    sat = read_weights(args.weights / "sat.pth", SAT)
    start = time.perf_counter()
    folder = args.weights / "imported"
    if args.worker in TOKENIZERS:
        model = build_tokenizer(sat, schedule_of(sat))
    else:
        model = build_generator(sat, read_weights(args.weights / "aar.pth", AAR))
    save_pretrained(model, folder)
    found = {"import": time.perf_counter() - start, "parameters": sum(p.numel() for p in model.parameters())}
    del model, sat
    start = time.perf_counter()
    model = from_pretrained(folder)
    if args.worker in TOKENIZERS:
        found["load"] = time.perf_counter() - start
        second = torch.randn(1, 1, 24000) / 10
        tokens = model.encode(second)
        found["encode"] = _median(args.runs, lambda: model.encode(second))
        found["decode"] = _median(args.runs, lambda: model.decode(tokens))
    else:
        found["parameters_transformer"] = sum(p.numel() for p in model.predictor.parameters())
        model.pack()
        found["load"] = time.perf_counter() - start
        for clips in args.clips:
            embedding = torch.nn.functional.normalize(torch.randn(clips, EMBEDDING), dim=-1)
            found[f"generate_{clips}"] = _median(
                args.runs, lambda e=embedding, n=clips: model.generate({FIELD: e}, range(n))
            )
    found["peak_memory"] = _peak_memory()
    return found


def _peak_memory() -> int:
    """Bytes that this process held at most; on Linux without what the one that started it held, which rusage counts."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _median(runs: int, call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def write_page(results: dict, command: str) -> str:
    """The figures as Markdown."""
    lines = ["# AAR and SAT on this machine", "", f"`{command}`", ""]
    lines += [f"- {name}: {value}" for name, value in results["machine"].items()]
    lines += ["", "One second of audio at 24 kHz is 455 tokens in 16 scales.", ""]
    lines += ["| | parameters | import | load | work | seconds | real-time factor | peak memory |",
              "|---|---:|---:|---:|---|---:|---:|---:|"]  # fmt: skip
    for name, found in results["models"].items():
        works = {"encode": "encode 1 s", "decode": "decode 1 s"}
        works |= {key: f"generate {key.split('_')[1]} x 1 s" for key in found if key.startswith("generate_")}
        for key in (key for key in works if key in found):
            clips = int(key.split("_")[1]) if "_" in key else 1
            lines.append(
                f"| {name} | {found['parameters'] / 1e6:.1f} M | {found['import']:.1f} s | {found['load']:.1f} s "
                f"| {works[key]} | {found[key]:.2f} | {found[key] / clips:.2f} "
                f"| {found['peak_memory'] / 2**30:.2f} GiB |"
            )
    transformer = results["models"][GENERATOR]["parameters_transformer"]
    lines += [
        "",
        f"The transformer alone has {transformer / 1e6:.1f} M parameters; codebooks are buffers and not counted.",
        "Import: from the released layout to a checkpoint of this project. Load: from that checkpoint, weights",
        f"arranged for generation. Seconds: medians of {results['runs']} runs after one more. Real-time factor:",
        "seconds of work a second of audio, guidance and decoding included.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_program("benchmark", main))
