"""The published weights of SAT and AAR (arXiv 2408.09027): state dicts in the official layout, read into our models."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from audio_var.codecs.seanet import SeanetCodec
from audio_var.codecs.weights import weight_norm_names
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

LENGTHS = (1, 2, 4, 6, 9, 12, 16, 20, 25, 31, 37, 43, 50, 58, 66, 75)  # of the published token maps: one second
SAMPLING = SamplingOptions(cfg=4.0, cfg_ramp=True, top_k=200, top_p=0.95)  # of the published inference
SAMPLE_RATE = 24000
PHI_RATIO = 0.5
FIELD = "clap"  # of the condition: the embedding of what shall be heard
_PHIS = "quantizer.vq.quant_resi."

SAT = Kind(
    "SAT tokenizer",
    "--sat",
    ("quantizer.vq.layers.0._codebook.embed", "quantizer.vq.project_in.weight", "encoder.model.0.conv.conv.bias"),
    r"quantizer\.vq\.layers\.\d+\._codebook\.(embed_avg|cluster_size|inited)",
)
AAR = Kind(
    "AAR transformer",
    "--aar",
    ("class_emb.fc1.weight", "uncond_embedding", "pos_1LC"),
    r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias",
)


def build_tokenizer(
    sat: Weights, schedule: Schedule, sample_rate: int = SAMPLE_RATE, causal: bool = False,
    phi_ratio: float = PHI_RATIO,
) -> Tokenizer:  # fmt: skip
    """The tokenizer that a published SAT is, every size read off the shapes.

    Args:
        schedule: of its token maps, see :func:`schedule_of`.
        sample_rate: in Hz, which no shape tells.
        causal: the codec pads only the past (the released ones do not).
        phi_ratio: share of the convolution in each phi.

    Raises:
        UserError: tensors are missing, of impossible shapes, or too many.
    """
    books = sat.count("quantizer.vq.layers.")
    codes, channels = sat.shape("quantizer.vq.layers.0._codebook.embed")
    codec = SeanetCodec(sample_rate=sample_rate, causal=causal, **_codec_sizes(sat))
    quantizer = MultiScaleQuantizer(
        schedule,
        codec.latent_channels,
        codes,
        channels=channels,
        shared_codebook=books == 1 and schedule.scales > 1,
        **phi_options(sat, _PHIS, phi_ratio),
    )
    phis = phi_names(sat, _PHIS)

    def published(name: str) -> list[str]:
        if book := re.fullmatch(r"quantizer\.codebooks\.(\d+)\.weight", name):
            return [f"quantizer.vq.layers.{book[1]}._codebook.embed"]
        if phi := re.fullmatch(r"quantizer\.phis\.(\d+)\.conv\.(\w+)", name):
            return [f"{phis[int(phi[1])]}.{phi[2]}"]
        if name.startswith("quantizer."):
            return [f"quantizer.vq.{name.removeprefix('quantizer.')}"]
        names = weight_norm_names(name.removeprefix("autoencoder."))
        return [next((one for one in names if one in sat.tensors), names[0])]

    tokenizer = Tokenizer(codec, quantizer)
    take(tokenizer, sat, published)
    return tokenizer.eval()


def _codec_sizes(sat: Weights) -> dict:
    """Arguments of the codec, from the shapes of its convolutions."""
    kernels = {}  # number in the encoder -> name of its kernel
    for name in sat.tensors:
        if found := re.match(r"encoder\.model\.(\d+)\.conv\.conv\.", name):
            kernels[int(found[1])] = _kernel_name(sat, found[0])
    if len(kernels) < 3:
        raise UserError(f"{sat.source} is no whole {sat.kind.title}: it lacks kernels of encoder.model")
    first, *strided, last = (kernels[number] for number in sorted(kernels))
    for name in strided:
        if sat.shape(name)[2] % 2:
            raise UserError(f"{sat.source}: {name} has shape {sat.shape(name)}, where a stride has twice as many taps")

    def count(pattern: str) -> int:
        return sum(re.fullmatch(rf"encoder\.model\.\d+\.{pattern}", name) is not None for name in sat.tensors)

    return {
        "dimension": sat.shape(last)[0],
        "n_filters": sat.shape(first)[0],
        "ratios": [sat.shape(name)[2] // 2 for name in reversed(strided)],
        "n_residual_layers": math.ceil(count(r"shortcut\.conv\.conv\.bias") / len(strided)),
        "lstm": count(r"lstm\.weight_ih_l\d+"),
        "norm": "none" if "encoder.model.0.conv.conv.weight" in sat.tensors else "weight_norm",
    }


def _kernel_name(sat: Weights, layer: str) -> str:
    """Name of a convolution's kernel, with weight norm or without. Raises UserError where it is missing."""
    for end in ("weight", "parametrizations.weight.original1", "weight_v"):
        if layer + end in sat.tensors:
            break
    if len(sat.shape(layer + end)) != 3:
        raise UserError(f"{sat.source}: {layer + end} has shape {sat.shape(layer + end)}, not that of a kernel")
    return layer + end


def build_predictor(aar: Weights, schedule: Schedule, heads: int | None = None) -> NextScale:
    """The predictor that a published AAR is, every size read off the shapes. Its condition is a vector, `FIELD`.

    Args:
        schedule: of its token maps, see :func:`schedule_of`.
        heads: see :func:`next_scale.published.transformer_options`.

    Raises:
        UserError: tensors are missing, of impossible shapes, or too many.
    """
    vectors = {FIELD: aar.shape("class_emb.fc1.weight")[1]}
    options = transformer_options(aar, heads)
    with without_weights():
        predictor = NextScale(schedule, vectors=vectors, drop_path=0.1 * options["depth"] / 24, **options)

    def published(name: str) -> list[str]:
        if name == "conditioner.embeddings.0.null":
            return ["uncond_embedding"]
        if layer := re.fullmatch(r"conditioner\.embeddings\.0\.(fc\d)\.weight", name):
            return [f"class_emb.{layer[1]}.weight"]
        return [transformer_name(name)]

    take(predictor, aar, published)
    return predictor.eval()


def schedule_of(sat: Weights, aar: Weights | None = None, lengths: Sequence[int] | None = None) -> Schedule:
    """The schedule of a published model: as given, as AAR's level indices say, or the published one.

    Args:
        lengths: of its token maps, where known.

    Raises:
        UserError: the models have other numbers of scales or tokens.
    """
    choice = tuple(lengths or LENGTHS)
    if lengths is None and aar is not None and (levels := aar.tensors.get("lvl_1L")) is not None:
        choice = tuple(levels.flatten().long().bincount().tolist())
    books = sat.count("quantizer.vq.layers.")
    if books not in (1, len(choice)):
        raise UserError(
            f"{sat.source} has codebooks of {books} scales, not of {len(choice)}; give their lengths with --scales"
        )
    if aar is not None:
        tokens, scales = aar.shape("pos_1LC")[1], aar.shape("lvl_embed.weight")[0]
        if (tokens, scales) != (sum(choice), len(choice)):
            raise UserError(
                f"{aar.source} has {tokens} tokens in {scales} scales, not those of {' '.join(map(str, choice))}; "
                "give the lengths of its token maps with --scales"
            )
    return Schedule(tuple((length,) for length in choice))


def build_generator(
    sat: Weights, aar: Weights, lengths: Sequence[int] | None = None, sample_rate: int = SAMPLE_RATE,
    causal: bool = False, phi_ratio: float = PHI_RATIO, heads: int | None = None,
) -> Generator:  # fmt: skip
    """Both models as one, with the sampling of the published inference; arguments as in the functions above.

    Raises:
        UserError: either is not whole, or they do not belong together.
    """
    check_pair(sat, *sat.shape("quantizer.vq.layers.0._codebook.embed"), aar)
    schedule = schedule_of(sat, aar, lengths)
    tokenizer = build_tokenizer(sat, schedule, sample_rate, causal, phi_ratio)
    return Generator(tokenizer, build_predictor(aar, schedule, heads), SAMPLING).eval()
