"""Codecs by name. Each is imported only when asked for: `seanet` needs the encodec package, `spectral` nothing more."""

from __future__ import annotations

from functools import partial
from typing import Any

from audio_var.codecs.base import Codec
from next_scale.checkpoint import register_autoencoder
from next_scale.errors import UserError

CODECS = ("spectral", "seanet")


def build_codec(name: str, **options: Any) -> Codec:
    """Builds a codec from its name and the arguments of its class, as `Codec.to_config` returns them.

    Raises UserError for an unknown name or option.
    """
    if name == "spectral":
        from audio_var.codecs.spectral import SpectralCodec as kind
    elif name == "seanet":
        from audio_var.codecs.seanet import SeanetCodec as kind
    else:
        raise UserError(f"unknown codec '{name}': choose one of {', '.join(CODECS)}")
    try:
        return kind(**options)
    except TypeError as error:
        raise UserError(f"codec '{name}' cannot be built: {error}") from error


for _name in CODECS:
    register_autoencoder(_name, partial(build_codec, _name))
