"""`audio-var info`: what a checkpoint is and holds."""

from __future__ import annotations

import argparse

from audio_var.cli.backend import BACKEND
from next_scale.commands import info

_DESCRIPTION = """Describe a checkpoint: its parts and their parameters, its scales from coarse to fine, the bits that
its tokens take, and the conditions that `audio-var generate` may ask it for."""

_EPILOG = """examples:
  audio-var info
  audio-var info runs/audio_notes/tokenizer --json"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``info``."""
    info.add_parser(subparsers, BACKEND, _DESCRIPTION, _EPILOG)
