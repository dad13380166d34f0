"""The Python interface: its examples run, and it makes what the commands make."""

import doctest
from pathlib import Path

import soundfile
import torch

from audio_var import api
from audio_var.api import load


def test_examples():
    """On the shipped model."""
    done = doctest.testmod(api)
    assert done.attempted == 3 and done.failed == 0


def test_streams_are_what_the_command_writes(works, tiny_checkpoint, tmp_path):
    works("generate", "--checkpoint", tiny_checkpoint, "--label", "flute", "--seconds", 0.3, "--out", ".")
    written = torch.from_numpy(soundfile.read(tmp_path / "flute_s0_000.wav", dtype="float32")[0])
    made = torch.cat(list(load(str(tiny_checkpoint), "cpu").stream(0.3, label="flute")))
    assert made.shape == (4800,) and (made - written).abs().max() < 1e-3


def test_scores(tiny_checkpoint):
    score = Path(__file__).parents[2] / "samples" / "long" / "tune.mid"
    sound = load(str(tiny_checkpoint), "cpu").play(score, label="flute", candidates=1)
    assert sound.shape[0] > 16_000 * 31.9 and abs(float(sound.abs().max()) - 0.9) < 1e-3
