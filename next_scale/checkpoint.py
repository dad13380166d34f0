"""Checkpoints: weights as safetensors, everything else as JSON; nothing in them is ever executed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from next_scale.allowance import Allowance, check_types
from next_scale.errors import UserError, first_line
from next_scale.files import settle
from next_scale.hub import hub_file
from next_scale.joint.generator import JointGenerator
from next_scale.loading import check_fit, load_weights, without_weights
from next_scale.model import Generator, tokenizer_of
from next_scale.predictors import NextScale, predictor_class
from next_scale.predictors.interface import Predictor
from next_scale.provenance import KEY
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import StrideSchedule
from next_scale.tokenizer import Tokenizer
from next_scale.transformer import Transformer

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


def save_pretrained(
    model: Model,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
    provenance: dict | None = None,
) -> Path:
    """Write ``model.safetensors`` (which carries the configuration too) and ``config.json`` into `folder`.

    Args:
        dtype: store floating-point weights so, ``torch.float16`` for half the size; they load as float32.
        state: the model's tensors where it does not have them whole itself, see :mod:`next_scale.sharding`.
        provenance: JSON values kept with the configuration, see :mod:`next_scale.provenance`.

    Raises:
        UserError: the folder cannot be written; what was there before stays whole.
    """
    folder = Path(folder)
    config = _config_of(model) | ({} if provenance is None else {KEY: provenance})
    config = json.dumps(config, indent=1)
    state = model.state_dict() if state is None else state
    state = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
            save_file(state, Path(scratch, WEIGHTS), metadata={"config": config})
            Path(scratch, CONFIG).write_text(config + "\n")
            os.chmod(Path(scratch, WEIGHTS), Path(scratch, CONFIG).stat().st_mode)  # safetensors keeps others out
            for name in (WEIGHTS, CONFIG):
                settle(Path(scratch, name))
            for name in (WEIGHTS, CONFIG):
                os.replace(Path(scratch, name), folder / name)
    except (OSError, SafetensorError) as error:  # the latter where the disk is full
        reason = getattr(error, "strerror", None) or error
        mend = "free space or write elsewhere"
        raise UserError(f"cannot write the checkpoint to {folder}: {reason}; {mend}") from error
    return folder


def from_pretrained(source: str | Path, device: str | torch.device = "cpu") -> Model:
    """Load a model from a folder, a ``.safetensors`` file, or the hub: ``owner/name`` or ``owner/name@revision``.

    Raises:
        UserError: nothing there, not a checkpoint of ours, truncated, or weights that do not fit the configuration,
            which is told before anything of the size that it asks for is allocated.
    """
    path = _locate(source)
    config, shapes = _read_header(path)
    model = _build(config, shapes, path)
    check_fit(model, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, path)
    try:
        load_weights(model, _read_tensors(path))
    except (RuntimeError, TypeError) as error:  # a kind of number that does not convert
        raise UserError(f"{path} has tensors that cannot be loaded: {first_line(error)}") from error
    return model.eval().to(device)


def autoencoder_name(source: str | Path) -> str:
    """Name of a checkpoint's autoencoder, from the header of the file alone.

    Raises:
        UserError: nothing there, not a checkpoint of ours, truncated, a joint model, or a configuration without a name.
    """
    path = _locate(source)
    config, _ = _read_header(path)
    if config.get("kind") == "joint":
        raise UserError(f"{source} is a joint model of {_named(config)}; use next-scale joint generate")
    try:
        return str(config["autoencoder"]["name"])
    except (KeyError, TypeError) as error:
        raise _unbuildable(path, error) from error


def provenance_of(source: str | Path) -> dict | None:
    """Where a checkpoint comes from, see :mod:`next_scale.provenance`; None where it does not tell.

    Raises:
        UserError: nothing there, not a checkpoint of ours, or truncated.
    """
    config, _ = _read_header(_locate(source))
    found = config.get(KEY)
    return found if isinstance(found, dict) else None


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


def _read_header(path: Path) -> tuple[dict, dict[str, list[int]]]:
    """The configuration, and the shape of every tensor; no tensor is read."""
    with _whole(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    try:
        config = json.loads(metadata["config"])
        known = config["format"] == FORMAT
    except (KeyError, TypeError, ValueError, RecursionError):
        known = False
    if not known:
        raise UserError(f"{path} is a safetensors file but not a checkpoint of this project: it has no configuration")
    if config.get("version") != 1:
        version = str(config.get("version"))[:20]
        raise UserError(f"{path} has checkpoint version {version}; this program reads version 1")
    return config, shapes


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with _whole(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what the reader of safetensors raises, whose header a stranger wrote, into one line."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {first_line(error)}") from error


def _named(config: dict) -> str:
    parts = config.get("tokenizers")
    return ", ".join(map(str, parts)) if isinstance(parts, dict) else "several parts"


def _build(config: dict, shapes: Mapping[str, list[int]], path: Path) -> Model:
    try:
        parts = config["tokenizers"].values() if config["kind"] == "joint" else [config]
        elsewhere = any(part["autoencoder"].get("weights") is not None for part in parts)
        with Allowance(shapes.values(), path, elsewhere):
            return _built(config, path)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # constructors given arbitrary values raise almost anything
        raise _unbuildable(path, error) from error


def _built(config: dict, path: Path) -> Model:
    if config["kind"] == "joint":
        tokenizers = {name: _built_tokenizer(part, path) for name, part in config["tokenizers"].items()}
        return JointGenerator.from_config(config, tokenizers, _read_definition(path))
    tokenizer = _built_tokenizer(config, path)
    if config["kind"] == "tokenizer":
        return tokenizer
    options = dict(config["predictor"])
    # the first checkpoints had no name
    kind = predictor_class(options.pop("name", "any_length" if "strides" in options else "next_scale"))
    check_types(options, Transformer, NextScale, kind)  # some families hand options on to these
    with without_weights():  # of a codec, which may bring its own, there are few
        predictor = kind.from_config(options)
    _check_pair(tokenizer, predictor, path)
    check_types(config["sampling"], SamplingOptions)
    return Generator(tokenizer, predictor, SamplingOptions(**config["sampling"]))


def _built_tokenizer(config: dict, path: Path) -> Tokenizer:
    options = dict(config["autoencoder"])
    name = options.pop("name")
    if name not in _AUTOENCODERS:
        raise UserError(f"{path} needs the autoencoder '{name}'; known here: {', '.join(_AUTOENCODERS) or 'none'}")
    check_types(config["quantizer"], MultiScaleQuantizer)
    return Tokenizer(_AUTOENCODERS[name](**options), MultiScaleQuantizer.from_config(config["quantizer"]))


def _read_definition(path: Path) -> bytes:
    """Of a language model's tokenizer, which text cannot be read without; empty where there is none."""
    with _whole(path), safe_open(path, framework="pt") as file:
        return file.get_tensor("definition").numpy().tobytes() if "definition" in file.keys() else b""


def _check_pair(tokenizer: Tokenizer, predictor: Predictor, path: Path) -> None:
    """Raise UserError where a predictor was made for other tokens than those of its tokenizer."""
    quantizer = tokenizer.quantizer
    strides = isinstance(quantizer.schedule, StrideSchedule)
    schedule = getattr(predictor, "strides", None) if strides else predictor.schedule
    if schedule != quantizer.schedule or predictor.codebook_size != quantizer.codebook_size:
        raise UserError(f"{path} has a predictor for other tokens than those of its tokenizer")


def _unbuildable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} has a configuration that does not build a model: {type(error).__name__}: {first_line(error)[:200]}"
    )
