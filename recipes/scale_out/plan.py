"""What a training on many GPUs would take: memory, tokens a second, days. A simulation: nothing of it has been run.

Parameters, operations and the tensors kept for the backward pass are counted on the model itself, built without memory
(PyTorch's meta device); the rest is arithmetic with the assumptions that the page states.

python -m recipes.scale_out.plan --params 2B --gpus 64 --out recipes/scale_out/PLAN.md
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from next_scale.cli import Parser, run_program, whole_number
from next_scale.errors import UserError
from next_scale.files import write_whole
from next_scale.flops import count_flops
from next_scale.kernels.prefix_attention import grouped
from next_scale.loading import without_weights
from next_scale.predictors import NextScale
from next_scale.report import markdown_table
from next_scale.sharding import units

FLOAT, HALF = 4, 2  # bytes
SPEC = {"label": [f"class {i}" for i in range(100)]}


# Counting


@dataclass
class Counts:
    """What a predictor takes, for one sample where nothing else is said.

    Attributes:
        parameters: in all. unit: of the largest part that is gathered in one go. rest: of what is in no such part.
        length: tokens a sample.
        forward, step: operations of the forward pass, and of it and the backward pass.
        kept, kept_checkpointing: bytes kept for the backward pass, without and with checkpointing of the blocks.
        block: bytes that one block keeps while it is computed again.
        logits: bytes of the logits in float32.
    """

    parameters: int
    unit: int
    rest: int
    length: int
    forward: float
    step: float
    kept: int
    kept_checkpointing: int
    block: int
    logits: int


def build(width: int, depth: int, schedule: str, codes: int, channels: int) -> NextScale:
    """A predictor without memory, with heads of 64."""
    with without_weights():
        model = NextScale(
            schedule, codes, channels, SPEC, width=width, depth=depth, heads=max(1, width // 64), qk_norm=True
        )
    return model.to("meta")


def for_size(parameters: float, schedule: str, codes: int, channels: int) -> NextScale:
    """The predictor nearest to so many parameters by VAR's rule (arXiv 2404.02905, section 4.1): width 64 a block."""
    depth = max(1, round((parameters / (18 * 64**2)) ** (1 / 3)))  # 18 width^2 a block, its modulation included
    near = [build(64 * d, d, schedule, codes, channels) for d in (depth - 1, depth, depth + 1) if d > 0]
    return min(near, key=lambda model: abs(size(model) - parameters))


def size(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


class _Attention(torch.autograd.Function):
    """Keeps what flash attention keeps (arXiv 2205.14135): queries, keys, values, output, and a number a query."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _Mixed(TorchFunctionMode):
    """bf16 products as autocast makes them, which does not know the meta device."""

    def __torch_function__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        if function in (F.linear, torch.matmul, Tensor.__matmul__, Tensor.matmul):
            args = tuple(part.bfloat16() if isinstance(part, Tensor) else part for part in args)
        return function(*args, **(kwargs or {}))


@contextmanager
def _counted_attention() -> Iterator[None]:
    def attend(q, k, v, mask=None, scale=None, dropout=0.0, causal=False) -> Tensor:
        return _Attention.apply(q, k, v)

    with mock.patch.object(grouped, "attend", attend):
        yield


def batch_of(model: NextScale, samples: int, device: str = "meta") -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Tokens, inputs and condition of so many samples."""
    length, first = model.schedule.length, model.schedule.counts[0]
    tokens = torch.zeros(samples, length, dtype=torch.int64, device=device)
    inputs = torch.zeros(samples, length - first, model.latent_channels, device=device)
    return tokens, inputs, {"label": torch.zeros(samples, dtype=torch.int64, device=device)}


def kept_bytes(model: NextScale, samples: int, checkpointing: bool, device: str = "meta") -> int:
    """Bytes of the tensors that a training step keeps for the backward pass, the weights left out."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, int] = {}
    alive = []  # else an address could be that of two tensors

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
        return tensor

    for block in model.transformer.blocks:
        block.checkpointing = checkpointing
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.train().loss(*batch_of(model, samples, device)).loss
    for block in model.transformer.blocks:
        block.checkpointing = False
    del loss
    return sum(found.values())


def count(model: NextScale, mixed: bool = True) -> Counts:
    """Count on a model that :func:`build` made.

    Args:
        mixed: bf16 products.
    """
    few = build(model.transformer.width, model.transformer.depth + 1, str(model.schedule), model.codebook_size,
                model.latent_channels)  # fmt: skip

    def kept(of: NextScale, checkpointing: bool) -> int:
        # of two samples less one: what is kept once, such as weights in bf16, is not a sample's
        with _counted_attention():
            if not mixed:
                return kept_bytes(of, 2, checkpointing) - kept_bytes(of, 1, checkpointing)
            with _Mixed():
                return kept_bytes(of, 2, checkpointing) - kept_bytes(of, 1, checkpointing)

    parts = [size(unit) for unit in units(model)]
    tokens, inputs, condition = batch_of(model, 1)
    with torch.no_grad():
        forward = count_flops(lambda: model.loss(tokens, inputs, condition))
    plain, checkpointed = kept(model, False), kept(model, True)
    return Counts(
        parameters=size(model),
        unit=max(parts),
        rest=size(model) - sum(parts),
        length=model.schedule.length,
        forward=forward,
        step=count_flops(lambda: model.loss(tokens, inputs, condition)),
        kept=plain,
        kept_checkpointing=checkpointed,
        block=kept(few, False) - plain,
        logits=FLOAT * model.schedule.length * model.codebook_size,
    )


# Planning


@dataclass
class Assumed:
    """What is taken for granted.

    Attributes:
        peak: operations a second of a GPU. utilisation: share of it that is reached.
        memory: of a GPU, in GB. spare: how much of it must stay free.
        bandwidth: GB a second from a GPU to those of other nodes.
    """

    peak: float = 989e12
    utilisation: float = 0.4
    memory: float = 80.0
    bandwidth: float = 50.0
    spare: float = 8.0


@dataclass
class Planned:
    """A plan for one number of samples a GPU: bytes by what takes them, and seconds a step."""

    memory: dict[str, float]
    compute: float
    exchange: float

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        """Of a step, where the exchange goes on beside the computation."""
        return max(self.compute, self.exchange)


def plan(counts: Counts, gpus: int, samples: int, checkpointing: bool, assumed: Assumed, mixed: bool = True) -> Planned:
    """What a training with fully sharded weights takes on every GPU, with `samples` of them a step."""
    shared = FLOAT * counts.parameters / gpus
    # two parts are on their way at a time, one that computes and the next; their gradients likewise
    gathered = FLOAT * (2 * counts.unit + counts.rest)
    # products in bf16 keep a copy of their weights until the backward pass; a checkpointed block does not
    copies = HALF * (counts.parameters - counts.rest if not checkpointing else 2 * counts.unit) if mixed else 0
    kept = (counts.kept_checkpointing + counts.block) if checkpointing else counts.kept
    memory = {
        "weights, float32": shared,
        "gradients": shared,
        "AdamW: two moments": 2 * shared,
        "average of the weights": shared,
        "weights gathered for two parts": gathered,
        "their gradients": gathered,
        "weights as bf16 for the backward pass": copies,
        "activations": samples * kept,
        "gradient of the logits": samples * counts.logits,
    }
    operations = counts.step + (counts.forward if checkpointing else 0)
    moved = 3 * FLOAT * counts.parameters * (gpus - 1) / gpus  # gathered twice, gradients summed once
    return Planned(
        memory,
        compute=samples * operations / (assumed.peak * assumed.utilisation),
        exchange=moved / (assumed.bandwidth * 1e9),
    )


def most_samples(counts: Counts, gpus: int, checkpointing: bool, assumed: Assumed) -> int:
    """Samples a GPU that fit into its memory, a power of two; 0 where not even one does."""
    room = (assumed.memory - assumed.spare) * 1e9
    fitting = [2**i for i in range(11) if plan(counts, gpus, 2**i, checkpointing, assumed).total <= room]
    return max(fitting, default=0)


# The page


def page(model: NextScale, counts: Counts, gpus: int, tokens: float, assumed: Assumed, command: str) -> str:
    """PLAN.md."""
    chosen = {checkpointing: most_samples(counts, gpus, checkpointing, assumed) for checkpointing in (False, True)}
    if not any(chosen.values()):
        raise UserError(f"this model does not fit on {gpus} GPUs of {assumed.memory:g} GB: take more of them")
    shown = max(1, chosen[False])
    plans = [plan(counts, gpus, shown, checkpointing, assumed) for checkpointing in (False, True)]
    rows = [(name, *(f"{one.memory[name] / 1e9:.2f}" for one in plans)) for name in plans[0].memory]
    rows.append(("in all", *(f"{one.total / 1e9:.2f}" for one in plans)))
    speeds = []
    for checkpointing, most in chosen.items():
        for samples in (4**i for i in range(6) if 4**i <= max(1, most)):
            made = plan(counts, gpus, samples, checkpointing, assumed)
            a_second = gpus * samples * counts.length / made.seconds
            fits = made.total <= (assumed.memory - assumed.spare) * 1e9
            speeds.append((
                "with" if checkpointing else "without", samples, gpus * samples,
                f"{made.total / 1e9:.1f}" if fits else f"{made.total / 1e9:.1f}, too much",
                f"{made.compute:.2f}", f"{made.exchange:.2f}", f"{a_second / 1e6:.2f} M",
                f"{tokens / a_second / 86400:.1f}", f"{tokens / (gpus * samples * counts.length):,.0f}",
            ))  # fmt: skip
    header = ("checkpointing", "samples a GPU", "a step", "GB a GPU", "s computing", "s exchanging", "tokens/s", "days",
              "steps")  # fmt: skip
    transformer = model.transformer
    return f"""# A plan: {counts.parameters / 1e9:.2f} B parameters on {gpus} GPUs

**This is a simulation, not a measurement**: no such training has been run with this project. Written by

    {command}

Counted on the model itself, built without memory: parameters, operations (`next_scale/flops.py`) and the tensors that a
step keeps for its backward pass. `tests/test_plan.py` compares these counts with those of small models that do run.

| | |
|---|---|
| model | `next_scale`, width {transformer.width}, depth {transformer.depth}, {transformer.heads} heads: \
{counts.parameters:,} parameters |
| pyramid | {model.schedule.scales} scales, {counts.length} tokens of {model.codebook_size:,} codes |
| operations | {counts.step / counts.length / 1e9:.2f} G a token forwards and backwards, \
{counts.step / counts.length / 6 / counts.parameters:.2f} times 6 a parameter; \
{counts.forward / counts.length / 1e9:.2f} G more with checkpointing |
| training | {tokens / 1e9:.1f} B tokens, {tokens / counts.parameters:.0f} a parameter |

The operations are fewer than 6 a token and parameter: what the condition does to a block is computed once a sample.

## Assumptions

- {assumed.peak / 1e12:g} TFLOP/s a GPU (an H100's bf16 without sparsity), {100 * assumed.utilisation:.0f}% of which are
  reached, what is computed again counted too.
- {assumed.memory:g} GB a GPU, {assumed.spare:g} of which stay free for the allocator, CUDA and NCCL.
- {assumed.bandwidth:g} GB/s from every GPU to those of other nodes (400 Gbit/s), beside the computation: a step takes
  whichever is longer.
- `recipes/scale_out/fsdp.yaml` and `gpu.yaml`: float32 weights, gradients, moments and average in {gpus} shares;
  products in bf16 by autocast; weights travel as float32, three times a step; attention keeps what flash attention
  keeps.
- Data, validation and checkpoints take no time. A checkpoint is one file of \
{4 * FLOAT * counts.parameters / 1e9:.0f} GB, which the
  first process assembles in its CPU memory.

## Memory of a GPU, in GB, at {shown} samples

{markdown_table(("", "without checkpointing", "with"), rows)}
## Speed

{markdown_table(header, speeds)}"""


def number(text: str) -> float:
    """``2B``, ``350M``, ``40e9``."""
    match = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([KMBT]?)", text, re.IGNORECASE)
    value = float(match[1]) * 1000 ** "KMBT".index(match[2].upper()) * 1000 if match and match[2] else None
    value = float(match[1]) if match and not match[2] else value
    if value is None or not math.isfinite(value) or value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number such as 350M, 2B or 40e9")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0 or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not above 0")
    return value


def arguments() -> Parser:
    """The command line."""
    parser = Parser(prog="python -m recipes.scale_out.plan", description=__doc__.split("\n\n")[0])
    parser.add_argument("--params", type=number, default=2e9, metavar="N", help="such as 350M (default: 2B)")
    parser.add_argument("--gpus", type=whole_number(1), default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--tokens", type=number, metavar="N", help="of the training (default: 20 a parameter)")
    parser.add_argument(
        "--schedule", default="1 4 9 16 25 36 64 100 169 256", metavar="SCALES", help="default: %(default)s"
    )
    parser.add_argument("--codes", type=whole_number(2), default=4096, metavar="N", help="default: %(default)s")
    parser.add_argument("--channels", type=whole_number(1), default=64, metavar="N", help="default: %(default)s")
    known = Assumed()
    for name, default, unit, what in (
        ("--peak", known.peak / 1e12, "TFLOPS", "of a GPU"),
        ("--utilisation", known.utilisation, "SHARE", "of the peak that is reached"),
        ("--memory", known.memory, "GB", "of a GPU"),
        ("--bandwidth", known.bandwidth, "GB/S", "from a GPU to those of other nodes"),
    ):
        parser.add_argument(name, type=positive, default=default, metavar=unit, help=f"{what} (default: %(default)g)")
    parser.add_argument("--out", metavar="FILE.md", help="default: the page is printed")
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    assumed = Assumed(args.peak * 1e12, args.utilisation, args.memory, args.bandwidth)
    model = for_size(args.params, args.schedule, args.codes, args.channels)
    counts = count(model)
    tokens = args.tokens or 20 * counts.parameters
    command = " ".join(["python -m recipes.scale_out.plan", *argv])
    text = page(model, counts, args.gpus, tokens, assumed, command)
    if args.out:
        write_whole(args.out, text.encode())
    else:
        print(text)


if __name__ == "__main__":
    sys.exit(run_program("python -m recipes.scale_out.plan", main, sys.argv[1:]))
