"""`image-var reconstruct`: what a tokenizer makes of an image."""

from __future__ import annotations

import argparse

from image_var.cli.backend import BACKEND
from next_scale.commands import reconstruct

_DESCRIPTION = """Encode images into tokens and decode them again, to see what a tokenizer keeps and what it loses; the
PSNR of each is printed.

An image of another size than the model's is resized, and cropped to the middle, first. --scales K decodes the K
coarsest scales only: what the first K steps of generation decide. A folder is reconstructed file by file into another
folder; files that cannot be read are named and skipped."""

_EPILOG = """examples:
  image-var reconstruct photo.jpg again.png
  image-var reconstruct photos photos_coarse --scales 5 --grid pairs.png"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``reconstruct``."""
    reconstruct.add_parser(subparsers, BACKEND, _DESCRIPTION, _EPILOG)
