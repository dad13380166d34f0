"""Runs what a plan asks for and the results lack, cell by cell."""

from __future__ import annotations

import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import lightning as L
import torch

from next_scale.compare import measure
from next_scale.compare.cells import Cell, Plan
from next_scale.compare.modality import Modality, find_modality
from next_scale.compare.record import append_record, origin, read_records
from next_scale.compare.tokenizing import held_out, make_tokenizer, open_data, tokenizer_folder
from next_scale.compare.training import trainer_for
from next_scale.errors import UserError, first_line
from next_scale.flops import count_flops
from next_scale.model import Generator
from next_scale.tokens import TokenDataModule, TokenSet
from next_scale.training import PredictorModule

Told = Callable[[str], None]


def missing_cells(plan: Plan, out: Path, only: str = "") -> list[Cell]:
    """Cells whose result is not there, is an error, or is that of another plan; of those whose id has `only` in it."""
    records = read_records(out)

    def done(cell: Cell) -> bool:
        record = records.get(cell.id, {})
        return record.get("key") == plan.cell_key(cell) and "error" not in record

    return [cell for cell in plan.list_cells() if only in cell.id and not done(cell)]


def run_plan(plan: Plan, out: Path, jobs: int = 1, only: str = "", tell: Told = print) -> int:
    """Run the missing cells, `jobs` at once, each in a process of its own.

    What was interrupted goes on where it was; a cell that fails is recorded, and the others go on.

    Args:
        out: folder of results; created if missing.
        tell: is told of every cell that ends.

    Returns:
        How many failed.

    Raises:
        UserError: a tokenizer cannot be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    cells = missing_cells(plan, out, only)
    names = list(dict.fromkeys(cell.tokenizer for cell in cells))
    failed = 0
    for task, items in ((_tokenizer, names), (_cell, cells)):
        for item, error in _in_processes(task, plan, out, items, jobs):
            if error and task is _tokenizer:
                raise UserError(f"the tokenizer {item} cannot be made: {error}")
            name = item.id if isinstance(item, Cell) else f"tokenizer {item}"
            tell(f"{name}: {error or 'done'}")
            failed += bool(error)
    return failed


def _in_processes(
    task: Callable[[Plan, Path, object, int, str], None], plan: Plan, out: Path, items: Sequence, jobs: int
) -> Iterator[tuple[object, str]]:
    """Items as they end, with what went wrong, if anything did."""
    devices = torch.cuda.device_count()
    jobs = max(1, min(jobs if devices == 0 else devices, len(items)))
    threads = max(1, torch.get_num_threads() // jobs)
    context = get_context("spawn")  # a process a task: its memory is its own, and no state goes from one to the next
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        waiting = {
            pool.submit(task, plan, out, item, threads, _device(i, devices)): item for i, item in enumerate(items)
        }
        try:
            for future in as_completed(waiting):
                error = future.exception()
                yield waiting[future], first_line(error) if error else ""
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(getattr(pool, "_processes", {}).values()):
                process.terminate()
            raise


def _device(index: int, devices: int) -> str:
    return f"cuda:{index % devices}" if devices else "cpu"


def _start(threads: int, device: str) -> str:
    """Settle a process of the pool; the accelerator of Lightning."""
    torch.set_num_threads(threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        return "gpu"
    return "cpu"


def _tokenizer(plan: Plan, out: Path, name: str, threads: int, device: str) -> None:
    make_tokenizer(plan, name, out, _start(threads, device))
    _tokens(plan, name, out, 0).prepare_data()  # once, before cells want them at the same time


def _tokens(plan: Plan, name: str, out: Path, seed: int) -> TokenDataModule:
    data = open_data(plan, find_modality(plan.tokenizers[name].modality))
    checkpoint, size = tokenizer_folder(plan, name, out), plan.training.batch_size
    return TokenDataModule(data, str(checkpoint), str(out / "tokens"), size, seed=seed, latents=True)


def _cell(plan: Plan, out: Path, cell: Cell, threads: int, device: str) -> None:
    """Run a cell in this process and record it, or what went wrong."""
    accelerator = _start(threads, device)
    base = {"id": cell.id, "cell": {**asdict(cell), **_place(plan, cell)}, "key": plan.cell_key(cell)}
    folder = out / "cells" / f"{cell.id}-{base['key']}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        record = run_cell(plan, cell, out, folder, accelerator)
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc())
        append_record(out, base | {"error": first_line(error)[:500] or type(error).__name__} | origin(device))
        raise RuntimeError(f"{first_line(error)} ({folder / 'error.txt'})") from None
    append_record(out, base | record | origin(device))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _place(plan: Plan, cell: Cell) -> dict:
    tokenizer = plan.tokenizers[cell.tokenizer]
    return {"modality": tokenizer.modality, "dimension": tokenizer.dimension, "schedule": tokenizer.schedule}


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
    """Train and measure one cell; see :mod:`next_scale.compare.record` for what comes back."""
    tokenizer = plan.tokenizers[cell.tokenizer]
    checkpoint = tokenizer_folder(plan, cell.tokenizer, out)
    figures = make_tokenizer(plan, cell.tokenizer, out, accelerator)
    modality = find_modality(tokenizer.modality)
    tokens = _tokens(plan, cell.tokenizer, out, cell.seed)
    tokens.setup("fit")
    L.seed_everything(cell.seed, verbose=False)
    module = _module(plan, cell, cell.predictor, checkpoint, tokens)
    flops = _step_flops(module, tokens)
    steps = plan.training.steps
    if cell.match == "flops" and cell.predictor != plan.training.flops_of:
        other = _module(plan, cell, plan.training.flops_of, checkpoint, tokens)
        steps = max(1, round(steps * _step_flops(other, tokens) / flops))
        L.seed_everything(cell.seed, verbose=False)
    curve = _Curve(folder / "curve.json")
    trainer, last = trainer_for(folder, steps, plan.training.average, accelerator, [curve], validations=8)
    start = time.perf_counter()
    trainer.fit(module, tokens, ckpt_path=last)
    seconds = time.perf_counter() - start
    model = module.model.cpu().eval()
    record = {
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
    return record | _measure(plan, cell, model, modality, tokens, folder, out)


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
    near, _ = held_out(data, "validation", evaluation.samples)
    features, found = modality.features(real)
    near_features, _ = modality.features(near)
    asked = torch.tensor([condition.get("label", -1) for condition in conditions])
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
    half = torch.arange(len(features)) % 2 == 0
    held = TokenSet(tokens.split_folder("test"))
    quality = measure.distances(features, drawn, reconstructed, classes == asked)
    return {
        "likelihood": measure.likelihood(model, held, modality, evaluation.batch_size, evaluation.samples),
        "quality": {"features": named, "guidance": guidance, **quality},
        "real": {"features": named, **measure.distances(features[half], features[~half]),
                 "class_accuracy": float((found == asked).double().mean())},
        "sampling": measure.speed(model, conditions, evaluation, guidance),
        "samples": _shown(modality, folder, out, samples, conditions, model, evaluation.shown),
    }  # fmt: skip


def _shown(
    modality: Modality, folder: Path, out: Path, samples: torch.Tensor, conditions: list[dict], model: Generator,
    count: int,
) -> list[dict]:  # fmt: skip
    """Write samples for people, evenly from all."""
    rows = torch.linspace(0, len(samples) - 1, min(count, len(samples))).round().long().tolist()
    written = modality.write(folder, [f"{row:04}" for row in rows], samples[rows])
    spec, shown = model.condition_spec, []
    for row, entry in zip(rows, written, strict=True):
        values = [str(known[conditions[row][name]]) for name, known in spec.items() if conditions[row][name] >= 0]
        places = {key: str((folder / entry[key]).relative_to(out)) for key in ("file", "picture") if entry.get(key)}
        shown.append({**entry, **places, "label": " ".join(values)})
    return shown
