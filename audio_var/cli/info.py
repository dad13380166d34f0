"""`audio-var info`: what a checkpoint is and holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from audio_var.cli.models import DEFAULT, checkpoint_path, open_model
from next_scale.cli import as_tokenizer

if TYPE_CHECKING:
    from torch import nn

_DESCRIPTION = """Describe a checkpoint: its parts and their parameters, its scales from coarse to fine, the bits that
its tokens take, and the conditions that `audio-var generate` may ask it for."""

_EPILOG = """examples:
  audio-var info
  audio-var info runs/audio_notes/tokenizer --json"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``info``."""
    parser = subparsers.add_parser("info", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument(
        "checkpoint", nargs="?", help=f"folder, .safetensors file, or hub id owner/name (default: {DEFAULT})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the description."""
    source = checkpoint_path(args.checkpoint)
    facts = describe(source)
    if args.json:
        print(json.dumps(facts, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _lines(facts):
        table.add_row(name, Text(text))
    Console().print(table)


def describe(source: str) -> dict:
    """What is known of a checkpoint, as JSON values: numbers in samples, Hz, bits, bytes, kbit/s.

    Raises:
        UserError: it cannot be loaded.
    """
    from dataclasses import asdict

    from audio_var.cli.clips import schedule_of
    from next_scale.model import Generator, fingerprint

    model = open_model(source, "cpu")
    tokenizer = as_tokenizer(model)
    codec, quantizer, schedule = tokenizer.autoencoder, tokenizer.quantizer, schedule_of(tokenizer)
    samples = schedule.grid[0] * codec.hop
    bits = schedule.bits(quantizer.codebook_size)
    facts = {
        "checkpoint": source,
        "kind": "tokenizer",
        "codec": codec.name,
        "sample_rate": codec.sample_rate,
        "hop": codec.hop,
        "clip_samples": samples,
        "clip_seconds": samples / codec.sample_rate,
        "schedule": str(schedule),
        "scales": schedule.scales,
        "codebook_size": quantizer.codebook_size,
        "codebooks": len(quantizer.codebooks),
        "tokens_per_clip": schedule.length,
        "bits_per_clip": bits,
        "kbit_per_second": bits * codec.sample_rate / samples / 1000,
        "fingerprint": fingerprint(tokenizer),
        "parameters": {"codec": _size(codec), "quantizer": _size(quantizer)},
        "file_bytes": _file_bytes(Path(source)),
    }
    if isinstance(model, Generator):
        facts["kind"] = "generator"
        facts["parameters"]["predictor"] = _size(model.predictor)
        facts |= {"conditions": model.condition_spec, "sampling": asdict(model.sampling)}
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


def _lines(facts: dict) -> list[tuple[str, str]]:
    """Names and texts of the table's rows."""
    parameters = {name: f"{count:,}" for name, count in facts["parameters"].items()}
    parts = ", ".join(f"{name} {count}" for name, count in parameters.items() if name != "total")
    books = "one codebook" if facts["codebooks"] == 1 else f"{facts['codebooks']} codebooks"
    lines = [
        ("checkpoint", facts["checkpoint"]),
        ("kind", "generator (tokenizer and predictor)" if facts["kind"] == "generator" else "tokenizer"),
        ("parameters", f"{parameters['total']}: {parts}"),
        ("codec", f"{facts['codec']}, {facts['sample_rate']:,} Hz, hop {facts['hop']} samples"),
        ("clip", f"{facts['clip_samples']:,} samples, {facts['clip_seconds']:.3f} s"),
        ("scales", f"{facts['scales']}: {facts['schedule']}"),
        ("codes", f"{books} of {facts['codebook_size']:,}"),
        (
            "rate",
            f"{facts['tokens_per_clip']} tokens, {facts['bits_per_clip']:,.0f} bits a clip, "
            f"{facts['kbit_per_second']:.2f} kbit/s",
        ),
    ]
    for name, values in facts.get("conditions", {}).items():
        lines.append((f"condition {name}", _values(values)))
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
