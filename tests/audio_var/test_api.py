"""The Python interface: its examples run, and it makes what the commands make."""

import doctest

import mido
import soundfile
import torch

from audio_var import api
from audio_var.api import load
from audio_var.score import read_score
from recipes.audio_notes.score import song


def test_examples():
    """On the shipped model."""
    done = doctest.testmod(api)
    assert done.attempted == 3 and done.failed == 0


def test_streams_are_what_the_command_writes(works, tiny_checkpoint, tmp_path):
    works("generate", "--checkpoint", tiny_checkpoint, "--label", "flute", "--seconds", 0.3, "--out", ".")
    written = torch.from_numpy(soundfile.read(tmp_path / "flute_s0_000.wav", dtype="float32")[0])
    made = torch.cat(list(load(str(tiny_checkpoint), "cpu").stream(0.3, label="flute")))
    assert made.shape == (4800,) and (made - written).abs().max() < 1e-3


def test_scores(works, tiny_checkpoint, tmp_path):
    song(bass=False).save(tmp_path / "tune.mid")
    midi = mido.MidiFile(tmp_path / "tune.mid")
    midi.ticks_per_beat *= 16  # as many times as fast
    midi.save(tmp_path / "fast.mid")
    works("play", "fast.mid", "--checkpoint", tiny_checkpoint, "--label", "flute", "--candidates", 1, "--out", "a.wav")
    written = torch.from_numpy(soundfile.read(tmp_path / "a.wav", dtype="float32")[0])
    made = load(str(tiny_checkpoint), "cpu").play(tmp_path / "fast.mid", label="flute", candidates=1)
    assert made.shape == written.shape and (made - written).abs().max() < 1e-3
    assert 2 <= len(made) / 16_000 < 2.2 and len(read_score(tmp_path / "fast.mid").notes) == 44
