"""Runs what a plan asks for and the results lack, cell by cell."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

from next_scale.compare.cell import measure_speed, run_cell, token_data
from next_scale.compare.cells import Cell, Plan
from next_scale.compare.record import PLAN, append_record, origin, read_records
from next_scale.compare.tokenizing import make_tokenizer
from next_scale.errors import UserError, first_line

Told = Callable[[str], None]


def keep_plan(plan: Path, out: Path) -> None:
    """Copy the plan's file beside the results, for whoever reads them."""
    out.mkdir(parents=True, exist_ok=True)
    part = out / f".{PLAN}.part"
    shutil.copyfile(plan, part)
    os.replace(part, out / PLAN)


def missing_cells(plan: Plan, out: Path, only: str = "", again: bool = False) -> list[Cell]:
    """Cells whose result is not there, is an error, or is that of another plan; of those whose id has `only` in it.

    Args:
        again: also those that are done.
    """
    records = read_records(out)
    return [cell for cell in plan.list_cells() if only in cell.id and (again or _done(plan, cell, records) is None)]


def untimed_cells(plan: Plan, out: Path, only: str = "") -> list[Cell]:
    """Cells with a result that has no speed yet."""
    records = read_records(out)
    done = {cell: _done(plan, cell, records) for cell in plan.list_cells() if only in cell.id}
    return [cell for cell, record in done.items() if record is not None and "sampling" not in record]


def _done(plan: Plan, cell: Cell, records: dict[str, dict]) -> dict | None:
    record = records.get(cell.id, {})
    return record if record.get("key") == plan.cell_key(cell) and "error" not in record else None


def run_plan(
    plan: Plan, out: Path, jobs: int = 1, only: str = "", tell: Told = print, again: bool = False
) -> int:  # fmt: skip
    """Run the missing cells, `jobs` at once, each in a process of its own; then measure their speed, one at a time.

    What was interrupted goes on where it was; a cell that fails is recorded, and the others go on. Without `only` all
    tokenizers of the plan are made, those without cells too, so that the report can set them beside the others.

    Args:
        out: folder of results; created if missing.
        tell: is told of every cell that ends.
        again: measure cells that are done again, without training them again.

    Returns:
        How many failed.

    Raises:
        UserError: a tokenizer cannot be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    cells = missing_cells(plan, out, only, again)
    names = list(dict.fromkeys(cell.tokenizer for cell in cells)) if only else list(plan.tokenizers)
    failed, jobs = 0, torch.cuda.device_count() or jobs
    for item, error in _in_processes(_tokenizer, plan, out, names, jobs):
        if error:
            raise UserError(f"the tokenizer {item} cannot be made: {error}")
        tell(f"tokenizer {item}: done")
    for item, error in _in_processes(_cell, plan, out, cells, jobs):
        tell(f"{item.id}: {error or 'done'}")
        failed += bool(error)
    for item, error in _in_processes(_speed, plan, out, untimed_cells(plan, out, only), 1):
        tell(f"speed of {item.id}: {error or 'done'}")
        failed += bool(error)
    return failed


def _in_processes(
    task: Callable[[Plan, Path, object, int, str], None], plan: Plan, out: Path, items: Sequence, jobs: int
) -> Iterator[tuple[object, str]]:
    """Items as they end, with what went wrong, if anything did."""
    devices = torch.cuda.device_count()
    jobs = max(1, min(jobs, len(items)))
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
            running = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
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
    figures = make_tokenizer(plan, name, out, _start(threads, device))
    token_data(plan, name, out, 0).prepare_data()  # once, before cells want them at the same time
    known = read_records(out).get(f"tokenizer {name}", {})
    if known.get("key") != plan.tokenizer_key(name):
        chosen = plan.tokenizers[name]
        place = {"modality": chosen.modality, "dimension": chosen.dimension, "schedule": chosen.schedule}
        record = {"id": f"tokenizer {name}", "place": place, "key": plan.tokenizer_key(name)}
        append_record(out, record | {"tokenizer": {"id": name, **figures}} | origin(device))


def _cell(plan: Plan, out: Path, cell: Cell, threads: int, device: str) -> None:
    """Run a cell in this process and record it, or what went wrong."""
    accelerator = _start(threads, device)
    base = {"id": cell.id, "cell": {**asdict(cell), **_place(plan, cell)}, "key": plan.cell_key(cell)}
    folder = _folder(plan, out, cell)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        record = run_cell(plan, cell, out, folder, accelerator)
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc())
        append_record(out, base | {"error": first_line(error)[:500] or type(error).__name__} | origin(device))
        raise RuntimeError(f"{first_line(error)} ({folder / 'error.txt'})") from None
    append_record(out, base | record | origin(device))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _speed(plan: Plan, out: Path, cell: Cell, threads: int, device: str) -> None:
    """Add its speed to a cell's record: with all threads, and with no other cell beside it."""
    _start(threads, device)
    record = read_records(out)[cell.id]
    append_record(out, record | {"sampling": measure_speed(plan, record, _folder(plan, out, cell))})


def _folder(plan: Plan, out: Path, cell: Cell) -> Path:
    return out / "cells" / f"{cell.id}-{plan.training_key(cell)}"


def _place(plan: Plan, cell: Cell) -> dict:
    tokenizer = plan.tokenizers[cell.tokenizer]
    return {"modality": tokenizer.modality, "dimension": tokenizer.dimension, "schedule": tokenizer.schedule}
