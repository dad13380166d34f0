"""`image-var tokenize-dataset`: a data set of images as shards of tokens."""

from __future__ import annotations

import argparse

from image_var.cli.backend import BACKEND
from next_scale.commands.shards import add_tokenize_dataset

_DATA = "fashion-mnist, or a folder of image files, one sub-folder a class (or train, validation and test with those)"

_DESCRIPTION = """Pass a data set through a tokenizer once and write its tokens as shards, which training then reads
instead of images. Each file is named by its number and checksum; an index is written last. Run the same command again
after an interruption: shards that are whole stay, all others are made. The same data, tokenizer, seed and
--shard-samples give the same bytes on any number of processes."""

_EPILOG = """examples:
  image-var tokenize-dataset samples/demo_images --out data/demo_image_tokens
  image-var tokenize-dataset fashion-mnist --out data/fashion_tokens --devices 2
  torchrun --nproc-per-node 8 -m image_var tokenize-dataset fashion-mnist --out data/fashion_tokens
  image-var fit next-scale --config recipes/image_fashion/next_scale.yaml \\
      --data next_scale.shards.ShardDataModule --data.folder data/fashion_tokens"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``tokenize-dataset``."""
    add_tokenize_dataset(subparsers, BACKEND, _DATA, _DESCRIPTION, _EPILOG)
