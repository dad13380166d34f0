"""`image-var generate`: images from a trained model."""

from __future__ import annotations

import argparse

from image_var.cli.backend import BACKEND
from next_scale.commands import generate

_DESCRIPTION = """Generate images. The model draws a pyramid of tokens, one whole scale a step from coarse to fine, and
its decoder turns each pyramid into an image.

Conditions say what to make; `image-var info` lists those that a checkpoint knows. A condition left out is left to the
model. Of several values every combination is made, --count times. An image depends on its condition, the seed and its
number only: the same command gives the same images, whatever else is generated with them."""

_EPILOG = """examples:
  image-var generate --label sneaker --count 8 --seed 0 --out images --grid
  image-var generate --label sneaker bag dress --count 10 --cfg 2 --format webp --scale 4 --grid clothes.png
  image-var generate --checkpoint var-d16 --label 207 --cfg 4 --smooth

a file name tells condition, seed and number: images/sneaker_s0_000.png"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``generate``."""
    generate.add_parser(subparsers, BACKEND, _DESCRIPTION, _EPILOG)
