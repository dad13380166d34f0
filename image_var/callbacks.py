"""What an image training shows while it runs: grids of images in TensorBoard."""

from __future__ import annotations

from torch import Tensor
from torchvision.utils import make_grid

from image_var.autoencoder import ConvAutoencoder
from next_scale.preview import Preview


class ImagePreview(Preview):
    """Grids of images.

    Args:
        count: images.
    """

    ability = "add_image"

    def __init__(self, count: int = 16):
        super().__init__(count)

    def show(self, logger, name: str, samples: Tensor, autoencoder: ConvAutoencoder, step: int) -> None:
        columns = round(len(samples) ** 0.5 + 0.5)
        # (n, C, H, W) in -1 .. 1 -> (3, rows H, columns W) in 0 .. 1
        grid = make_grid(samples.cpu().clamp(-1, 1) / 2 + 0.5, nrow=columns, padding=1)
        logger.add_image(name, grid, step)
