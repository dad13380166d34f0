"""Files of the small networks that judge what is generated: weights as safetensors, their arguments as JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from next_scale.checkpoint import CONFIG, WEIGHTS
from next_scale.errors import UserError, first_line
from next_scale.provenance import KEY

Judge = TypeVar("Judge", bound=nn.Module)


def save_judge(model: nn.Module, folder: str | os.PathLike, form: str, provenance: dict | None = None) -> None:
    """Write ``model.safetensors`` (float16) and ``config.json``, which names the format `form`.

    Args:
        model: its ``config`` holds the arguments that build it again.
        provenance: JSON values kept with these, see :mod:`next_scale.provenance`.

    Raises:
        UserError: the folder cannot be written; what was there before stays whole.
    """
    folder = Path(folder)
    config = {"format": form, "version": 1, **model.config} | ({} if provenance is None else {KEY: provenance})
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
            Path(scratch, WEIGHTS).write_bytes(save({name: value.cpu().contiguous() for name, value in state.items()}))
            Path(scratch, CONFIG).write_text(json.dumps(config) + "\n")
            for name in (WEIGHTS, CONFIG):
                os.replace(Path(scratch, name), folder / name)
    except OSError as error:
        raise UserError(f"cannot write the evaluator to {folder}: {error.strerror or error}") from error


def load_judge(build: Callable[..., Judge], folder: str | os.PathLike, form: str, program: str) -> Judge:
    """Build the network of a folder, in eval mode: ``build(**config)``.

    Args:
        program: whose ``fit evaluator`` trains one, for the message.

    Raises:
        UserError: the folder holds no whole network of this format.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if (config.pop("format"), config.pop("version")) != (form, 1):
            raise ValueError("another format")
        config.pop(KEY, None)
        model = build(**config)
        state = load_file(folder / WEIGHTS)
        model.load_state_dict({name: state[name].to(value.dtype) for name, value in model.state_dict().items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no evaluator ({first_line(error)}): train one with {program} fit evaluator"
        ) from error
    return model.eval()
