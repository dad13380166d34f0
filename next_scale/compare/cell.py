"""One cell of a comparison: a predictor trained on a tokenizer's pyramids, and measured."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch

from next_scale.checkpoint import from_pretrained, save_pretrained
from next_scale.compare import measure
from next_scale.compare.cells import Cell, Plan
from next_scale.compare.modality import Modality, find_modality
from next_scale.compare.tokenizing import even_rows, held_out, make_tokenizer, open_data, tokenizer_folder
from next_scale.compare.training import trainer_for
from next_scale.errors import UserError
from next_scale.flops import count_flops
from next_scale.model import Generator
from next_scale.provenance import origin
from next_scale.tokens import TokenDataModule
from next_scale.training import PredictorModule

MODEL, TRAINED = "model", "trained.json"
"""In a cell's folder, the folder of its model, and the part of its record that training gives."""


def token_data(plan: Plan, tokenizer: str, out: Path, seed: int) -> TokenDataModule:
    """The pyramids of a tokenizer's data, with their latents, made when they are first asked for."""
    data = open_data(plan, find_modality(plan.tokenizers[tokenizer].modality))
    checkpoint, size = tokenizer_folder(plan, tokenizer, out), plan.training.batch_size
    return TokenDataModule(data, str(checkpoint), str(out / "tokens"), size, seed=seed, latents=True)


class _Curve(L.Callback):
    """Keeps the validation loss at every validation, across interruptions."""

    def __init__(self, path: Path):
        self.path = path
        self.points: list[list[float]] = json.loads(path.read_text()) if path.is_file() else []

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if loss is None:
            return
        self.points = [point for point in self.points if point[0] < trainer.global_step]
        self.points.append([trainer.global_step, float(loss)])
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.points))
        os.replace(part, self.path)


def run_cell(plan: Plan, cell: Cell, out: Path, folder: Path, accelerator: str = "cpu") -> dict:
    """Train a cell, unless that has been done, and measure it: all of its record but where it comes from.

    Measured is the model as it is kept, in half precision.
    """
    done = folder / TRAINED
    if not done.is_file():
        trained = _train(plan, cell, out, folder, accelerator)
        part = folder / f".{TRAINED}"
        part.write_text(json.dumps(trained))
        os.replace(part, done)
    modality = find_modality(plan.tokenizers[cell.tokenizer].modality)  # brings the autoencoder that the model names
    model = from_pretrained(folder / MODEL).eval()
    tokens = token_data(plan, cell.tokenizer, out, cell.seed)
    tokens.setup("test")
    measured = _measure(plan, cell, model, modality, tokens, folder, out)
    return json.loads(done.read_text()) | {"data": tokens.source.provenance()} | measured


def _train(plan: Plan, cell: Cell, out: Path, folder: Path, accelerator: str) -> dict:
    checkpoint = tokenizer_folder(plan, cell.tokenizer, out)
    figures = make_tokenizer(plan, cell.tokenizer, out, accelerator)
    tokens = token_data(plan, cell.tokenizer, out, cell.seed)
    tokens.setup("fit")
    L.seed_everything(cell.seed, verbose=False)
    module = _module(plan, cell, cell.predictor, checkpoint, tokens)
    flops = _step_flops(module, tokens)
    steps = plan.training.steps
    if cell.match == "flops" and cell.predictor != plan.training.flops_of:
        if not flops:
            raise UserError(f"the predictor '{cell.predictor}' reports no FLOPs to match: see next_scale.flops.report")
        other = _module(plan, cell, plan.training.flops_of, checkpoint, tokens)
        steps = max(1, round(steps * _step_flops(other, tokens) / flops))
        L.seed_everything(cell.seed, verbose=False)
    curve = _Curve(folder / "curve.json")
    trainer, last = trainer_for(folder, steps, plan.training.average, accelerator, [curve], validations=8)
    start = time.perf_counter()
    trainer.fit(module, tokens, ckpt_path=last)
    seconds = time.perf_counter() - start
    if not curve.points or curve.points[-1][0] < steps:  # where validations do not divide the steps
        trainer.validate(module, tokens, verbose=False)
    model = module.model.cpu()
    recipe = {"cell": asdict(cell), "key": plan.training_key(cell)}
    made = {**origin(), "seed": cell.seed, "data": tokens.provenance(), "recipe": recipe}
    save_pretrained(model, folder / MODEL, torch.float16, provenance=made)
    return {
        "tokenizer": {"id": cell.tokenizer, **figures},
        "model": {
            "parameters": sum(parameter.numel() for parameter in model.predictor.parameters()),
            "family": plan.predictors[cell.predictor].family,
            "size": plan.sizes[cell.size],
            "options": plan.predictors[cell.predictor].options,
        },
        "training": {
            "steps": steps,
            "batch_size": plan.training.batch_size,
            "samples": steps * plan.training.batch_size,
            "flops": flops * steps,
            "seconds": seconds,
            "resumed": last is not None,
            "loss": curve.points[-1][1] if curve.points else None,
            "curve": curve.points,
        },
    }


def _module(plan: Plan, cell: Cell, predictor: str, checkpoint: Path, tokens: TokenDataModule) -> PredictorModule:
    chosen, training = plan.predictors[predictor], plan.training
    options = {**plan.sizes[cell.size], **chosen.options}
    return PredictorModule(
        str(checkpoint), tokens.condition_spec, options, family=chosen.family, lr=training.lr, warmup=training.warmup
    )


def _step_flops(module: PredictorModule, tokens: TokenDataModule) -> float:
    """Operations of one step of training, forwards and backwards."""
    batch = next(iter(tokens.train_dataloader()))
    predictor, quantizer = module.predictor, module.frozen.quantizer
    inputs = predictor.inputs(quantizer, batch["tokens"], batch.get("latent"))
    training = predictor.training
    state = {name: buffer.clone() for name, buffer in predictor.named_buffers()}
    flops = count_flops(lambda: predictor.train().loss(batch["tokens"], inputs, batch["condition"]))
    predictor.train(training)
    for name, buffer in predictor.named_buffers():
        buffer.copy_(state[name])  # counting has taught it nothing
    return flops


def _measure(
    plan: Plan, cell: Cell, model: Generator, modality: Modality, tokens: TokenDataModule, folder: Path, out: Path
) -> dict:
    evaluation = plan.evaluation
    data = open_data(plan, modality)
    real, conditions = held_out(data, "test", evaluation.samples)
    near, near_conditions = held_out(data, "validation", evaluation.samples)
    features, _ = modality.features(real)
    near_features, near_found = modality.features(near)
    asked, near_asked = (
        torch.tensor([condition.get("label", -1) for condition in some]) for some in (conditions, near_conditions)
    )
    quantizer, autoencoder = model.tokenizer.quantizer, model.tokenizer.autoencoder
    with torch.inference_mode():
        parts = [quantizer.decode(model.tokenizer.encode(part)) for part in real.split(evaluation.batch_size)]
        again = torch.cat([autoencoder.decode(latent) for latent in parts])[..., : real.shape[-1]]
    reconstructed, _ = modality.features(again)
    best = None
    for guidance in evaluation.guidance:
        samples = measure.draw(model, conditions, guidance, evaluation.batch_size, 10_000 * cell.seed)
        drawn, classes = modality.features(samples[..., : real.shape[-1]])
        nearness = measure.distances(near_features, drawn)["frechet"]
        if best is None or nearness < best[0]:
            best = nearness, guidance, samples, drawn, classes
    _, guidance, samples, drawn, classes = best
    named = modality.features_name
    held = tokens.tokens("test")
    quality = measure.distances(features, drawn, reconstructed, classes == asked)
    return {
        "likelihood": measure.likelihood(model, held, modality, evaluation.batch_size, evaluation.samples),
        "quality": {"features": named, "guidance": guidance, **quality},
        "real": {"features": named, **measure.distances(features, near_features, None, near_found == near_asked)},
        "samples": _shown(modality, folder, out, samples, conditions, model, evaluation.shown),
    }  # fmt: skip


def _shown(
    modality: Modality, folder: Path, out: Path, samples: torch.Tensor, conditions: list[dict], model: Generator,
    count: int,
) -> list[dict]:  # fmt: skip
    """Write samples for people, evenly from all."""
    rows = even_rows(len(samples), count)
    written = modality.write(folder, [f"{row:04}" for row in rows], samples[rows])
    spec, shown = model.condition_spec, []
    for row, entry in zip(rows, written, strict=True):
        values = [str(known[conditions[row][name]]) for name, known in spec.items() if conditions[row][name] >= 0]
        places = {key: str((folder / entry[key]).relative_to(out)) for key in ("file", "picture") if entry.get(key)}
        shown.append({**entry, **places, "label": " ".join(values)})
    return shown


def measure_speed(plan: Plan, record: dict, folder: Path) -> dict:
    """``sampling`` of a record whose cell has its model in the folder, see :mod:`next_scale.compare.record`."""
    modality = find_modality(plan.tokenizers[record["cell"]["tokenizer"]].modality)
    _, conditions = held_out(open_data(plan, modality), "test", 16)
    model = from_pretrained(folder / MODEL).eval()
    threads = torch.get_num_threads()
    return {**measure.speed(model, conditions, plan.evaluation, record["quality"]["guidance"]), "threads": threads}
