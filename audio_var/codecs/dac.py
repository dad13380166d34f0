"""DAC (arXiv 2306.06546) as the `descript-audio-codec` package has it, from the weight files of that project."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from audio_var.codecs.pretrained import PretrainedCodec, built, factorized_levels
from audio_var.codecs.weights import fill, need, read_state
from next_scale.errors import UserError, first_line

PUBLISHED = ("44khz", "24khz", "16khz")


class DacCodec(PretrainedCodec):
    """The encoder and decoder of the `dac` package (MIT). The codec `transformers` has DAC too, with less to install.

    Args:
        weights: ``44khz``, ``24khz`` or ``16khz`` for the published ones, or a file such as ``weights_44khz.pth``;
            None for random weights.
        architecture: arguments of ``dac.DAC``; a weight file brings its own.
        embed: see :class:`audio_var.codecs.pretrained.PretrainedCodec`.

    Raises:
        UserError: the package is absent, or the weights are not there or not whole.
    """

    name = "dac"

    def __init__(self, weights: str | None = None, architecture: dict | None = None, embed: bool = True):
        package = need("dac", "descript-audio-codec")
        state = None
        if weights is not None:
            path = _locate(package, weights)
            state, metadata = read_state(path)
            architecture = metadata.get("kwargs", architecture)
        model = built("dac", lambda: package.DAC(**(architecture or {})))
        if state is not None:
            fill(model, state, path)
        super().__init__(
            sample_rate=model.sample_rate,
            hop=int(model.hop_length),
            latent_channels=model.latent_dim,
            levels=factorized_levels(model.quantizer.quantizers, (1,) * model.n_codebooks),
        )
        self.config = {"weights": weights, "embed": False} if not embed else {"architecture": architecture or {}}
        self.encoder, self.decoder = model.encoder, model.decoder
        self.freeze(weights, embed)

    def encode_normal(self, waveform: Tensor) -> Tensor:
        return self.encoder(waveform)

    def decode_normal(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)


def _locate(package, weights: str) -> Path:
    if weights not in PUBLISHED:
        return Path(weights)
    try:
        return Path(package.utils.download(model_type=weights))
    except Exception as error:  # whatever the network raises
        cause = f"the published weights did not come ({first_line(error)})"
        raise UserError(f"{cause}: download weights_{weights} elsewhere and name the file") from error
