"""Embeddings that `generate` is asked for: from files, from descriptions, and from recordings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from next_scale.commands.backend import Vectors
from next_scale.errors import UserError, printable

if TYPE_CHECKING:
    from next_scale.model import Generator

_SUFFIXES = (".npy", ".safetensors")


def requested_vectors(model: Generator, args: argparse.Namespace) -> dict[str, Vectors]:
    """See :meth:`next_scale.commands.backend.Backend.vectors`."""
    files = [text for text in args.condition if "=" not in text and text.endswith(_SUFFIXES)]
    if not (files or args.prompt or args.prompt_audio):
        return {}
    if len(model.vectors) != 1:
        known = ", ".join(f"--{name}" for name in model.condition_spec) or "none"
        raise UserError(f"this model takes no embedding, and so no prompt; its conditions: {known}")
    import torch

    from audio_var.clap import MODEL, Clap, read_embeddings

    ((field, size),) = model.vectors.items()
    args.condition = [text for text in args.condition if text not in files]
    names, values = [], []
    for file in files:
        found = read_embeddings(file, size)
        stem = Path(file).stem
        names += [stem] if len(found) == 1 else [f"{stem}-{row:03}" for row in range(len(found))]
        values += list(found)
    if args.prompt or args.prompt_audio:
        for text in args.prompt:
            if not text.strip():
                raise UserError("the prompt is empty: describe what shall be heard")
        clap = Clap(args.clap_model or MODEL)
        names += [*map(printable, args.prompt), *(Path(file).stem for file in args.prompt_audio)]
        values += [clap.of_text(text) for text in args.prompt]
        values += [clap.of_audio(file) for file in args.prompt_audio]
    if any(len(value) != size for value in values):
        raise UserError(f"{clap.source} gives embeddings of {len(values[-1])} numbers, and the model takes {size}")
    return {field: Vectors(names, torch.stack(values))}
