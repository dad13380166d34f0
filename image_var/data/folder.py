"""A folder of image files as a data set: one sub-folder a class.

Shape notation: C channels, S side of a sample.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import Dataset

from image_var.io import SUFFIXES, check_image, read_image
from next_scale.errors import UserError
from next_scale.files import manifest_of
from next_scale.splits import SPLITS, check_split, split_of

logger = logging.getLogger(__name__)

# sub-folders that hold a split each, as ImageNet has them
_SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


class ImageFolder(Dataset):
    """Square samples of the images in a folder: {"sample": float32 (C, S, S) in -1 .. 1, "condition": {"label": i}}.

    The class of a file is the sub-folder it is in; without sub-folders there is one class, named after the folder. A
    folder may hold sub-folders `train`, `validation` (or `val`) and `test` with the classes in them: they are the
    splits then. Otherwise a hash of each file's path decides (see `split_of`).

    Images are resampled so that their shorter side is S, then cropped. A file that cannot be used (unreadable, empty,
    no image, of several frames, too large) is logged by name, listed in `skipped` as (path, reason) and left out;
    damage that only decoding shows is found when the file is first read, and the next good file takes its place.

    Args:
        size: S. channels: C, 1 gray or 3 RGB.
        split: "train", "validation", "test", or "all".
        random_crop: take a random part of an image that is not square (default for "train"), else its middle.
        flip: mirror half of the images left to right, in "train" only. Crops and flips come from torch's random
            generator, which a loader seeds for each worker and epoch.

    Raises:
        UserError: nothing usable is left.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        size: int,
        channels: int = 3,
        split: str = "train",
        random_crop: bool | None = None,
        flip: bool = False,
    ):
        check_split(split)
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder}: check the path")
        self.size, self.channels, self.flip = size, channels, flip and split == "train"
        self.random_crop = split == "train" if random_crop is None else random_crop
        self.skipped: list[tuple[str, str]] = []
        usable = []
        for path, label, part in self._find():
            try:
                usable.append((path, label, part, check_image(path)))
            except UserError as error:
                self._skip(path, str(error))
        if not usable:
            why = f" ({len(self.skipped)} skipped, first: {self.skipped[0][1]})" if self.skipped else ""
            raise UserError(f"{self.folder} holds no usable image file{why}: add {', '.join(SUFFIXES[:4])} files")
        classes = sorted({label for _, label, _, _ in usable})  # of all splits: a class has the same index in each
        self.condition_spec: dict[str, list] = {"label": classes}
        kept = [item for item in usable if split in ("all", item[2])]
        if not kept:
            cause = f"{self.folder} has no file in the {split} split ({len(usable)} in all)"
            raise UserError(f"{cause}: add files, or use split all")
        self.files = [path for path, _, _, _ in kept]
        self.labels = [classes.index(label) for _, label, _, _ in kept]
        self.splits = [part for _, _, part, _ in kept]
        self.sizes = [found for _, _, _, found in kept]
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def manifest_sha256(self) -> str:
        """Hash of the files and of how they are read, see :func:`next_scale.files.manifest_of`."""
        options = (self.size, self.channels, self.random_crop, self.flip)
        return manifest_of(self.folder, self.files, labels=self.labels, options=options)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            if candidate in self._bad:
                continue
            try:
                sample = self._sample(candidate)
            except UserError as error:
                self._bad.add(candidate)
                self._skip(self.files[candidate], str(error))
                continue
            return {"sample": sample, "condition": {"label": self.labels[candidate]}}
        raise UserError(f"no file in {self.folder} can be decoded, last: {self.skipped[-1][1]}")

    def _find(self) -> Iterator[tuple[Path, str, str]]:
        """Path, class and split of every file with the suffix of an image, in a fixed order."""
        split_folders = (self.folder / "train").is_dir()
        found = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        depth = 2 if split_folders else 1  # of a file in its class's folder
        nested = split_folders or any(len(path.relative_to(self.folder).parts) > depth for path in found)
        for path in found:
            parts = path.relative_to(self.folder).parts
            if not nested:
                yield path, self.folder.resolve().name, split_of(parts[-1])
            elif len(parts) <= depth:
                self._skip(path, "it is in no class sub-folder")
            elif not split_folders:
                yield path, parts[0], split_of(path.relative_to(self.folder).as_posix())
            elif parts[0] not in _SPLIT_FOLDERS:
                self._skip(path, f"it is in none of the folders {', '.join(SPLITS)}")
            else:
                yield path, parts[1], _SPLIT_FOLDERS[parts[0]]

    def _skip(self, path: Path, reason: str) -> None:
        reason = reason.removeprefix(f"{path} ")
        self.skipped.append((str(path), reason))
        logger.warning("skipped %s: %s", path, reason)

    def _sample(self, index: int) -> torch.Tensor:
        """One sample: float32 (C, S, S)."""
        size = (self.size, self.size)
        if self.random_crop:  # the whole image with its shorter side S, and then a part of it
            height, width = self.sizes[index]
            factor = self.size / min(height, width)
            size = (max(self.size, round(height * factor)), max(self.size, round(width * factor)))
        image = read_image(self.files[index], size, self.channels)
        top, left = (int(torch.randint(side - self.size + 1, ())) if side > self.size else 0 for side in size)
        image = image[:, top : top + self.size, left : left + self.size]
        if self.flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image
