"""Codecs by name. Each is imported only when asked for: all but `spectral` and `mel_grid` need a package."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from audio_var.codecs.base import Codec
from next_scale.allowance import check_types
from next_scale.checkpoint import register_autoencoder
from next_scale.errors import UserError, first_line

# name -> module here and class in it
CODECS = {
    "spectral": ("spectral", "SpectralCodec"),
    "mel_grid": ("mel_grid", "MelGridCodec"),
    "seanet": ("seanet", "SeanetCodec"),
    "encodec": ("encodec", "EncodecCodec"),
    "snac": ("snac", "SnacCodec"),
    "dac": ("dac", "DacCodec"),
    "transformers": ("huggingface", "TransformersCodec"),
}


def build_codec(name: str, **options: Any) -> Codec:
    """Builds a codec from its name and the arguments of its class, as `Codec.to_config` returns them.

    Raises UserError for an unknown name or option, or where the codec's package is not installed.
    """
    if name not in CODECS:
        raise UserError(f"unknown codec '{name}': choose one of {', '.join(CODECS)}")
    module, kind = CODECS[name]
    codec = getattr(import_module(f"audio_var.codecs.{module}"), kind)
    check_types(options, codec)
    try:
        return codec(**options)
    except TypeError as error:
        raise UserError(f"codec '{name}' cannot be built: {first_line(error)}") from error


for _name in CODECS:
    register_autoencoder(_name, partial(build_codec, _name))
