"""What is measured of a trained predictor: likelihood, quality, speed."""

from __future__ import annotations

import math
import re
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from next_scale.compare.cells import EvaluationPlan
from next_scale.compare.modality import Modality
from next_scale.compare.tokenizing import even_rows
from next_scale.condition import collate_conditions
from next_scale.errors import UserError
from next_scale.flops import count_flops
from next_scale.metrics import bits_per_scale, frechet_distance, kernel_distance, manifold_metrics
from next_scale.model import Generator
from next_scale.shards.reader import TokenSet
from next_scale.statistics import frechet_infinity

_NEIGHBOURS = 5
_RESAMPLES = 64


def likelihood(model: Generator, tokens: TokenSet, modality: Modality, batch_size: int, limit: int) -> dict | None:
    """Bits of at most `limit` held-out pyramids, evenly from all, or None of a family that gives no probability."""
    predictor, quantizer = model.predictor, model.tokenizer.quantizer
    rows, found = even_rows(len(tokens), limit), []
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            items = [tokens[row] for row in rows[start : start + batch_size]]
            ids = torch.stack([item["tokens"] for item in items])
            condition = collate_conditions([item["condition"] for item in items], model.condition_spec)
            try:
                found.append(predictor.log_prob(ids, predictor.inputs(quantizer, ids), condition))
            except UserError:
                return None
    log_prob = torch.cat(found)
    bits = bits_per_scale(log_prob)
    total = float(bits.sum())
    each = log_prob.double().sum(1) / -math.log(2)
    return {
        "exact": predictor.exact_log_prob,
        "per_scale": bits.tolist(),
        "bits_per_sample": total,
        "bits_resampled": [float(each[rows].mean()) for rows in resampled_rows(len(each))],
        "bits_per_dim": total / modality.dims,
        "bits_per_token": total / predictor.schedule.length,
        "bits_per_second": total / modality.seconds if modality.seconds else None,
    }


def draw(
    model: Generator, conditions: Sequence[dict[str, int]], guidance: float, batch_size: int, seed: int
) -> Tensor:  # fmt: skip
    """Samples (N, ...), one a condition; the n-th has the seed `seed` + n."""
    sampling = replace(model.sampling, cfg=guidance, cfg_ramp=False)
    found = []
    for start in range(0, len(conditions), batch_size):
        part = conditions[start : start + batch_size]
        batch = collate_conditions(part, model.condition_spec)
        samples, _ = model.generate(batch, [seed + start + i for i in range(len(part))], sampling)
        found.append(samples)
    return torch.cat(found)


def resampled_rows(count: int) -> Tensor:
    """Rows that draws with replacement take, (R, N) int64: of as many samples always the same.

    So the r-th figures of two predictors rest on the same held-out samples, and what their samples share in difficulty
    cancels where they are compared. Shape notation: R draws, N samples.
    """
    return torch.randint(count, (_RESAMPLES, count), generator=torch.Generator().manual_seed(0))


def distances(
    real: Tensor, found: Tensor, reconstructions: Tensor | None = None, hits: Tensor | None = None
) -> dict:  # fmt: skip
    """Distances between features (N, E) and (M, E); what so few samples cannot tell is None.

    Args:
        reconstructions: features of the tokenizer's reconstructions of the real samples. With them the distance is
            also resampled, which takes as many samples as there are real ones, the n-th with the n-th's condition.
        hits: whether each sample's class is the one asked for.
    """
    enough = min(len(real), len(found)) > _NEIGHBOURS
    manifold = manifold_metrics(real, found, _NEIGHBOURS)._asdict() if enough else {}
    draws = resampled_rows(len(found)) if reconstructions is not None else ()
    return {
        "n": len(found),
        "frechet": frechet_distance(real, found),
        "frechet_resampled": [frechet_distance(real[rows], found[rows]) for rows in draws],
        "frechet_infinity": frechet_infinity(real, found),
        "frechet_to_reconstructions": None if reconstructions is None else frechet_distance(reconstructions, found),
        "kernel": kernel_distance(real, found),
        **{name: manifold.get(name) for name in ("precision", "recall", "density", "coverage")},
        "class_accuracy": None if hits is None else float(hits.double().mean()),
    }


def speed(model: Generator, conditions: Sequence[dict[str, int]], plan: EvaluationPlan, guidance: float) -> dict:
    """Seconds and operations of drawing samples, decoding included, alone and 16 at a time."""
    alone, many = conditions[:1], (list(conditions) * math.ceil(16 / len(conditions)))[:16]
    found = {
        "steps": model.predictor.steps(model.sampling),
        "flops": count_flops(lambda: draw(model, alone, guidance, 1, 0)),
    }
    model.pack()
    _reset_peak()
    for count, wanted in ((1, alone), (16, many)):
        draw(model, wanted, guidance, count, 0)
        seconds = []
        for run in range(plan.runs):
            start = time.perf_counter()
            draw(model, wanted, guidance, count, run)
            seconds.append(time.perf_counter() - start)
        found[f"latency_{count}"] = statistics.median(seconds)
        found[f"per_second_{count}"] = count / found[f"latency_{count}"]
    return found | {"peak_memory": peak_memory()}


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _reset_peak() -> None:
    """Let the process's peak memory start anew, where the system can."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """Bytes that this process held at most since :func:`_reset_peak`, or, where that does nothing, since its start."""
    if _STATUS.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
