"""The images that reports are about, as a model's tokenizer takes them.

Shape notation: B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from image_var.data.datamodule import ImageDataModule
from next_scale.errors import UserError
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer


class Images:
    """One split of a data set, cropped in the middle and never mirrored.

    Args:
        data: see :class:`image_var.data.datamodule.ImageDataModule`.
        split: "train", "validation" or "test".
        shape: C, H, W of the images, H equal to W.

    Raises:
        UserError: no such data set, or it does not come in this shape.
    """

    def __init__(self, data: str, split: str, shape: tuple[int, int, int]):
        module = ImageDataModule(data, size=shape[1], channels=shape[0], random_crop=False)
        self.name, self.shape = module.name, shape
        self._dataset = module.dataset(split)
        self.condition_spec = {name: list(values) for name, values in self._dataset.condition_spec.items()}
        self.label = torch.as_tensor(self._dataset.labels)  # (N,) int64

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The images of these indices: (B, C, H, W) float32 in -1 .. 1."""
        return torch.stack([self._dataset[int(index)]["sample"] for index in indices])


def image_shape(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """C, H, W of the images that a tokenizer's schedule is for.

    Raises:
        UserError: it has no size of its own, or one that is not square.
    """
    schedule, autoencoder = tokenizer.quantizer.schedule, tokenizer.autoencoder
    if not isinstance(schedule, Schedule):
        raise UserError("the tokenizer has strides for any size; evaluate one with a schedule of fixed sizes")
    height, width = autoencoder.size_of(schedule.grid)
    if height != width:
        raise UserError(f"the tokenizer's images of {height} x {width} are not square, as those of the data sets are")
    return autoencoder.channels_in, height, width
