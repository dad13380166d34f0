"""What the reports on trained models share: tables, draws of samples, and measurements that need no modality.

Shape notation: N samples, B batch, E features, K scales, n_k tokens of scale k, L tokens in all, V codes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from next_scale import provenance
from next_scale.cli import progress, sample_seed
from next_scale.metrics import bits_per_scale, frechet_distance, kernel_distance, manifold_metrics
from next_scale.model import Generator
from next_scale.sampling import SamplingOptions
from next_scale.tokenizer import Tokenizer

NEIGHBOURS = 5  # of precision, recall, density and coverage


# Text


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; the first column is aligned left, all others right. Floats are given as text."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def number(value: float | None, digits: int) -> str:
    """A figure with so many decimals; nothing where it was not measured."""
    return "" if value is None else f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0: no minus before a zero


def percent(value: float | None) -> str:
    """A share as per cent."""
    return "" if value is None else f"{100 * value:.1f}%"


def size_name(size: tuple[int, ...]) -> int | str:
    """The size of a scale: a number in 1D, ``4x4`` in 2D."""
    return size[0] if len(size) == 1 else "x".join(map(str, size))


def write_report(
    data: dict, text: str, json_path: Path, markdown_path: Path, command: str, measured_on: str | Path | None = None
) -> None:
    """Write the figures as JSON and the page as Markdown.

    Args:
        command: that makes the report again, first in the JSON.
        measured_on: the data; its checksum, versions and git revision are last.
    """
    made = provenance.origin()
    if measured_on is not None:
        known = Path(measured_on).exists()
        checksum = provenance.listing_hash(measured_on) if known else None
        made["data"] = {"name": Path(measured_on).name, "sha256": checksum}
    json_path.write_text(
        json.dumps({"command": command, **data, provenance.KEY: made}, indent=1) + "\n", encoding="utf-8"
    )
    markdown_path.write_text(text, encoding="utf-8")


# Which samples


def draw(count: int, total: int, seed: int = 0) -> Tensor:
    """`count` different indices below `total`, in order, or all of them if there are no more: (n,) int64."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values


def even_draw(label: Tensor, classes: int, count: int, seed: int) -> Tensor:
    """About `count` samples, the same number of every class where it has so many.

    Args:
        label: (N,) int64, below `classes`.

    Returns:
        Sorted indices (n,) int64.
    """
    chosen = []
    for index in range(classes):
        members = (label == index).nonzero()[:, 0]
        chosen.append(members[draw(round(count / classes) or 1, len(members), seed * classes + index)])
    return torch.cat(chosen).sort().values


def draw_conditions(columns: Mapping[str, Tensor], count: int, seed: int) -> dict[str, Tensor]:
    """Conditions drawn evenly from the combinations that occur among samples, each once before any twice.

    Args:
        columns: field -> (N,) int64 indices.

    Returns:
        field -> (count,) int64 indices.
    """
    combinations = torch.unique(torch.stack(list(columns.values()), 1), dim=0)  # (combinations, fields)
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-count // len(combinations))
    order = torch.cat([torch.randperm(len(combinations), generator=generator) for _ in range(rounds)])[:count]
    return dict(zip(columns, combinations[order].T.contiguous(), strict=True))


def shown_scales(scales: int, count: int = 6) -> list[int]:
    """Numbers of leading scales to show, from the first alone to all."""
    return sorted({round(1 + i * (scales - 1) / max(1, count - 1)) for i in range(count)})


# Models at work, batch by batch


def encode(tokenizer: Tokenizer, samples: Tensor) -> Tensor:
    """(B, ...) -> (B, L) int64 on the CPU."""
    return tokenizer.encode(samples.to(tokenizer.device)).cpu()


def decode(tokenizer: Tokenizer, tokens: Tensor, batch_size: int, scales: int | None = None) -> Tensor:
    """(N, L) -> (N, ...) float32 on the CPU, from the first `scales` scales only where given."""
    return torch.cat([tokenizer.decode(part.to(tokenizer.device), scales).cpu() for part in tokens.split(batch_size)])


def reconstruct(
    tokenizer: Tokenizer, read: Callable[[Tensor], Tensor], indices: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Tokens (N, L) of the samples `read(indices)`, and what they decode to (N, ...)."""
    tokens, samples = [], []
    with progress("reconstructing", len(indices)) as advance:
        for part in indices.split(batch_size):
            tokens.append(encode(tokenizer, read(part)))
            samples.append(decode(tokenizer, tokens[-1], batch_size))
            advance(len(part))
    return torch.cat(tokens), torch.cat(samples)


def generate(
    model: Generator, conditions: Mapping[str, Tensor], seed: int, sampling: SamplingOptions, batch_size: int
) -> tuple[Tensor, Tensor]:
    """One sample a condition, seeded as the command ``generate`` does: samples (N, ...), tokens (N, L), on the CPU.

    Args:
        conditions: field -> (N,) int64 indices.
    """
    count = len(next(iter(conditions.values())))
    samples, tokens = [], []
    with progress("generating", count) as advance:
        for rows in torch.arange(count).split(batch_size):
            condition = {name: index[rows] for name, index in conditions.items()}
            made = model.generate(condition, [sample_seed(seed, int(row)) for row in rows], sampling)
            for kept, part in zip((samples, tokens), made, strict=True):
                kept.append(part.cpu())
            advance(len(rows))
    return torch.cat(samples), torch.cat(tokens)


@dataclass
class ScaleEntropy:
    """Cross-entropy of one scale on held-out samples: bits a sample spends, and those without a model."""

    scale: int
    size: int | str
    bits: float
    bits_a_token: float
    uniform_bits: float


@torch.inference_mode()
def scale_entropy(
    model: Generator, tokens: Tensor, conditions: Mapping[str, Tensor], batch_size: int
) -> list[ScaleEntropy]:
    """Cross-entropy of every scale on tokens (N, L) under their conditions, field -> (N,) int64."""
    predictor, quantizer = model.predictor, model.tokenizer.quantizer
    device = model.tokenizer.device
    found = []
    with progress("cross-entropy", len(tokens)) as advance:
        for rows in torch.arange(len(tokens)).split(batch_size):
            part = tokens[rows].to(device)
            condition = {name: index[rows].to(device) for name, index in conditions.items()}
            found.append(predictor.log_prob(part, predictor.inputs(quantizer, part), condition).cpu())
            advance(len(rows))
    bits = bits_per_scale(torch.cat(found)).tolist()
    schedule = predictor.schedule
    uniform = schedule.bits(predictor.codebook_size) / schedule.length
    return [
        ScaleEntropy(k + 1, size_name(size), bits[k], bits[k] / count, uniform * count)
        for k, (size, count) in enumerate(zip(schedule.sizes, schedule.counts, strict=True))
    ]


# Sets of samples


def share(hits: Tensor) -> float | None:
    """How many of these are true; nothing of nothing."""
    return float(hits.double().mean()) if len(hits) else None


def distances(real: Tensor, features: Tensor, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """frechet, kernel, precision, recall, density and coverage of features (M, E) against those of real samples (N, E).

    See :mod:`next_scale.metrics`.
    """
    near = manifold_metrics(real, features, neighbours)._asdict()
    return {"frechet": frechet_distance(real, features), "kernel": kernel_distance(real, features), **near}


def confusion_counts(asked: Tensor, found: Tensor, classes: int) -> list[list[int]]:
    """How many samples of class i (row) were found to be of class j: two times (N,) int64 -> counts."""
    return torch.bincount(asked * classes + found, minlength=classes**2).view(classes, classes).tolist()
