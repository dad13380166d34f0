"""Weights of published next-scale systems: state dicts in another layout, read into this project's modules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from next_scale.errors import UserError
from next_scale.loading import load_weights
from next_scale.weights_file import read_weights_file

HEAD_WIDTH = 64
_SHOWN = 5  # names that one message lists


@dataclass(frozen=True)
class Kind:
    """A sort of published model: what messages call it, the option that names its file, keys that tell it, and a
    pattern of keys that are no weights."""

    title: str
    option: str
    marks: tuple[str, ...]
    ignored: str = ""


@dataclass(frozen=True)
class Weights:
    """A published state dict, and where it came from.

    Attributes:
        kind: which of the two models.
        source: for messages.
        tensors: by their published names.
    """

    kind: Kind
    source: str
    tensors: Mapping[str, Tensor]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises UserError where it is missing."""
        if name not in self.tensors:
            raise UserError(f"{self.source} is no whole {self.kind.title}: it lacks {name}")
        return tuple(self.tensors[name].shape)

    def count(self, prefix: str) -> int:
        """How many modules are numbered right after `prefix`."""
        rest = (name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix))
        numbers = [int(text.split(".")[0]) for text in rest if text.split(".")[0].isdigit()]
        return max(numbers, default=-1) + 1


def read_weights(path: str | Path, kind: Kind, others: Sequence[Kind] = ()) -> Weights:
    """Read a ``.pth`` file (nothing in it is executed) or a ``.safetensors`` one.

    The state dict may lie inside others, as in checkpoints that trainers write.

    Args:
        others: kinds that it may be mistaken for.

    Raises:
        UserError: no such file, truncated, not weights only, or not the model that was asked for.
    """
    loaded = read_weights_file(path)
    found = _find(loaded, kind)
    if found is None:
        for other in others:
            if _find(loaded, other) is not None:
                raise UserError(f"{path} is a {other.title}, not a {kind.title}; give it as {other.option}")
        raise UserError(f"{path} holds no {kind.title}: it has none of {', '.join(kind.marks)}")
    return Weights(kind, str(path), found)


def _find(loaded: object, kind: Kind, depth: int = 4) -> dict[str, Tensor] | None:
    """The first state dict of that kind in nested dictionaries; names may begin as those of a wrapped module do."""
    if not isinstance(loaded, Mapping) or depth == 0:
        return None
    for wrap in ("", "module."):
        if any(isinstance(loaded.get(wrap + mark), Tensor) for mark in kind.marks):
            return {str(name).removeprefix(wrap): value for name, value in loaded.items() if isinstance(value, Tensor)}
    return next((found for value in loaded.values() if (found := _find(value, kind, depth - 1)) is not None), None)


def phi_names(weights: Weights, prefix: str) -> list[str]:
    """Published names of the phi's: some shared by neighbouring scales, one for all, or one a scale."""
    if shared := weights.count(f"{prefix}qresi_ls."):
        return [f"{prefix}qresi_ls.{i}" for i in range(shared)]
    if f"{prefix}qresi.weight" in weights.tensors:
        return [f"{prefix}qresi"]
    return [f"{prefix}{i}" for i in range(weights.count(prefix))]


def phi_options(weights: Weights, prefix: str, ratio: float) -> dict:
    """How many phi's there are and where they stand, for :class:`next_scale.quantizer.MultiScaleQuantizer`."""
    names = phi_names(weights, prefix)
    return {
        "phis": len(names),
        "phi_kernel": weights.shape(f"{names[0]}.weight")[-1] if names else 3,
        "phi_ratio": ratio,
        "phi_margin": 1 / 12 if len(names) == 4 else None,
    }


def take(model: nn.Module, weights: Weights, published: Callable[[str], list[str]]) -> None:
    """Fill a model whose tensors have these published names (several: stacked).

    Raises:
        UserError: missing tensors, ones that the model has no place for, or another shape.
    """
    own = model.state_dict()
    names = {name: published(name) for name in own}
    wanted = {name for parts in names.values() for name in parts}
    lacking = [name for name in wanted if name not in weights.tensors]
    extra = [name for name in weights.tensors if name not in wanted and not re.fullmatch(weights.kind.ignored, name)]
    problems = [f"lacks {_some(lacking)}"] * bool(lacking) + [f"has the unknown {_some(extra)}"] * bool(extra)
    if problems:
        raise UserError(f"{weights.source} is no {weights.kind.title} that is known: it {' and '.join(problems)}")
    state = {}
    for name, parts in names.items():
        tensors = [weights.tensors[part] for part in parts]
        shape = own[name].shape if len(parts) == 1 else own[name].shape[1:]
        for part, tensor in zip(parts, tensors, strict=True):
            if _squeezed(tensor.shape) != _squeezed(shape):
                raise UserError(f"{weights.source}: {part} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        state[name] = (torch.stack(tensors) if len(parts) > 1 else tensors[0]).reshape(own[name].shape)
    load_weights(model, state)


def _squeezed(shape: Sequence[int]) -> list[int]:
    """A shape without its ones, in which the two layouts differ."""
    return [side for side in shape if side != 1]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more


_TRANSFORMER = (
    ("start_embed", "pos_start"),
    ("position_embed", "pos_1LC"),
    ("level_embed", "lvl_embed.weight"),
    (r"transformer\.blocks\.(\d+)\.attention\.qkv\.(\w+)", r"blocks.\1.attn.mat_qkv.\2"),
    (r"transformer\.blocks\.(\d+)\.attention\.log_scale", r"blocks.\1.attn.scale_mul_1H11"),
    (r"transformer\.blocks\.(\d+)\.attention\.(.+)", r"blocks.\1.attn.\2"),
    (r"transformer\.blocks\.(\d+)\.mlp_in\.(\w+)", r"blocks.\1.ffn.fc1.\2"),
    (r"transformer\.blocks\.(\d+)\.mlp_out\.(\w+)", r"blocks.\1.ffn.fc2.\2"),
    (r"transformer\.modulation\.(\d+)\.(\w+)", r"blocks.\1.ada_lin.1.\2"),
    (r"transformer\.final_modulation\.(\w+)", r"head_nm.ada_lin.1.\1"),
    (r"transformer\.head\.(\w+)", r"head.\1"),
)  # name in the predictor -> name in VAR; others are the same


def transformer_name(name: str) -> str:
    """Name in VAR, and in what is built like it, of a tensor of our predictor."""
    for pattern, text in _TRANSFORMER:
        if found := re.fullmatch(pattern, name):
            return found.expand(text)
    return name


def transformer_options(weights: Weights, heads: int | None = None) -> dict:
    """Sizes of a transformer built like VAR's, for :class:`next_scale.predictors.next_scale.NextScale`.

    Args:
        heads: their number, which shapes tell only where q and k are normalised; else heads of 64 are assumed.

    Raises:
        UserError: tensors that tell them are missing.
    """
    width = weights.shape("word_embed.weight")[0]
    scales = "blocks.0.attn.scale_mul_1H11"
    qk_norm = scales in weights.tensors
    heads = weights.shape(scales)[1] if qk_norm else heads or max(1, width // HEAD_WIDTH)
    return {
        "codebook_size": weights.shape("head.weight")[0],
        "latent_channels": weights.shape("word_embed.weight")[1],
        "width": width,
        "depth": weights.count("blocks."),
        "heads": heads,
        "mlp_ratio": weights.shape("blocks.0.ffn.fc1.weight")[0] / width,
        "shared_modulation": "shared_ada_lin.1.weight" in weights.tensors,
        "qk_norm": qk_norm,
        "softmax_scale": None if qk_norm else 0.25 / math.sqrt(width / heads),
    }


def check_pair(weights: Weights, codes: int, channels: int, transformer: Weights) -> None:
    """Check that a transformer was made for a tokenizer with so many codes and channels in its pyramid.

    Raises:
        UserError: it was not.
    """
    for what, ours, theirs in (
        ("codes", codes, transformer.shape("head.weight")[0]),
        ("latent channels", channels, transformer.shape("word_embed.weight")[1]),
    ):
        if ours != theirs:
            raise UserError(
                f"{weights.source} has {ours} {what} and {transformer.source} {theirs}: they do not belong together"
            )
