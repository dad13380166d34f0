"""SNAC (arXiv 2410.14411), whose own codes already are a pyramid: strides 4, 2, 1 or 8, 4, 2, 1."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from audio_var.codecs.pretrained import PretrainedCodec, built, factorized_levels
from audio_var.codecs.weights import fill, need, read_json, read_state
from next_scale.errors import UserError
from next_scale.hub import hub_file

HUB = {name: f"hubertsiuzdak/snac_{name}" for name in ("24khz", "32khz", "44khz")}
_WEIGHTS = "pytorch_model.bin"


class SnacCodec(PretrainedCodec):
    """The encoder and decoder of the `snac` package (MIT); its decoder adds noise drawn anew in every call.

    Args:
        weights: ``24khz``, ``32khz`` or ``44khz`` for the published ones, another Hugging Face id, or a folder with
            ``config.json`` and ``pytorch_model.bin``; None for random weights.
        architecture: arguments of ``snac.SNAC`` where there are no weights that tell.
        embed: see :class:`audio_var.codecs.pretrained.PretrainedCodec`.

    Raises:
        UserError: the package is absent, or the weights are not there or not whole.
    """

    name = "snac"

    def __init__(self, weights: str | None = None, architecture: dict | None = None, embed: bool = True):
        package = need("snac", "snac")
        state = None
        if weights is not None:
            config, path = _locate(HUB.get(weights, weights))
            architecture = read_json(config)
            state, _ = read_state(path)
        model = built("snac", lambda: package.SNAC(**(architecture or {})))
        if state is not None:
            fill(model, state, path)
        super().__init__(
            sample_rate=model.sampling_rate,
            hop=int(model.hop_length),
            latent_channels=model.latent_dim,
            levels=factorized_levels(model.quantizer.quantizers, model.vq_strides),
            multiple=math.lcm(model.vq_strides[0], model.attn_window_size or 1),
        )
        self.config = {"weights": weights, "embed": False} if not embed else {"architecture": architecture or {}}
        self.encoder, self.decoder = model.encoder, model.decoder
        self.freeze(weights, embed)

    def encode_normal(self, waveform: Tensor) -> Tensor:
        return self.encoder(waveform)

    def decode_normal(self, latent: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.decoder(latent)
        # the same noise for the same length, so that decoding repeats
        with torch.random.fork_rng(devices=[latent.device] if latent.is_cuda else []):
            torch.manual_seed(0)
            return self.decoder(latent)


def _locate(source: str) -> tuple[Path, Path]:
    """The configuration and the weights of a folder or of a hub id."""
    folder = Path(source)
    if folder.is_dir():
        for name in ("config.json", _WEIGHTS):
            if not (folder / name).is_file():
                raise UserError(f"{folder} holds no {name}: give a folder as the hub has it")
        return folder / "config.json", folder / _WEIGHTS
    if folder.exists() or source.count("/") != 1 or source.startswith((".", "/")):
        raise UserError(f"there is no folder {source} with SNAC weights: check the path, or give a hub id")
    return hub_file(source, "config.json"), hub_file(source, _WEIGHTS)
