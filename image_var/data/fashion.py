"""Fashion-MNIST, from the four idx files that its authors publish.

Shape notation: N images, B batch, C channels, H W height and width.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from next_scale.errors import UserError
from next_scale.splits import check_split

LABELS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
SIZE = 32  # of an image with its border
VALIDATION = 5_000  # last images of the published training part
# where Debian's package puts the files, and where torchvision downloads them to
PLACES = ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw")
# split -> names of its images and labels, without .gz
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_HELP = (
    "apt-get install dataset-fashion-mnist, or let torchvision fetch it: "
    "python -c \"import torchvision; torchvision.datasets.FashionMNIST('data', download=True)\""
)


def find_fashion(folder: str | os.PathLike | None = None) -> Path:
    """The folder of the idx files: `folder` or ``FashionMNIST/raw`` in it; without one, the first of `PLACES`.

    Raises:
        UserError: they are in none of these.
    """
    places = PLACES if folder is None else (folder, Path(folder, "FashionMNIST", "raw"))
    for place in map(Path, places):
        if _file(place, _FILES["test"][0]) is not None:
            return place
    raise UserError(f"Fashion-MNIST is not in {' or '.join(map(str, places))}: {_HELP}")


def holds_fashion(folder: str | os.PathLike) -> bool:
    """Whether `find_fashion` finds the files there."""
    try:
        find_fashion(folder)
    except UserError:
        return False
    return True


class FashionMNIST(Dataset):
    """Zalando's 28 x 28 gray images of clothes (arXiv 1708.07747), with a border of 2 black pixels: 32 x 32.

    Items are {"sample": float32 (C, 32, 32) in -1 .. 1, "condition": {"label": i}}. Training has the first 55,000 of
    the published 60,000 training images and validation the last 5,000; test is the published 10,000. All are kept in
    memory, 47 MB for training.

    Args:
        folder: where the idx files are, with .gz or without; default: wherever they are found (see `find_fashion`).
        split: "train", "validation", "test", or "all".
        channels: C, 1 or 3 (the same three times).
        flip: mirror half of the images left to right, drawn from torch's random generator; for training only.

    Raises:
        UserError: the files are missing or damaged.
    """

    def __init__(
        self, folder: str | os.PathLike | None = None, split: str = "train", channels: int = 1, flip: bool = False
    ):
        check_split(split)
        self.folder, self.channels, self.flip = find_fashion(folder), channels, flip and split == "train"
        parts = {"train": ["train"], "validation": ["train"], "test": ["test"], "all": ["train", "test"]}[split]
        kept = {"train": slice(None, -VALIDATION), "validation": slice(-VALIDATION, None)}.get(split, slice(None))
        read = [[_read(self.folder, name) for name in _FILES[part]] for part in parts]
        images, labels = (np.concatenate([pair[i] for pair in read]) for i in range(2))
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max(initial=0) >= len(LABELS):
            raise UserError(f"the files in {self.folder} are not Fashion-MNIST's: copy or install them again")
        self.images = torch.from_numpy(images[kept])  # (N, 28, 28) uint8
        self.labels = torch.from_numpy(labels[kept].astype(np.int64))  # (N,)
        self.condition_spec: dict[str, list] = {"label": list(LABELS)}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the images and labels, and of how they are read."""
        digest = hashlib.sha256(repr((self.channels, self.flip)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.numpy())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        sample = self.image_batch([index])[0]
        if self.flip and torch.rand(()) < 0.5:
            sample = sample.flip(-1)
        return {"sample": sample, "condition": {"label": int(self.labels[index])}}

    def image_batch(self, indices: Sequence[int]) -> torch.Tensor:
        """The images of these items at once, never mirrored: float32 (B, C, 32, 32) in -1 .. 1."""
        border = (SIZE - self.images.shape[-1]) // 2
        images = torch.nn.functional.pad(self.images[torch.as_tensor(indices)], [border] * 4)
        images = images[:, None].float() / 127.5 - 1  # (B, 32, 32) -> (B, 1, 32, 32)
        return images.expand(-1, self.channels, -1, -1)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _read(folder: Path, name: str) -> np.ndarray:
    """An idx file of bytes: its magic number tells the number of dimensions, whose sizes follow as big-endian int32."""
    path = _file(folder, name)
    if path is None:
        raise UserError(f"{folder / name}.gz is missing: copy or install Fashion-MNIST again")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dims = int.from_bytes(content[:4], "big") - 0x800
        sizes = np.frombuffer(content, ">i4", dims, offset=4)
        # a copy: torch wants an array that may be written
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(sizes).copy()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): copy or install Fashion-MNIST again") from error
