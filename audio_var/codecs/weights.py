"""Weights that others published: found, read without running anything in them, and checked tensor by tensor."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from next_scale.errors import UserError, first_line
from next_scale.loading import check_fit
from next_scale.model import weights_digest
from next_scale.weights_file import read_weights_file


def need(module: str, package: str) -> ModuleType:
    """Import an optional module. Raises UserError with the pip command where its package is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"this codec needs the package {package} ({error}): pip install {package}") from error


def read_json(path: str | Path) -> dict:
    """A JSON object. Raises UserError where the file holds none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable JSON ({first_line(error)}): download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: download it again")
    return value


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors of a ``.safetensors`` file or of one that ``torch.save`` wrote, and what is stored beside them.

    See :func:`next_scale.weights_file.read_weights_file`. Weights in a dictionary's ``state_dict`` are found there.

    Returns:
        name -> tensor, and the file's metadata ({} without).

    Raises:
        UserError: missing, damaged, holding anything that would have to be run, or no tensors.
    """
    metadata: dict = {}
    state = read_weights_file(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        metadata, state = state.get("metadata") or {}, state["state_dict"]
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds no named tensors: give a file of weights")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: the entry {name!r} is no tensor: give a file of weights")
    return dict(state), metadata if isinstance(metadata, dict) else {}


def fill(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Copy every tensor into the model. Weight norm may be written the old way (``weight_g``) or the new way.

    Raises:
        UserError: a tensor that is missing, left over, of another shape, or not finite, by name.
    """
    own = model.state_dict()
    state = _weight_norm_as_in(state, own)
    check_fit(model, state, source)
    for name in own:
        if state[name].is_floating_point() and not state[name].isfinite().all():
            raise UserError(f"{source}: {name} has values that are not finite")
    model.load_state_dict({name: state[name].to(tensor.dtype) for name, tensor in own.items()})


_OLD_NEW = ((".weight_g", ".parametrizations.weight.original0"), (".weight_v", ".parametrizations.weight.original1"))


def weight_norm_names(name: str) -> list[str]:
    """A tensor's name, and with it, for magnitudes and directions of weight norm, the name of the other way."""
    for old, new in _OLD_NEW:
        for one, other in ((old, new), (new, old)):
            if name.endswith(one):
                return [name, name.removesuffix(one) + other]
    return [name]


def _weight_norm_as_in(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that the model gives to magnitudes and directions of weight norm."""
    return {next((one for one in weight_norm_names(name) if one in own), name): state[name] for name in state}


def digest_of(model: nn.Module) -> Tensor:
    """SHA-256 of a model's tensors and their names: (32,) uint8."""
    return torch.frombuffer(bytearray(weights_digest(model)), dtype=torch.uint8)
