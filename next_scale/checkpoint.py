"""Checkpoints: weights as safetensors, everything else as JSON; nothing in them is ever executed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from next_scale.errors import UserError, first_line
from next_scale.hub import hub_file
from next_scale.joint.generator import JointGenerator
from next_scale.loading import check_fit, load_weights, without_weights
from next_scale.model import Generator, tokenizer_of
from next_scale.predictors import predictor_class
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.tokenizer import Tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = "next-scale"
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")  # of files, where a hub id may have a point too

Model = Tokenizer | Generator | JointGenerator

_AUTOENCODERS: dict[str, Callable[..., nn.Module]] = {}


def register_autoencoder(name: str, build: Callable[..., nn.Module]) -> None:
    """Let checkpoints name an autoencoder: ``build(**config)`` makes it. Backends register theirs on import."""
    _AUTOENCODERS[name] = build


def _parts_of(tokenizer: Tokenizer) -> dict:
    return {
        "autoencoder": {"name": tokenizer.autoencoder.name, **tokenizer.autoencoder.to_config()},
        "quantizer": tokenizer.quantizer.to_config(),
    }


def _config_of(model: nn.Module) -> dict:
    if isinstance(model, JointGenerator):
        tokenizers = {name: _parts_of(tokenizer) for name, tokenizer in model.tokenizers.items()}
        return {"format": FORMAT, "version": 1, "kind": "joint", "tokenizers": tokenizers, **model.to_config()}
    config = {
        "format": FORMAT,
        "version": 1,
        "kind": "generator" if isinstance(model, Generator) else "tokenizer",
        **_parts_of(tokenizer_of(model)),
    }
    if isinstance(model, Generator):
        predictor = {"name": model.predictor.name, **model.predictor.to_config()}
        config |= {"predictor": predictor, "sampling": asdict(model.sampling)}
    return config


def save_pretrained(model: Model, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write ``model.safetensors`` (which carries the configuration too) and ``config.json`` into `folder`.

    Args:
        dtype: store floating-point weights so, ``torch.float16`` for half the size; they load as float32.

    Raises:
        UserError: the folder cannot be written; what was there before stays whole.
    """
    folder = Path(folder)
    config = json.dumps(_config_of(model), indent=1)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
            save_file(state, Path(scratch, WEIGHTS), metadata={"config": config})
            Path(scratch, CONFIG).write_text(config + "\n")
            os.chmod(Path(scratch, WEIGHTS), Path(scratch, CONFIG).stat().st_mode)  # safetensors keeps others out
            for name in (WEIGHTS, CONFIG):
                os.replace(Path(scratch, name), folder / name)
    except (OSError, SafetensorError) as error:  # the latter where the disk is full
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write the checkpoint to {folder}: {reason}") from error
    return folder


def from_pretrained(source: str | Path, device: str | torch.device = "cpu") -> Model:
    """Load a model from a folder, a ``.safetensors`` file, or the hub: ``owner/name`` or ``owner/name@revision``.

    Raises:
        UserError: nothing there, not a checkpoint of ours, truncated, or weights that do not fit the configuration.
    """
    path = _locate(source)
    config, state = _read(path)
    model = _build(config, path, state)
    check_fit(model, state, path)
    load_weights(model, state)
    return model.eval().to(device)


def autoencoder_name(source: str | Path) -> str:
    """Name of a checkpoint's autoencoder, from the header of the file alone.

    Raises:
        UserError: nothing there, not a checkpoint of ours, truncated, a joint model, or a configuration without a name.
    """
    path = _locate(source)
    config, _ = _read(path, tensors=False)
    if config.get("kind") == "joint":
        raise UserError(f"{source} is a joint model of {_named(config)}; use next-scale joint generate")
    try:
        return str(config["autoencoder"]["name"])
    except (KeyError, TypeError) as error:
        raise _unbuildable(path, error) from error


def _locate(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise UserError(f"no {WEIGHTS} in the folder {path}; is it a checkpoint?")
        return path / WEIGHTS
    if path.is_file():
        return path
    text = str(source)
    local = text.startswith((".", "/")) or path.parent.is_dir() or path.suffix in _SUFFIXES
    if text.count("/") != 1 or local:
        raise UserError(f"no checkpoint at {source}; give a folder, a .safetensors file, or a hub id like owner/name")
    return hub_file(text, WEIGHTS)


def _read(path: Path, tensors: bool = True) -> tuple[dict, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in (file.keys() if tensors else ())}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {first_line(error)}") from error
    try:
        config = json.loads(metadata["config"])
        known = config["format"] == FORMAT
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise UserError(f"{path} is a safetensors file but not a checkpoint of this project: it has no configuration")
    if config.get("version") != 1:
        raise UserError(f"{path} has checkpoint version {config.get('version')}; this program reads version 1")
    return config, state


def _named(config: dict) -> str:
    parts = config.get("tokenizers")
    return ", ".join(map(str, parts)) if isinstance(parts, dict) else "several parts"


def _tokenizer(config: dict, path: Path) -> Tokenizer:
    options = dict(config["autoencoder"])
    name = options.pop("name")
    if name not in _AUTOENCODERS:
        raise UserError(f"{path} needs the autoencoder '{name}'; known here: {', '.join(_AUTOENCODERS) or 'none'}")
    return Tokenizer(_AUTOENCODERS[name](**options), MultiScaleQuantizer.from_config(config["quantizer"]))


def _build(config: dict, path: Path, state: dict[str, Tensor]) -> Model:
    try:
        if config["kind"] == "joint":
            tokenizers = {name: _tokenizer(part, path) for name, part in config["tokenizers"].items()}
            definition = state["definition"].numpy().tobytes() if "definition" in state else b""
            return JointGenerator.from_config(config, tokenizers, definition)
        tokenizer = _tokenizer(config, path)
        if config["kind"] == "tokenizer":
            return tokenizer
        options = dict(config["predictor"])
        # the first checkpoints had no name
        kind = predictor_class(options.pop("name", "any_length" if "strides" in options else "next_scale"))
        with without_weights():  # of a codec, which may bring its own, there are few
            predictor = kind.from_config(options)
        return Generator(tokenizer, predictor, SamplingOptions(**config["sampling"]))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _unbuildable(path, error) from error


def _unbuildable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} has a configuration that does not build a model: {error!r}")
