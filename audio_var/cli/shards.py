"""`audio-var tokenize-dataset`: a data set of sound as shards of tokens."""

from __future__ import annotations

import argparse

from audio_var.cli.backend import BACKEND
from next_scale.commands.shards import add_tokenize_dataset

_DATA = "folder of rendered notes (it has a manifest.json), or of audio files, one sub-folder a class"

_DESCRIPTION = """Pass a data set through a tokenizer once and write its tokens as shards, which training then reads
instead of sound. Each file is named by its number and checksum; an index is written last. Run the same command again
after an interruption: shards that are whole stay, all others are made. The same data, tokenizer, seed and
--shard-samples give the same bytes on any number of processes."""

_EPILOG = """examples:
  audio-var tokenize-dataset samples/demo_notes --out data/demo_tokens
  audio-var tokenize-dataset data/notes --checkpoint runs/audio_notes/tokenizer_pitch --out data/note_tokens --devices 2
  torchrun --nproc-per-node 8 -m audio_var tokenize-dataset data/notes --out data/note_tokens
  audio-var fit next-scale --config recipes/audio_notes/next_scale.yaml \\
      --data next_scale.shards.ShardDataModule --data.folder data/note_tokens"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``tokenize-dataset``."""
    add_tokenize_dataset(subparsers, BACKEND, _DATA, _DESCRIPTION, _EPILOG)
