"""What the shared commands are told about images."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from image_var.cli import models
from next_scale.cli import whole_number
from next_scale.commands.backend import Advance, Backend, Encoded, Pair, Source, Tile
from next_scale.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from image_var.data.datamodule import ImageDataModule
    from next_scale.model import Generator
    from next_scale.schedule import Schedule
    from next_scale.tokenizer import Tokenizer

_MOST_BYTES = 1 << 28  # of images kept for a sheet


class ImageBackend(Backend):
    """Images (C, H, W) float32 in [-1, 1], C being 1 (gray) or 3 (RGB).

    Shape notation: C channels, H W height and width, L tokens.
    """

    program = "image-var"
    sample, samples, a_sample = "image", "images", "an image"
    content, a_file = "image", "an image file"
    autoencoder = "autoencoder"
    folder = "images"
    fields = {"label": "class, by its name, or its number where the model knows numbers"}
    formats = ("png", "jpg", "webp")
    typical = ("png", "jpg", "webp")
    sheet, sheet_option, sheet_file = "grid", "grid", "grid.png"
    sheet_help = "also draw all images on one, a row a condition (default: grid.png in the folder)"

    def checkpoint_path(self, given: str | None) -> str:
        return models.checkpoint_path(given)

    def prompted_checkpoint(self) -> str:
        return models.prompted_checkpoint()

    def open_model(self, given: str | None, device: str) -> Tokenizer | Generator:
        return models.open_model(given, device)

    def schedule_of(self, tokenizer: Tokenizer) -> Schedule:
        from image_var.sizes import schedule_for, size_for

        return schedule_for(tokenizer, size_for(tokenizer))

    def suffixes(self) -> Collection[str]:
        from image_var.io import SUFFIXES

        return SUFFIXES

    def add_read_options(self, parser: argparse.ArgumentParser) -> None:
        pass  # the tokenizer says it all

    def add_generate_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--scale",
            type=whole_number(1, 32),
            default=1,
            metavar="N",
            help="enlarge the images by repeating every pixel N times in both directions (default: 1)",
        )

    def finish(self, sample: Tensor, tokenizer: Tokenizer, args: argparse.Namespace) -> Tensor:
        return sample.repeat_interleave(args.scale, 1).repeat_interleave(args.scale, 2)

    def check(self, path: Path, args: argparse.Namespace) -> None:
        from image_var.io import check_image

        check_image(path)

    def read(self, path: Path, tokenizer: Tokenizer, args: argparse.Namespace) -> Source:
        from image_var.io import check_image, read_image
        from image_var.sizes import size_for

        original = check_image(path)
        size = size_for(tokenizer, original)
        image = read_image(path, size, tokenizer.autoencoder.channels_in)
        return Source(image, {"size": list(size), "original": list(original)})

    def check_name(self, path: Path) -> None:
        from image_var.io import check_name

        check_name(path)

    def write(self, path: Path, sample: Tensor, tokenizer: Tokenizer) -> None:
        from image_var.io import write_image

        write_image(path, sample)

    def add_data_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--size", type=whole_number(1, 1 << 14), metavar="N",
            help="side of the images, for a tokenizer of any size (default: the tokenizer's own, or 256)",
        )  # fmt: skip
        parser.add_argument("--flip", action="store_true", help="mirror half of the training images left to right")

    def data(self, data: str, tokenizer: Tokenizer, args: argparse.Namespace) -> ImageDataModule:
        from image_var.data.datamodule import ImageDataModule
        from image_var.sizes import size_for

        height, width = size_for(tokenizer) if args.size is None else size_for(tokenizer, (args.size, args.size))
        if height != width or args.size not in (None, height):
            mend = f"use --size {height}" if height == width else "data sets are square"
            raise UserError(f"the tokenizer takes images of {_text((height, width))}: {mend}")
        channels = tokenizer.autoencoder.channels_in
        return ImageDataModule(data, size=height, channels=channels, flip=args.flip, seed=args.seed)

    def check_sheet(self, path: Path) -> None:
        self.check_name(path)

    def most_tiles(self, sample: Tensor) -> int:
        return min(2500, max(1, _MOST_BYTES // sample.nbytes))

    def draw(self, path: Path, tiles: Sequence[Tile], columns: int, tokenizer: Tokenizer) -> None:
        from image_var.plots import image_sheet

        image_sheet(path, [(tile.condition, tile.sample) for tile in tiles], columns)

    def draw_pairs(self, path: Path, pairs: Sequence[Pair], tokenizer: Tokenizer) -> None:
        from image_var.plots import pair_sheet

        pair_sheet(path, pairs)

    def encode(self, tokenizer: Tokenizer, source: Source, batch_size: int, advance: Advance) -> Encoded:
        from image_var.sizes import schedule_for

        tokens = tokenizer.encode(source.sample[None].to(tokenizer.device)).cpu()
        advance(1)
        return Encoded(tokens, schedule_for(tokenizer, source.details["size"]), source.details)

    def decode(
        self, tokenizer: Tokenizer, encoded: Encoded, scales: int | None, batch_size: int, advance: Advance
    ) -> Tensor:
        (image,) = tokenizer.decode(encoded.tokens.to(tokenizer.device), scales, encoded.schedule.grid).cpu()
        advance(1)
        return image

    def fits(self, encoded: Encoded, tokenizer: Tokenizer) -> bool:
        from image_var.sizes import schedule_for, size_for

        size, original = encoded.details.get("size"), encoded.details.get("original")
        if not _is_size(size) or not _is_size(original) or len(encoded.tokens) != 1:
            return False
        return tuple(size) == size_for(tokenizer, size) and encoded.schedule == schedule_for(tokenizer, size)

    def size_text(self, sample: Tensor, tokenizer: Tokenizer) -> str:
        return _text(sample.shape[1:])

    def rate_text(self, details: dict, bits: int, tokenizer: Tokenizer) -> str:
        size, original = details["size"], details["original"]
        text = _text(size)
        if original != size:
            cropped = " and cropped" if original[0] * size[1] != original[1] * size[0] else ""
            text += f" (from {_text(original)}, resized{cropped})"
        return f"{text}, {bits:,} bits, {bits / math.prod(size):.2f} bits a pixel"

    def compare_text(self, original: Tensor, again: Tensor) -> str:
        from image_var.metrics import psnr, squared_error

        return f"PSNR {psnr(squared_error(original[None], again[None])).item():.2f} dB"

    def facts(self, tokenizer: Tokenizer, schedule: Schedule) -> dict:
        autoencoder = tokenizer.autoencoder
        height, width = autoencoder.size_of(schedule.grid)
        return {
            "autoencoder": autoencoder.name,
            "channels": autoencoder.channels_in,
            "downsampling": autoencoder.downsampling,
            "height": height,
            "width": width,
            "bits_per_pixel": schedule.bits(tokenizer.quantizer.codebook_size) / (height * width),
        }

    def lines(self, facts: dict) -> list[tuple[str, str]]:
        return [
            ("autoencoder", f"{facts['autoencoder']}, {facts['downsampling']} times down"),
            ("image", f"{_text((facts['height'], facts['width']))}, {'gray' if facts['channels'] == 1 else 'RGB'}"),
        ]

    def rate_line(self, facts: dict) -> str:
        return f"{facts['bits_per_pixel']:.2f} bits a pixel"


def _is_size(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)


def _text(size: Sequence[int]) -> str:
    """Width x height, the order in which people name them."""
    return f"{size[1]} x {size[0]}"


BACKEND = ImageBackend()
