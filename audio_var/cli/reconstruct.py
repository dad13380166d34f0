"""`audio-var reconstruct`: what a tokenizer makes of a recording."""

from __future__ import annotations

import argparse

from audio_var.cli.backend import BACKEND
from next_scale.commands import reconstruct

_DESCRIPTION = """Encode audio into tokens and decode them again, to hear what a tokenizer keeps and what it loses.

Any length works: a recording is resampled to the codec's rate, mixed to mono, cut into windows of the model's length,
and joined again with short cross-fades. --scales K decodes the K coarsest scales only: what the first K steps of
generation decide. A folder is reconstructed file by file into another folder; files that cannot be read are named
and skipped."""

_EPILOG = """examples:
  audio-var reconstruct samples/demo_notes/flute flute_again --plot flute.png
  audio-var reconstruct song.mp3 song_coarse.wav --scales 8"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``reconstruct``."""
    reconstruct.add_parser(subparsers, BACKEND, _DESCRIPTION, _EPILOG)
