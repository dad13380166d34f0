"""The Python interface: a model as a function from conditions to images."""

from __future__ import annotations

import torch

from image_var.cli.models import open_generator
from image_var.sizes import size_for
from next_scale.pipeline import Pipeline


class ImageModel(Pipeline):
    """A loaded generator of images (B, C, H, W) float32 in [-1, 1].

    Shape notation: B images, C channels, H W height and width.
    """

    @property
    def channels(self) -> int:
        """C of the images: 1 (gray) or 3 (RGB)."""
        return self.generator.tokenizer.autoencoder.channels_in

    @property
    def size(self) -> tuple[int, int]:
        """H and W of the images."""
        return size_for(self.generator.tokenizer)


def load(checkpoint: str | None = None, device: str | torch.device = "auto") -> ImageModel:
    """Load a generator: the shipped one, or that of a folder, a ``.safetensors`` file or a hub id.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    return ImageModel(open_generator(checkpoint, str(device)))
