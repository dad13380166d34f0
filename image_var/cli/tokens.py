"""`image-var tokenize` and `image-var detokenize`: between image files and token files."""

from __future__ import annotations

import argparse

from image_var.cli.backend import BACKEND
from next_scale.commands import tokens

_TOKENIZE = """Encode an image file into a compact file of tokens: bit-packed codes, with the schedule of scales and the
fingerprint of the tokenizer in the header, and a checksum at the end. Only the tokenizer that made it can decode it.
An image of another size than the model's is resized, and cropped to the middle, first."""

_TOKENIZE_EPILOG = """example:
  image-var tokenize photo.jpg photo.nst
  image-var detokenize photo.nst photo_again.png"""

_DETOKENIZE = """Decode a file of tokens, made by `image-var tokenize` with the same checkpoint, into an image. The
result is that of `image-var reconstruct`. --scales K uses the K coarsest scales only."""

_DETOKENIZE_EPILOG = """example:
  image-var tokenize photo.jpg photo.nst
  image-var detokenize photo.nst photo_again.png"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``tokenize`` and ``detokenize``."""
    tokens.add_tokenize(subparsers, BACKEND, _TOKENIZE, _TOKENIZE_EPILOG)
    tokens.add_detokenize(subparsers, BACKEND, _DETOKENIZE, _DETOKENIZE_EPILOG)
