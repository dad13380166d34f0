"""The image data sets as a LightningDataModule, for training from a YAML file."""

from pathlib import Path

from image_var.data.fashion import SIZE, FashionMNIST, holds_fashion
from image_var.data.folder import ImageFolder
from next_scale.data import SampleDataModule
from next_scale.errors import UserError

FASHION = "fashion-mnist"  # name of the data set that is found by itself


class ImageDataModule(SampleDataModule):
    """Batches {"sample": float32 (B, C, S, S) in -1 .. 1, "condition": {"label": int64 (B,)}} for training, validation
    and test.

    Args:
        data: "fashion-mnist", found where Debian's package or torchvision put it; or a folder: of its idx files, or of
            image files, one sub-folder a class.
        batch_size: B. num_workers: loader processes; 0 reads in the training process.
        size: S; 32 for Fashion-MNIST. channels: C, 1 gray or 3 RGB.
        random_crop: in training, a random part of images that are not square instead of the middle.
        flip: in training, mirror half of the images left to right.
        seed: of the order of the batches, of crops and flips.

    Raises:
        UserError: there is no such data set, or it does not come in this size.
    """

    def __init__(
        self,
        data: str,
        batch_size: int = 32,
        num_workers: int = 0,
        size: int = SIZE,
        channels: int = 1,
        random_crop: bool = True,
        flip: bool = False,
        seed: int = 0,
    ):
        super().__init__(batch_size, num_workers, seed)
        if channels not in (1, 3):
            raise UserError(f"images have 1 channel (gray) or 3 (RGB), not {channels}: set data.channels")
        if min(size, batch_size) < 1:
            raise UserError(f"size and batch_size start at 1, got {size} and {batch_size}")
        self.data, self.size, self.channels = data, size, channels
        self.random_crop, self.flip = random_crop, flip

    @property
    def name(self) -> str:
        """Name of the data, for files made from it."""
        return FASHION if self.data == FASHION else Path(self.data).resolve().name

    def _open(self, split: str) -> FashionMNIST | ImageFolder:
        folder = None if self.data == FASHION else Path(self.data)
        if folder is not None and not folder.is_dir():
            raise UserError(f"there is no data folder {folder}: check data.data, a folder or {FASHION}")
        if folder is None or holds_fashion(folder):
            if self.size != SIZE:
                raise UserError(
                    f"Fashion-MNIST's images are {SIZE} x {SIZE} with their border: set data.size to {SIZE}"
                )
            return FashionMNIST(folder, split, self.channels, self.flip)
        random_crop = self.random_crop and split == "train"
        return ImageFolder(folder, self.size, self.channels, split, random_crop, self.flip)
