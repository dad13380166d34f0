"""EnCodec, DAC and Mimi (arXiv 2410.00037) as the `transformers` library has them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_var.codecs.pretrained import Levels, PretrainedCodec, built, factorized_levels
from audio_var.codecs.weights import need, read_json
from next_scale.errors import UserError, first_line
from next_scale.hub import hub_file

MODELS = {"encodec": "EncodecModel", "dac": "DacModel", "mimi": "MimiModel"}


class TransformersCodec(PretrainedCodec):
    """The encoder and decoder of one of that library's codecs. Its licence is Apache 2.0; weights have their own.

    Mimi quantizes two projections of one latent, a semantic one and an acoustic one, each with codebooks of its own.
    Here the latent is both projections side by side, and a code has zeros where the other projection stands: the
    residual quantization of the pair is that of both, code by code.

    Args:
        weights: a Hugging Face id such as ``facebook/encodec_24khz``, ``descript/dac_44khz`` or ``kyutai/mimi``, or a
            folder as the hub has it; None for random weights.
        architecture: fields of the model's configuration, with ``model_type`` (encodec, dac or mimi); weights bring
            their own.
        stereo, embed: see :class:`audio_var.codecs.pretrained.PretrainedCodec`.

    Raises:
        UserError: the package is absent, another kind of model, or the weights are not there or not whole.
    """

    name = "transformers"

    def __init__(
        self,
        weights: str | None = None,
        architecture: dict | None = None,
        stereo: bool = False,
        embed: bool = True,
    ):
        library = need("transformers", "transformers")
        if weights is not None:
            folder = Path(weights)
            architecture = read_json(folder / "config.json" if folder.is_dir() else hub_file(weights, "config.json"))
        kind = (architecture or {}).get("model_type")
        if kind not in MODELS:
            raise UserError(f"no codec of the model_type {kind!r}: choose one of {', '.join(MODELS)}")
        model = built(kind, lambda: _model(library, kind, weights, architecture))
        options, parts = {"encodec": _encodec, "dac": _dac, "mimi": _mimi}[kind](model)
        super().__init__(sample_rate=model.config.sampling_rate, stereo=stereo, **options)
        self.kind = kind
        self.config = {"architecture": architecture, "stereo": stereo}
        if not embed:
            self.config = {"weights": weights, "embed": False, "stereo": stereo}
        self.parts = nn.ModuleDict(parts)
        self.freeze(weights, embed)

    def encode_normal(self, waveform: Tensor) -> Tensor:
        if self.kind != "mimi":
            return self.parts["encoder"](waveform)
        latent = self.parts["encoder"](waveform).latents
        return torch.cat([self.parts["semantic_in"](latent), self.parts["acoustic_in"](latent)], 1)

    def decode_normal(self, latent: Tensor) -> Tensor:
        if self.kind != "mimi":
            return self.parts["decoder"](latent)
        semantic, acoustic = latent.chunk(2, 1)
        latent = self.parts["semantic_out"](semantic) + self.parts["acoustic_out"](acoustic)
        return self.parts["decoder"](latent).audio_values


def _model(library, kind: str, weights: str | None, architecture: dict) -> nn.Module:
    """The library's model, every tensor of which came from the weights, or with random ones."""
    cls = getattr(library, MODELS[kind])
    if weights is None:
        model = cls(cls.config_class.from_dict(architecture))
        for name, buffer in model.named_buffers():  # the library leaves codebooks zero, to be loaded
            if name.endswith((".embed", ".embed_sum")):
                nn.init.normal_(buffer, std=buffer.shape[1] ** -0.5)
        return model
    talk = library.utils.logging
    before = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity(talk.CRITICAL)  # its tables about tensors would be many lines, ours is one
    talk.disable_progress_bar()
    try:
        model, told = cls.from_pretrained(weights, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # damaged files of several formats
        raise UserError(f"{weights} gives no whole model ({first_line(error)[:200]}): download it again") from error
    finally:
        talk.set_verbosity(before[0])
        if before[1]:
            talk.enable_progress_bar()
    for name in sorted(told["missing_keys"]):
        raise UserError(f"{weights} lacks the tensor {name}")
    for name, *shapes in sorted(told["mismatched_keys"]):
        found, wanted = (tuple(shape) for shape in shapes)
        raise UserError(f"{weights}: {name} has shape {found}, expected {wanted}")
    for name in sorted(told["unexpected_keys"]):
        raise UserError(f"{weights} has a tensor that the model does not: {name}")
    return model


def _encodec(model: nn.Module) -> tuple[dict, dict[str, nn.Module]]:
    config = model.config
    books = tuple(layer.codebook.embed.detach().clone() for layer in model.quantizer.layers)
    options = {
        "hop": math.prod(config.upsampling_ratios), "latent_channels": config.hidden_size,
        "inner_channels": config.audio_channels, "normalize": config.normalize,
        "levels": Levels((1,) * len(books), books),
    }  # fmt: skip
    return options, {"encoder": model.encoder, "decoder": model.decoder}


def _dac(model: nn.Module) -> tuple[dict, dict[str, nn.Module]]:
    levels = factorized_levels(model.quantizer.quantizers, (1,) * len(model.quantizer.quantizers))
    options = {"hop": model.config.hop_length, "latent_channels": model.config.hidden_size, "levels": levels}
    return options, {"encoder": model.encoder, "decoder": model.decoder}


def _mimi(model: nn.Module) -> tuple[dict, dict[str, nn.Module]]:
    config, quantizer = model.config, model.quantizer
    semantic = quantizer.semantic_residual_vector_quantizer
    acoustic = quantizer.acoustic_residual_vector_quantizer
    width = config.codebook_dim
    books = [F.pad(layer.codebook.embed.detach(), (0, width)) for layer in semantic.layers]
    books += [F.pad(layer.codebook.embed.detach(), (width, 0)) for layer in acoustic.layers]
    options = {
        "hop": round(config.sampling_rate / config.frame_rate), "latent_channels": 2 * width,
        "inner_channels": config.audio_channels, "levels": Levels((1,) * len(books), tuple(books)),
    }  # fmt: skip
    parts = {"encoder": model.encoder, "decoder": model.decoder}
    for name, part in (("semantic", semantic), ("acoustic", acoustic)):
        parts |= {f"{name}_in": part.input_proj or nn.Identity(), f"{name}_out": part.output_proj or nn.Identity()}
    return options, parts
