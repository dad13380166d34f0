"""Reading and writing image files, with one clear sentence for everything that can be wrong with one.

Shape notation: C channels, H W height and width.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, ImageOps

from next_scale.errors import UserError
from next_scale.files import check_readable, write_whole

if TYPE_CHECKING:  # torch takes seconds to import: reading headers does without
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # that are written
MOST_PIXELS = 1 << 26  # 8,192 x 8,192; a larger image is refused by its header: decoded it would fill the memory

# Of Pillow's readers those that decode in this process and are in wide use; its PostScript reader runs a program.
_READ = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_WRITE_OPTIONS = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
T = TypeVar("T")
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 exchange height and width


def check_image(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width, as shown, of a file whose header can be read.

    Raises:
        UserError: missing, a folder, empty, no image, too large, or of several frames.
    """
    return _open(Path(path), _shown_size)


def read_image(path: str | os.PathLike, size: tuple[int, int] | None = None, channels: int = 3) -> Tensor:
    """Read an image: PNG, JPEG, WebP, BMP, GIF, TIFF or PPM.

    It is turned as its EXIF orientation says, transparency is laid over white, 16 bits keep their precision where the
    image is gray, CMYK and palettes become RGB, and RGB becomes gray (ITU-R BT.601 luma) for one channel.

    Args:
        size: (H, W) to fit: the largest middle part of that shape, resampled (bicubic, antialiased); None as it is.
        channels: C, 1 for gray or 3 for RGB.

    Returns:
        (C, H, W) float32 in [-1, 1].

    Raises:
        UserError: missing, a folder, empty, damaged, no image, too large, of several frames, or of an unusual kind.
    """
    import torch

    path = Path(path)
    image = _plain(_open(path, _upright), path, channels)
    if size is not None and (image.height, image.width) != tuple(size):
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, _middle(image, size), reducing_gap=3)
    bands = image.split() if image.mode == "RGB" else [image]
    planes = np.empty((len(bands), image.height, image.width), np.float32)  # (1 or 3, H, W)
    for plane, band in zip(planes, bands, strict=True):  # one by one and in place: images may be large
        plane[:] = np.asarray(band)
        plane /= 127.5
        plane -= 1
        np.clip(plane, -1, 1, out=plane)
    return torch.from_numpy(planes).expand(channels, -1, -1).contiguous()


def write_image(path: str | os.PathLike, image: Tensor) -> None:
    """Write an image, (C, H, W) in [-1, 1], as PNG, JPEG or WebP (lossless) by the suffix, whole or not at all.

    Raises:
        UserError: another suffix, another shape, values that are not finite, a missing folder, a full disk.
    """
    path = Path(path)
    check_name(path)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise UserError(f"cannot write {path.name}: expected 1 or 3 channels of (C, H, W), got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise UserError(f"cannot write {path.name}: its values are not finite numbers (NaN or infinity)")
    write_picture(path, to_picture(image))


def write_picture(path: str | os.PathLike, picture: Image.Image) -> None:
    """Write a picture of 8 bits likewise. Raises UserError for another suffix, too large a size, a full disk."""
    path = Path(path)
    check_name(path)
    kind = FORMATS[path.suffix.lower()]
    encoded = io.BytesIO()
    try:
        picture.save(encoded, kind, **_WRITE_OPTIONS[kind])
    except (OSError, ValueError) as error:  # both formats have a largest size
        raise UserError(f"cannot write {path.name} as {kind} ({_reason(error)}): use .png") from error
    write_whole(path, encoded.getbuffer())


def check_name(path: str | os.PathLike) -> None:
    """Raise UserError where no image file can be written under this name."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(f"cannot write {path}: end the name in {', '.join(FORMATS)}")


def to_picture(image: Tensor) -> Image.Image:
    """(C, H, W) in [-1, 1], C being 1 or 3, to 8 bits; values outside are clipped."""
    import torch

    levels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels[0].numpy() if len(levels) == 1 else levels.permute(1, 2, 0).contiguous().numpy())


class _Clamped(io.BufferedReader):
    """A file that is never asked for more than it has: Python allocates what it asks for, and some claim gigabytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, self._size))


def _open(path: Path, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of an image file whose pixels are yet to be decoded. Its errors are those of a damaged file."""
    check_readable(path, "an image file", "save or copy it again")
    with warnings.catch_warnings(action="ignore"), ExitStack() as stack:
        try:
            image = Image.open(stack.enter_context(_Clamped(path)), formats=_READ)
        except Image.DecompressionBombError:
            raise UserError(f"{path} has more than {MOST_PIXELS:,} pixels: make it smaller") from None
        except Exception as error:  # Pillow's readers raise almost anything on damaged headers
            raise UserError(f"{path} is no readable image file: convert it to PNG or JPEG") from error
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(f"{path} has more than {MOST_PIXELS:,} pixels: make it smaller")
            try:
                # Phones store a second view in MPO files; the first frame is the photo.
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                if frames == 1:
                    return use(image)
            except MemoryError:
                raise
            except Exception as error:  # and so do their decoders
                raise UserError(f"{path} is damaged ({_reason(error)}): copy it again or convert it to PNG") from error
            raise UserError(f"{path} has {frames} frames: save the one you mean as an image of its own")


def _upright(image: Image.Image) -> Image.Image:
    """Decoded, and turned as its EXIF data say."""
    image.load()
    return ImageOps.exif_transpose(image)


def _shown_size(image: Image.Image) -> tuple[int, int]:
    """Height and width once turned."""
    sideways = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if sideways else (image.height, image.width)


def _plain(image: Image.Image, path: Path, channels: int) -> Image.Image:
    """The image as L, RGB, or F (gray of more than 8 bits), from 0 to 255."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.array(image, np.float32)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise UserError(f"{path} has samples that are not of 8 or 16 bits: convert it to PNG")
        values /= 257
        return Image.fromarray(values)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _middle(image: Image.Image, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the largest middle part of an image that has the shape of (H, W)."""
    factor = min(image.height / size[0], image.width / size[1])
    height, width = factor * size[0], factor * size[1]
    left, top = max(0.0, (image.width - width) / 2), max(0.0, (image.height - height) / 2)
    return left, top, min(image.width, left + width), min(image.height, top + height)


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return text.splitlines()[0] if text else type(error).__name__
