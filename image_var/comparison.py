"""Images as a modality of the comparison: small gray ones, as a latent grid, or as a line of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor, nn

from image_var.autoencoder import ConvAutoencoder
from image_var.data.datamodule import ImageDataModule
from image_var.evaluator import load_evaluator
from image_var.io import to_picture, write_image, write_picture
from image_var.line import LineAutoencoder
from image_var.metrics import squared_error
from image_var.objective import ImageObjective
from next_scale.commands.backend import Backend
from next_scale.compare.modality import Modality
from next_scale.errors import UserError

_AUTOENCODERS = {"1d": LineAutoencoder, "2d": ConvAutoencoder}


class ImageModality(Modality):
    """Fashion-MNIST at 32 x 32."""

    name = "image"
    features_name = "embedding of the shipped image evaluator, 96 features"
    dims = 32 * 32

    def __init__(self) -> None:
        self._evaluator = load_evaluator()

    @classmethod
    def backend(cls) -> Backend:
        from image_var.cli.backend import BACKEND  # a command line's; what compares needs none

        return BACKEND

    def data(self, **options) -> ImageDataModule:
        return ImageDataModule(**{"data": "fashion-mnist", "size": 32, "channels": 1, **options})

    def autoencoder(self, dimension: str, **options) -> nn.Module:
        if dimension not in _AUTOENCODERS:
            raise UserError(f"images have latents in 1d and 2d, not in {dimension}")
        return _AUTOENCODERS[dimension](**{"channels_in": 1, **options})

    def objective(self, dimension: str, **options) -> nn.Module:
        return ImageObjective(**options)

    def features(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        judged = self._evaluator.judge(samples)
        return judged.embedding, judged.label

    def distortion(self, samples: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        return {"mean squared error": squared_error(samples, decoded)}

    def write(self, folder: Path, names: Sequence[str], samples: Tensor) -> list[dict]:
        found = []
        for name, sample in zip(names, samples, strict=True):
            write_image(folder / f"{name}.png", sample)
            larger = to_picture(sample).resize((4 * sample.shape[2], 4 * sample.shape[1]), Image.Resampling.NEAREST)
            write_picture(folder / f"{name}_4x.png", larger)
            found.append({"file": f"{name}.png", "picture": f"{name}_4x.png", "kind": "picture"})
        return found
