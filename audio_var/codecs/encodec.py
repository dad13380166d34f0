"""EnCodec (arXiv 2210.13438) as the `encodec` package has it: 24 kHz mono and 48 kHz stereo, at any of its rates."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from audio_var.codecs.pretrained import Levels, PretrainedCodec, built
from audio_var.codecs.weights import fill, need, read_state
from next_scale.errors import UserError, first_line

_FILES = {"24khz": "encodec_24khz-d7cc33bc.th", "48khz": "encodec_48khz-7e698e3e.th"}
_SIZES = {"n_filters": 32, "dimension": 128, "ratios": [8, 5, 4, 2], "lstm": 2, "bins": 1024}
VARIANTS = {
    "24khz": {"sample_rate": 24000, "channels": 1, "causal": True, "norm": "weight_norm", "normalize": False,
              "codebooks": 32, **_SIZES},
    "48khz": {"sample_rate": 48000, "channels": 2, "causal": False, "norm": "time_group_norm", "normalize": True,
              "codebooks": 16, **_SIZES},
}  # fmt: skip


class EncodecCodec(PretrainedCodec):
    """The SEANet encoder and decoder of a published EnCodec. PyPI names the package's licence CC-BY-NC 4.0.

    Codes of its 1,024-entry codebooks: 75 frames a second at 24 kHz and 150 at 48 kHz, so a codebook is 0.75 or
    1.5 kbit/s.

    Args:
        variant: ``24khz`` (mono, causal) or ``48khz`` (stereo, loudness normalised).
        weights: ``hub`` for the published ones, or a file such as ``encodec_24khz-d7cc33bc.th`` or ``.safetensors``,
            or the folder that holds it; None for random weights.
        architecture: sizes in place of the variant's: sample_rate, channels, causal, norm, normalize, codebooks,
            n_filters, dimension, ratios, lstm, bins.
        stereo, embed: see :class:`audio_var.codecs.pretrained.PretrainedCodec`.

    Raises:
        UserError: the package is absent, or the weights are not there or not whole.
    """

    name = "encodec"

    def __init__(
        self,
        variant: str = "24khz",
        weights: str | None = None,
        architecture: dict | None = None,
        stereo: bool = False,
        embed: bool = True,
    ):
        if variant not in VARIANTS:
            raise UserError(f"EnCodec has no variant '{variant}': choose one of {', '.join(VARIANTS)}")
        sizes = {**VARIANTS[variant], **(architecture or {})}
        if unknown := sorted(set(sizes) - set(VARIANTS[variant])):
            raise UserError(f"EnCodec has no size '{unknown[0]}'; its sizes: {', '.join(VARIANTS[variant])}")
        model = built("encodec", lambda: _model(sizes))
        if weights is not None:
            state, source = _read(weights, variant)
            fill(model, state, source)
        books = tuple(layer.codebook.detach().clone() for layer in model.quantizer.vq.layers)
        super().__init__(
            sample_rate=model.sample_rate,
            hop=model.encoder.hop_length,
            latent_channels=model.encoder.dimension,
            levels=Levels((1,) * len(books), books),
            inner_channels=model.channels,
            stereo=stereo,
            normalize=model.normalize,
        )
        self.config = {"variant": variant, "architecture": architecture, "stereo": stereo}
        if not embed:
            self.config |= {"weights": weights, "embed": False}
        self.encoder, self.decoder = model.encoder, model.decoder
        self.freeze(weights, embed)

    def encode_normal(self, waveform: Tensor) -> Tensor:
        return self.encoder(waveform)

    def decode_normal(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)


def _model(sizes: dict) -> torch.nn.Module:
    """An `encodec.EncodecModel` with random weights, which takes a clip as one segment."""
    need("encodec", "encodec")
    from encodec import EncodecModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    keys = ("channels", "causal", "norm", "n_filters", "dimension", "ratios", "lstm")
    options = {key: sizes[key] for key in keys}
    quantizer = ResidualVectorQuantizer(sizes["dimension"], n_q=sizes["codebooks"], bins=sizes["bins"])
    for layer in quantizer.vq.layers:  # the package leaves them zero, to be placed by the first training batch
        book = layer._codebook
        torch.nn.init.normal_(book.embed, std=sizes["dimension"] ** -0.5)
        book.inited.fill_(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package's way of weight norm, which users cannot mend
        encoder, decoder = SEANetEncoder(**options), SEANetDecoder(**options)
    return EncodecModel(
        encoder, decoder, quantizer, [], sizes["sample_rate"], sizes["channels"], normalize=sizes["normalize"]
    )


def _read(weights: str, variant: str) -> tuple[dict[str, Tensor], str | Path]:
    name = _FILES[variant]
    if weights == "hub":
        url = f"https://dl.fbaipublicfiles.com/encodec/v0/{name}"
        try:
            state = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, progress=False, weights_only=True
            )
        except Exception as error:  # whatever the network raises
            cause = f"the published weights did not come ({first_line(error)})"
            raise UserError(f"{cause}: download {url} elsewhere and name the file") from error
        return state, url
    path = Path(weights)
    path = path / name if path.is_dir() else path
    return read_state(path)[0], path
