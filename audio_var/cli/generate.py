"""`audio-var generate`: clips from a trained model."""

from __future__ import annotations

import argparse

from audio_var.cli.backend import BACKEND
from next_scale.commands import generate

_DESCRIPTION = """Generate audio clips. The model draws a pyramid of tokens, one whole scale a step from coarse to fine,
and its codec turns each pyramid into a clip.

Conditions say what to make; `audio-var info` lists those that a checkpoint knows. A condition left out is left to the
model. Of several values every combination is made, --count times. A clip depends on its condition, the seed and its
number only: the same command gives the same clips, whatever else is generated with them.

A model of fixed length makes longer clips (--seconds) from windows that overlap: each is drawn around what is there
already, and one is faded into the next in the latent, before it is decoded. Of the shipped model, which plays notes of
one second, that is one note held as long: its attack, then its middle, that goes on changing as the model sees fit, and
its release at the end. A plucked or struck note goes on as loud as it was after half a second, and does not die away as
a real one does: a guitar is held, while a mallet, short as it is, is all but silent after the first second.
There is no melody in it; for melodies see `audio-var play`. Memory does not grow with the length.
Clips shorter than the model's are cut, with a short fade. Models of any length make the whole at once, and windows
with --stream only."""

_EPILOG = """examples:
  audio-var generate --label flute --pitch 60 --count 8 --seed 0 --out clips
  audio-var generate --label flute brass --pitch 48 60 72 --cfg 2 --out clips --plot clips/sheet.png
  audio-var generate --label string --pitch 55 --seconds 12 --out clips
  audio-var generate --label organ --pitch 48 --seconds 60 --stream --out - | aplay

a file name tells condition, seed and number: clips/flute_p060_v080_s0_000.wav"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``generate``."""
    generate.add_parser(subparsers, BACKEND, _DESCRIPTION, _EPILOG)
