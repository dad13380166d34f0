"""`audio-var tokenize` and `audio-var detokenize`: between audio files and token files."""

from __future__ import annotations

import argparse

from audio_var.cli.backend import BACKEND
from next_scale.commands import tokens

_TOKENIZE = """Encode an audio file into a compact file of tokens: bit-packed codes, with the schedule of scales and the
fingerprint of the tokenizer in the header, and a checksum at the end. Only the tokenizer that made it can decode it."""

_TOKENIZE_EPILOG = """example:
  audio-var tokenize samples/demo_notes/flute/000-072-p66-v080.flac note.nst
  audio-var detokenize note.nst note.wav"""

_DETOKENIZE = """Decode a file of tokens, made by `audio-var tokenize` with the same checkpoint, into audio. The result
is that of `audio-var reconstruct`. --scales K uses the K coarsest scales only."""

_DETOKENIZE_EPILOG = """example:
  audio-var tokenize song.mp3 song.nst
  audio-var detokenize song.nst song.wav"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``tokenize`` and ``detokenize``."""
    tokens.add_tokenize(subparsers, BACKEND, _TOKENIZE, _TOKENIZE_EPILOG)
    tokens.add_detokenize(subparsers, BACKEND, _DETOKENIZE, _DETOKENIZE_EPILOG)
