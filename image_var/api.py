"""The Python interface: a model as a function from conditions to images."""

from __future__ import annotations

import torch
from torch import Tensor

from image_var.cli.models import open_generator
from image_var.editing import Editor
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

    def editor(
        self, image: Tensor, count: int = 1, seed: int = 0, sampling: dict | None = None,
        **condition: str | int | Tensor | None,
    ) -> Editor:  # fmt: skip
        """What edits an image (C, H, W) float32 in [-1, 1] of this :attr:`size`; the same as the command ``edit``.

        >>> from image_var import load
        >>> model = load()
        >>> image = model(label="shirt")[0]  # or image_var.io.read_image("shirt.png", model.size, model.channels)
        >>> part = torch.zeros(32, 32, dtype=torch.bool)
        >>> part[:, 16:] = True
        >>> model.editor(image, count=4, label="shirt").paint(part).shape
        torch.Size([4, 1, 32, 32])
        >>> editor = model.editor(image, label="coat")
        >>> editor.vary(0.5).shape, editor.interpolate(image.flip(2), 0.3).shape
        (torch.Size([1, 1, 32, 32]), torch.Size([1, 1, 32, 32]))
        >>> editor.denoise().shape, editor.upsample((14, 14)).shape
        (torch.Size([1, 1, 32, 32]), torch.Size([1, 1, 32, 32]))

        Args:
            image: what is edited.
            count: B, results of every edit, (B, C, H, W).
            seed, sampling, condition: see :meth:`next_scale.pipeline.Pipeline.__call__`; the condition is that of the
                results.

        Raises:
            UserError: an unknown condition, or a sampling option out of range.
        """
        batch, seeds, options = self._asked(count, seed, sampling, condition)
        return Editor(self.generator, image, batch, seeds, options)


def load(checkpoint: str | None = None, device: str | torch.device = "auto") -> ImageModel:
    """Load a generator: the shipped one, or that of a folder, a ``.safetensors`` file or a hub id.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    return ImageModel(open_generator(checkpoint, str(device)))
