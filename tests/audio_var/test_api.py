"""The Python interface: its examples run as they are written, and it makes what the commands make."""

import doctest

import mido
import soundfile
import torch

import audio_var.api
from audio_var.api import AudioModel, load
from audio_var.io import read_audio
from audio_var.score import read_score
from recipes.audio_notes.score import song


def test_examples():
    result = doctest.testmod(audio_var.api)
    assert result.attempted > 5 and result.failed == 0


def test_the_editor_is_the_command(tiny_generator, tiny_checkpoint, works, tmp_path):
    soundfile.write(tmp_path / "in.wav", model_clip(tiny_generator), 16_000)
    works("edit", "in.wav", "out.wav", "--checkpoint", tiny_checkpoint, "--inpaint", "0.02:0.04", "--label", "bass",
          "--seed", 3, "--top-k", 4)  # fmt: skip
    audio = torch.from_numpy(read_audio(tmp_path / "in.wav", 16_000))
    editor = AudioModel(tiny_generator).editor(seed=3, sampling={"top_k": 4}, label="bass")
    made = torch.from_numpy(read_audio(tmp_path / "out.wav", 16_000))
    torch.testing.assert_close(editor.inpaint(audio, 0.02, 0.04).clamp(-1, 1), made, atol=1e-4, rtol=0)


def model_clip(generator):
    return AudioModel(generator)(label="bass")[0, 0].clamp(-1, 1).numpy()


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
