"""``info``: what a checkpoint is and holds."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from next_scale.cli import DEFAULT, as_tokenizer
from next_scale.commands.backend import Backend

if TYPE_CHECKING:
    from torch import nn


def add_parser(subparsers: argparse._SubParsersAction, backend: Backend, description: str, epilog: str) -> None:
    """Add ``info`` for a backend."""
    parser = subparsers.add_parser("info", description=description, epilog=epilog)
    parser.add_argument(
        "checkpoint", nargs="?", help=f"folder, .safetensors file, or hub id owner/name (default: {DEFAULT})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")
    parser.set_defaults(run=partial(run, backend=backend))


def run(args: argparse.Namespace, backend: Backend) -> None:
    """Print the description."""
    facts = describe(backend.checkpoint_path(args.checkpoint), backend)
    if args.json:
        print(json.dumps(facts, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _lines(facts, backend):
        table.add_row(name, Text(text))
    Console().print(table)


def describe(source: str, backend: Backend) -> dict:
    """What is known of a checkpoint, as JSON values: numbers in tokens, bits, bytes, and the units of the backend.

    Raises:
        UserError: it cannot be loaded.
    """
    from dataclasses import asdict

    from next_scale.model import Generator, fingerprint

    model = backend.open_model(source, "cpu")
    tokenizer = as_tokenizer(model)
    quantizer, schedule = tokenizer.quantizer, backend.schedule_of(tokenizer)
    facts = {
        "checkpoint": source,
        "kind": "tokenizer",
        **backend.facts(tokenizer, schedule),
        "schedule": str(schedule),
        "scales": schedule.scales,
        "codebook_size": quantizer.codebook_size,
        "codebooks": len(quantizer.codebooks),
        f"tokens_per_{backend.sample}": schedule.length,
        f"bits_per_{backend.sample}": schedule.bits(quantizer.codebook_size),
        "fingerprint": fingerprint(tokenizer),
        "parameters": {backend.autoencoder: _size(tokenizer.autoencoder), "quantizer": _size(quantizer)},
        "file_bytes": _file_bytes(Path(source)),
    }
    if isinstance(model, Generator):
        facts["kind"] = "generator"
        facts["parameters"]["predictor"] = _size(model.predictor)
        facts |= {"conditions": model.condition_spec, "vectors": model.vectors, "sampling": asdict(model.sampling)}
        if model.words is not None:
            facts["words"] = model.words.to_config()
    facts["parameters"]["total"] = sum(facts["parameters"].values())
    return facts


def _size(module: nn.Module) -> int:
    """Numbers stored for a part: parameters, and codebooks that are moving averages."""
    return sum(tensor.numel() for tensor in module.state_dict().values())


def _file_bytes(path: Path) -> int | None:
    """Size of the weights; None for a model on the hub."""
    from next_scale.checkpoint import WEIGHTS

    path = path / WEIGHTS if path.is_dir() else path
    return path.stat().st_size if path.is_file() else None


def _lines(facts: dict, backend: Backend) -> list[tuple[str, str]]:
    """Names and texts of the table's rows."""
    parameters = {name: f"{count:,}" for name, count in facts["parameters"].items()}
    parts = ", ".join(f"{name} {count}" for name, count in parameters.items() if name != "total")
    books = "one codebook" if facts["codebooks"] == 1 else f"{facts['codebooks']} codebooks"
    tokens, bits = facts[f"tokens_per_{backend.sample}"], facts[f"bits_per_{backend.sample}"]
    lines = [
        ("checkpoint", facts["checkpoint"]),
        ("kind", "generator (tokenizer and predictor)" if facts["kind"] == "generator" else "tokenizer"),
        ("parameters", f"{parameters['total']}: {parts}"),
        *backend.lines(facts),
        ("scales", f"{facts['scales']}: {facts['schedule']}"),
        ("codes", f"{books} of {facts['codebook_size']:,}"),
        ("rate", f"{tokens} tokens, {bits:,.0f} bits {backend.a_sample}, {backend.rate_line(facts)}"),
    ]
    for name, values in facts.get("conditions", {}).items():
        lines.append((f"condition {name}", _values(values)))
    for name, size in facts.get("vectors", {}).items():
        lines.append((f"condition {name}", f"a vector of {size}"))
    if "words" in facts:
        options = ", ".join(f"{name} {value}" for name, value in facts["words"].items())
        lines.append(("condition prompt", f"words: {options}"))
    if "sampling" in facts:
        lines.append(("sampling", ", ".join(f"{name} {value}" for name, value in facts["sampling"].items())))
    lines.append(("fingerprint", f"{facts['fingerprint']} (of the tokenizer)"))
    if facts["file_bytes"] is not None:
        lines.append(("file", f"{facts['file_bytes'] / 1e6:.2f} MB"))
    return lines


def _values(values: list[str | int]) -> str:
    """``36 to 84`` for consecutive numbers, a list otherwise."""
    if len(values) > 3 and all(isinstance(v, int) for v in values) and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))
