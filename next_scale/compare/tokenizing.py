"""The tokenizers of a comparison: trained once, with the floor under all that is built on them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from next_scale.checkpoint import from_pretrained
from next_scale.compare.cells import Plan
from next_scale.compare.modality import Modality, find_modality
from next_scale.compare.training import trainer_for
from next_scale.data import SampleDataModule
from next_scale.metrics import frechet_distance, kernel_distance
from next_scale.profile import pyramid_profile
from next_scale.tokenizer import Tokenizer
from next_scale.training import Export, TokenizerModule

FIGURES = "figures.json"


def tokenizer_folder(plan: Plan, name: str, out: Path) -> Path:
    """Where a tokenizer is kept; another plan for it has another folder."""
    return out / "tokenizers" / f"{name}-{plan.tokenizer_key(name)}"


def open_data(plan: Plan, modality: Modality, **options) -> SampleDataModule:
    """The data of a modality as the plan has it."""
    return modality.data(**{**plan.data.get(modality.name, {}), **options})


def make_tokenizer(plan: Plan, name: str, out: Path, accelerator: str = "cpu") -> dict:
    """Train a tokenizer and measure it, unless that has been done; a training that was cut off goes on.

    Returns:
        Its figures, see :mod:`next_scale.compare.record`.

    Raises:
        UserError: the modality or its data is not there, or options that cannot work.
    """
    folder = tokenizer_folder(plan, name, out)
    if (folder / FIGURES).is_file():
        return json.loads((folder / FIGURES).read_text())
    chosen = plan.tokenizers[name]
    modality = find_modality(chosen.modality)
    L.seed_everything(0, verbose=False)
    data = open_data(plan, modality, batch_size=chosen.batch_size)
    module = TokenizerModule(
        modality.autoencoder(chosen.dimension, **chosen.autoencoder),
        modality.objective(chosen.dimension, **chosen.objective),
        chosen.scales,
        chosen.quantizer,
        **chosen.training,
    )
    trainer, last = trainer_for(folder, chosen.steps, 0.998, accelerator, [Export(str(folder), half=False)])
    trainer.fit(module, data, ckpt_path=last)
    tokenizer = from_pretrained(folder)
    figures = _figures(plan, modality, tokenizer, data, chosen.steps)
    part = folder / f".{FIGURES}"
    part.write_text(json.dumps(figures, indent=1) + "\n")
    os.replace(part, folder / FIGURES)
    return figures


@torch.inference_mode()
def _figures(plan: Plan, modality: Modality, tokenizer: Tokenizer, data: SampleDataModule, steps: int) -> dict:
    samples, _ = held_out(data, "test", plan.evaluation.samples)
    batches = samples.split(plan.evaluation.batch_size)
    quantizer = tokenizer.quantizer
    schedule = quantizer.schedule
    bits = schedule.bits(quantizer.codebook_size)
    features, _ = modality.features(samples)
    decoded, unquantized = [], []
    for batch in batches:
        latent = tokenizer.autoencoder.encode(batch)
        unquantized.append(tokenizer.autoencoder.decode(latent)[..., : batch.shape[-1]])
        decoded.append(tokenizer.autoencoder.decode(quantizer.decode(quantizer.encode(latent)))[..., : batch.shape[-1]])
    profile = pyramid_profile(tokenizer, batches, lambda a, b: next(iter(modality.distortion(a, b).values())))
    return {
        "schedule": str(schedule),
        "codebook_size": quantizer.codebook_size,
        "tokens": schedule.length,
        "bits": bits,
        "bits_per_second": bits / modality.seconds if modality.seconds else None,
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "steps": steps,
        "floor": _floor(modality, samples, features, torch.cat(decoded)),
        "latent_floor": _floor(modality, samples, features, torch.cat(unquantized)),
        "profile": [asdict(row) for row in profile],
    }


def _floor(modality: Modality, samples: Tensor, features: Tensor, decoded: Tensor) -> dict:
    """How far reconstructions are from what they reconstruct."""
    again, _ = modality.features(decoded)
    distortion = {name: float(values.mean()) for name, values in modality.distortion(samples, decoded).items()}
    return {
        "distortion": distortion,
        "frechet": frechet_distance(features, again),
        "kernel": kernel_distance(features, again),
    }


def even_rows(total: int, count: int) -> list[int]:
    """At most so many of all rows, evenly from the first to the last."""
    return torch.linspace(0, total - 1, min(count, total)).round().long().tolist()


def held_out(data: SampleDataModule, split: str, count: int) -> tuple[Tensor, list[dict[str, int]]]:
    """At most so many samples (N, ...) of a split and their conditions, evenly from the whole of it."""
    dataset = data.dataset(split)
    items = [dataset[row] for row in even_rows(len(dataset), count)]
    return torch.stack([item["sample"] for item in items]), [item["condition"] for item in items]
