"""Results of a comparison whose truth is known, as :mod:`next_scale.compare.record` describes them."""

import json
import random
from itertools import product
from pathlib import Path

FAMILIES = {"next_scale": 1.0, "next_token": 1.0, "masked": 1.2, "flow": 1.02}
SCALES = {"1d": [[1], [4], [9]], "2d": [[1, 1], [2, 2], [3, 3]]}
ORIGIN = {
    "versions": {"torch": "2.11.0"}, "git": "abcdef012345", "device": "cpu", "system": "Linux x86_64, 2 cores",
    "finished": "2026-11-25T12:00:00+00:00",
}  # fmt: skip
DISTANCES = ("frechet", "frechet_infinity", "frechet_to_reconstructions", "kernel", "precision", "recall", "density",
             "coverage", "class_accuracy")  # fmt: skip


def tokenizer_figures(dimension: str, name: str) -> dict:
    """Figures of a tokenizer of 14 tokens."""
    floor = {"distortion": {"error": 0.25}, "frechet": 0.5, "kernel": 0.01}
    tokens = [1, 4, 9]
    profile = []
    for k, (size, n) in enumerate(zip(SCALES[dimension], tokens, strict=True), start=1):
        row = {"size": size, "tokens": n, "bits": 6.0 * n, "entropy": 5.0 * n}
        profile.append({**row, "latent": 0.5 / k, "distortion": 1 / k})
    return {"id": name, "schedule": "1 4 9", "codebook_size": 64, "tokens": 14, "bits": 84.0, "bits_per_second": None,
            "parameters": 123_456, "steps": 30, "floor": floor, "latent_floor": floor, "profile": profile}  # fmt: skip


def records(
    ratio_1d: float = 1.0, ratio_2d: float = 1.0, seeds: int = 3, places=(("tone", "1d"), ("shade", "2d")),
    families=tuple(FAMILIES), sizes=("small", "medium"), noise: float = 0.01,
) -> list[dict]:  # fmt: skip
    """Records in which next-scale's distance over next-token's is `ratio_1d` and `ratio_2d`."""
    chance = random.Random(0)
    found = []
    for modality, dimension in places:
        name = f"{modality}-{dimension}-matched"
        figures = tokenizer_figures(dimension, name)
        place = {"modality": modality, "dimension": dimension, "schedule": "matched"}
        found.append({"id": f"tokenizer {name}", "place": place, "key": "0", "tokenizer": figures, **ORIGIN})
        ratio = {"1d": ratio_1d, "2d": ratio_2d}[dimension]
        for family, size, seed in product(families, sizes, range(seeds)):
            factor = FAMILIES[family] * (ratio if family == "next_scale" else 1)
            distance = 20.0 * factor * (1 + noise * chance.uniform(-1, 1)) * (0.9 if size == "medium" else 1)
            drawn = [distance * (1.2 + noise * chance.uniform(-1, 1)) for _ in range(16)]
            bits = 60.0 * factor
            likelihood = {
                "exact": family != "masked", "per_scale": [bits / 14 * n for n in (1, 4, 9)], "bits_per_sample": bits,
                "bits_resampled": [bits * (1 + noise * chance.uniform(-1, 1)) for _ in range(16)],
                "bits_per_dim": bits / 1024, "bits_per_token": bits / 14, "bits_per_second": None,
            }  # fmt: skip
            flops = 1e12 * (3 if size == "medium" else 1)
            curve = [[step, 2.0 + 30 * (flops * step / 1000) ** -0.1] for step in range(100, 1001, 100)]
            cell = {"tokenizer": name, "predictor": family, "size": size, "seed": seed, "match": "flops", **place}
            found.append({
                "id": f"{name}-{family}-{size}-s{seed}-flops", "cell": cell, "key": "1", "tokenizer": figures,
                "model": {"parameters": 50_000, "size": {"width": 32}, "options": {}, "family": family},
                "training": {"steps": 1000, "batch_size": 8, "samples": 8000, "flops": flops, "seconds": 60.0,
                             "resumed": False, "loss": curve[-1][1], "curve": curve},
                "likelihood": None if family == "flow" else likelihood,
                "quality": {"features": "a <net>", "guidance": 1.0, "n": 512, **dict.fromkeys(DISTANCES, 0.5),
                            "frechet": distance, "frechet_resampled": drawn},
                "real": {"features": "a <net>", "n": 256, **dict.fromkeys(DISTANCES, 0.25)},
                "sampling": {"steps": 3, "flops": 2e7, "latency_1": 0.01, "latency_16": 0.1, "per_second_1": 100.0,
                             "per_second_16": 160.0, "peak_memory": 2**29, "threads": 2},
                "samples": [], **ORIGIN,
            })  # fmt: skip
    return found


def write(folder: Path, found: list[dict]) -> Path:
    """Write records as results."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
    return folder
