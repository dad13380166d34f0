"""VAR's published weights (arXiv 2404.02905): state dicts in the official layout, read into this project's models."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from image_var.autoencoder import ConvAutoencoder
from next_scale.errors import UserError
from next_scale.loading import without_weights
from next_scale.model import Generator
from next_scale.predictors import NextScale
from next_scale.published import (
    Kind,
    Weights,
    check_pair,
    phi_names,
    phi_options,
    take,
    transformer_name,
    transformer_options,
)
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer

SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SAMPLING = SamplingOptions(cfg=1.5, cfg_ramp=True, top_k=900, top_p=0.96)  # of the published scores
PHI_RATIO = 0.5
_PHIS = "quantize.quant_resi."

VAE = Kind(
    "VAR autoencoder",
    "--vae",
    ("encoder.conv_in.weight", "decoder.conv_in.weight", "quantize.embedding.weight"),
    r"quantize\.ema_vocab_hit_SV",
)
VAR = Kind(
    "VAR transformer",
    "--var",
    ("pos_1LC", "class_emb.weight", "head_nm.ada_lin.1.weight"),
    r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias",
)


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
    phis = phi_names(vae, _PHIS)
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
            cosine=cosine,
            update="gradient",
            **phi_options(vae, _PHIS, phi_ratio),
        )
        tokenizer = Tokenizer(autoencoder, quantizer)

    def published(name: str) -> list[str]:
        if name == "quantizer.codebooks.0.weight":
            return ["quantize.embedding.weight"]
        if phi := re.fullmatch(r"quantizer\.phis\.(\d+)\.conv\.(\w+)", name):
            return [f"{phis[int(phi[1])]}.{phi[2]}"]
        return [name.removeprefix("autoencoder.")]

    take(tokenizer, vae, published)
    return tokenizer.eval()


def build_predictor(var: Weights, schedule: Schedule, heads: int | None = None) -> NextScale:
    """The predictor that a published transformer is, every size read off the shapes.

    Args:
        schedule: see :func:`schedule_of`.
        heads: their number, which shapes tell only where q and k are normalised; else heads of 64 are assumed.

    Raises:
        UserError: tensors are missing, of impossible shapes, or too many.
    """
    classes, _ = var.shape("class_emb.weight")
    options = transformer_options(var, heads)
    depth, shared = options["depth"], options["shared_modulation"]
    with without_weights():
        spec = {"label": list(range(classes - 1))}
        predictor = NextScale(schedule, spec=spec, drop_path=0.1 * depth / 24, **options)

    def published(name: str) -> list[str]:
        if name == "conditioner.tables.0.weight":
            return ["class_emb.weight"]
        if name == "transformer.offset":
            return [f"blocks.{i}.ada_gss" for i in range(depth)]
        name = transformer_name(name)
        return [re.sub(r"blocks\.0\.ada_lin", "shared_ada_lin", name) if shared else name]

    take(predictor, var, published)
    return predictor.eval()


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
    check_pair(vae, *vae.shape("quantize.embedding.weight"), var)
    return Generator(
        build_tokenizer(vae, schedule, phi_ratio, cosine), build_predictor(var, schedule, heads), SAMPLING
    ).eval()
