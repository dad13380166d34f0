"""VAR's published weights (arXiv 2404.02905): state dicts in the official layout, read into this project's models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from image_var.autoencoder import ConvAutoencoder
from next_scale.errors import UserError
from next_scale.loading import load_weights, without_weights
from next_scale.model import Generator
from next_scale.predictors import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer
from next_scale.weights_file import read_weights_file

SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SAMPLING = SamplingOptions(cfg=1.5, cfg_ramp=True, top_k=900, top_p=0.96)  # of the published scores
PHI_RATIO = 0.5
HEAD_WIDTH = 64

_IGNORED = re.compile(r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias|quantize\.ema_vocab_hit_SV")
_SHOWN = 5  # names that one message lists


@dataclass(frozen=True)
class Kind:
    """One of the two models: what messages call it, the option that names its file, and keys that tell it."""

    title: str
    option: str
    marks: tuple[str, ...]


VAE = Kind(
    "VAR autoencoder", "--vae", ("encoder.conv_in.weight", "decoder.conv_in.weight", "quantize.embedding.weight")
)
VAR = Kind("VAR transformer", "--var", ("pos_1LC", "class_emb.weight", "head_nm.ada_lin.1.weight"))


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


# Reading files


def read_weights(path: str | Path, kind: Kind) -> Weights:
    """Read a ``.pth`` file (nothing in it is executed) or a ``.safetensors`` one.

    The state dict may lie inside others, as in checkpoints that VAR's trainer writes.

    Raises:
        UserError: no such file, truncated, not weights only, or not the model that was asked for.
    """
    path = Path(path)
    loaded = read_weights_file(path)
    found = _find(loaded, kind)
    if found is None:
        other = VAR if kind is VAE else VAE
        if _find(loaded, other) is not None:
            raise UserError(f"{path} is a {other.title}, not a {kind.title}; give it as {other.option}")
        raise UserError(f"{path} holds no {kind.title}: it has none of {', '.join(kind.marks)}")
    return Weights(kind, str(path), found)


def _find(loaded: object, kind: Kind, depth: int = 4) -> dict[str, Tensor] | None:
    """The first state dict of that kind in nested dictionaries."""
    if not isinstance(loaded, Mapping) or depth == 0:
        return None
    if any(isinstance(loaded.get(mark), Tensor) for mark in kind.marks):
        return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    return next((found for value in loaded.values() if (found := _find(value, kind, depth - 1)) is not None), None)


# Building models


def square_schedule(sides: Sequence[int]) -> Schedule:
    """The schedule of square maps of these sides."""
    return Schedule(tuple((side, side) for side in sides))


def build_tokenizer(
    vae: Weights, schedule: Schedule, phi_ratio: float = PHI_RATIO, cosine: bool = False
) -> Tokenizer:  # fmt: skip
    """The tokenizer that a published autoencoder is, every size read off the shapes.

    Args:
        schedule: of its token maps, which no shape tells.
        phi_ratio: share of the convolution in each phi.
        cosine: codes are looked up by direction (VAR's `using_znorm`).

    Raises:
        UserError: tensors are missing, of impossible shapes, or too many.
    """
    width, channels_in = vae.shape("encoder.conv_in.weight")[:2]
    levels = vae.count("encoder.down.")
    widths = [vae.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)]
    if not widths or any(w % width for w in widths):
        raise UserError(f"{vae.source} has {widths} channels a level, which are no multiples of {width}")
    codes, channels = vae.shape("quantize.embedding.weight")
    phis = _phi_names(vae)
    with without_weights():
        autoencoder = ConvAutoencoder(
            channels_in=channels_in,
            width=width,
            multipliers=[w // width for w in widths],
            encoder_blocks=vae.count("encoder.down.0.block."),
            decoder_blocks=vae.count("decoder.up.0.block."),
            attention=vae.count(f"encoder.down.{levels - 1}.attn.") > 0,
            middle_attention="encoder.mid.attn_1.qkv.weight" in vae.tensors,
            latent_channels=vae.shape("quant_conv.weight")[0],
        )
        quantizer = MultiScaleQuantizer(
            schedule,
            channels,
            codes,
            shared_codebook=True,
            phis=len(phis),
            phi_kernel=vae.shape(f"{phis[0]}.weight")[-1] if phis else 3,
            phi_ratio=phi_ratio,
            phi_margin=1 / 12 if len(phis) == 4 else None,
            cosine=cosine,
            update="gradient",
        )
        tokenizer = Tokenizer(autoencoder, quantizer)

    def published(name: str) -> list[str]:
        if name == "quantizer.codebooks.0.weight":
            return ["quantize.embedding.weight"]
        if phi := re.fullmatch(r"quantizer\.phis\.(\d+)\.conv\.(\w+)", name):
            return [f"{phis[int(phi[1])]}.{phi[2]}"]
        return [name.removeprefix("autoencoder.")]

    _take(tokenizer, vae, published)
    return tokenizer.eval()


def _phi_names(vae: Weights) -> list[str]:
    """Published names of the phi's: some shared by neighbouring scales, one for all, or one a scale."""
    prefix = "quantize.quant_resi."
    if shared := vae.count(f"{prefix}qresi_ls."):
        return [f"{prefix}qresi_ls.{i}" for i in range(shared)]
    if f"{prefix}qresi.weight" in vae.tensors:
        return [f"{prefix}qresi"]
    return [f"{prefix}{i}" for i in range(vae.count(prefix))]


def build_predictor(var: Weights, schedule: Schedule, heads: int | None = None) -> NextScale:
    """The predictor that a published transformer is, every size read off the shapes.

    Args:
        schedule: see :func:`schedule_of`.
        heads: their number, which shapes tell only where q and k are normalised; else heads of 64 are assumed.

    Raises:
        UserError: tensors are missing, of impossible shapes, or too many.
    """
    classes, width = var.shape("class_emb.weight")
    scales = "blocks.0.attn.scale_mul_1H11"
    qk_norm = scales in var.tensors
    heads = var.shape(scales)[1] if qk_norm else heads or max(1, width // HEAD_WIDTH)
    depth = var.count("blocks.")
    shared = "shared_ada_lin.1.weight" in var.tensors
    with without_weights():
        predictor = NextScale(
            schedule,
            codebook_size=var.shape("head.weight")[0],
            latent_channels=var.shape("word_embed.weight")[1],
            spec={"label": list(range(classes - 1))},
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=var.shape("blocks.0.ffn.fc1.weight")[0] / width,
            shared_modulation=shared,
            qk_norm=qk_norm,
            softmax_scale=None if qk_norm else 0.25 / math.sqrt(width / heads),
            drop_path=0.1 * depth / 24,
        )

    def published(name: str) -> list[str]:
        if name == "transformer.offset":
            return [f"blocks.{i}.ada_gss" for i in range(depth)]
        name = _published_name(name)
        return [re.sub(r"blocks\.0\.ada_lin", "shared_ada_lin", name) if shared else name]

    _take(predictor, var, published)
    return predictor.eval()


_NAMES = (
    (r"conditioner\.tables\.0\.weight", "class_emb.weight"),
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


def _published_name(name: str) -> str:
    for pattern, text in _NAMES:
        if found := re.fullmatch(pattern, name):
            return found.expand(text)
    return name


def schedule_of(var: Weights, sides: Sequence[int] | None = None) -> Schedule:
    """The schedule of a published transformer: as given, as its level indices say, or the published one of its length.

    Args:
        sides: of its token maps, where known.

    Raises:
        UserError: it has other numbers of tokens or scales than `sides`, or none are given and nothing tells them.
    """
    tokens, scales = var.shape("pos_1LC")[1], var.shape("lvl_embed.weight")[0]
    levels = var.tensors.get("lvl_1L")
    choices = [SIDES_256, SIDES_512]
    if sides is not None:
        choices = [tuple(sides)]
    elif levels is not None:
        choices.insert(0, tuple(math.isqrt(count) for count in levels.flatten().long().bincount().tolist()))
    for choice in choices:
        if len(choice) == scales and sum(side * side for side in choice) == tokens:
            return square_schedule(choice)
    raise UserError(
        f"{var.source} has {tokens} tokens in {scales} scales, not those of {' '.join(map(str, choices[0]))}; "
        "give the sides of its token maps with --scales"
    )


def build_generator(
    vae: Weights, var: Weights, sides: Sequence[int] | None = None, phi_ratio: float = PHI_RATIO,
    cosine: bool = False, heads: int | None = None,
) -> Generator:  # fmt: skip
    """Both models as one, with the sampling of the published scores; arguments as in the functions above.

    Raises:
        UserError: either is not whole, or they do not belong together.
    """
    schedule = schedule_of(var, sides)
    for what, ours, theirs in (
        ("codes", vae.shape("quantize.embedding.weight")[0], var.shape("head.weight")[0]),
        ("latent channels", vae.shape("quantize.embedding.weight")[1], var.shape("word_embed.weight")[1]),
    ):
        if ours != theirs:
            raise UserError(f"{vae.source} has {ours} {what} and {var.source} {theirs}: they do not belong together")
    return Generator(
        build_tokenizer(vae, schedule, phi_ratio, cosine), build_predictor(var, schedule, heads), SAMPLING
    ).eval()


def _take(model: nn.Module, weights: Weights, published: Callable[[str], list[str]]) -> None:
    """Fill a model whose tensors have these published names (several: stacked).

    Raises:
        UserError: missing tensors, ones that the model has no place for, or another shape.
    """
    own = model.state_dict()
    names = {name: published(name) for name in own}
    wanted = {name for parts in names.values() for name in parts}
    lacking = [name for name in wanted if name not in weights.tensors]
    extra = [name for name in weights.tensors if name not in wanted and not _IGNORED.fullmatch(name)]
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
