"""The Python interface: its examples run as they are written."""

import doctest

import soundfile
import torch

import audio_var.api
from audio_var.api import AudioModel
from audio_var.io import read_audio


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
