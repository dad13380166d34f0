"""Clips longer than the model's: written piece by piece, the same for the same seed, to files and to pipes."""

import os

import numpy as np
import pytest
import soundfile
import torch

from audio_var.cli import main
from audio_var.io import AudioWriter
from audio_var.long import plan_lasting, sound_long
from next_scale.errors import UserError

CLIP = 1024  # samples of the tiny model's clips


@pytest.fixture
def tiny(tiny_checkpoint):
    return ["generate", "--checkpoint", tiny_checkpoint, "--device", "cpu"]


def sound(generator, samples, seeds=(1,)):
    pieces = list(sound_long(generator, {}, list(seeds), samples))
    assert max(piece.shape[-1] for piece in pieces) <= 8 * CLIP
    return torch.cat(pieces, 2)


@pytest.mark.parametrize("samples", [1, 500, 1024, 1025, 9999])
def test_length(tiny_generator, samples):
    made = sound(tiny_generator, samples, (1, 2))
    assert made.shape == (2, 1, samples) and torch.isfinite(made).all()
    assert torch.allclose(sound(tiny_generator, samples, (2,))[0], made[1], atol=1e-3)


def test_a_long_clip_begins_like_a_short_one(tiny_generator):
    long = sound(tiny_generator, 8 * CLIP)
    clip = tiny_generator.generate({}, [1])[0]
    assert (long[..., :300] - clip[..., :300]).norm() < 0.02 * clip[..., :300].norm()
    assert not torch.allclose(long[..., CLIP : 2 * CLIP], long[..., 2 * CLIP : 3 * CLIP], atol=1e-3)


def test_a_short_one_fades(tiny_generator):
    made, clip = sound(tiny_generator, 800)[0, 0], sound(tiny_generator, CLIP)[0, 0]
    assert torch.equal(made[:480], clip[:480]) and made[-1].abs() < 0.01 * clip.abs().max()


def test_windows(tiny_generator):
    assert plan_lasting(tiny_generator, 4 * CLIP).length == 64 and plan_lasting(tiny_generator, 1).count == 1


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_files(works, tiny, tmp_path, suffix):
    out = works(*tiny, "--label", "flute", "bass", "--seconds", 0.5, "--format", suffix, "--out", "clips")
    assert (
        out.splitlines()[-1] == "2 clips of 0.50 s in clips: label bass, flute (seed 0)" or "2 clips of 0.50 s" in out
    )
    assert [soundfile.info(path).frames for path in (tmp_path / "clips").iterdir()] == [8000, 8000]


def test_repeats_whatever_the_batch(works, tiny, tmp_path):
    asked = ["--label", "flute", "--count", 3, "--seconds", 0.4]
    works(*tiny, *asked, "--out", "a", "--plot", "a.png")
    works(*tiny, *asked, "--out", "b")
    out = works(*tiny, *asked, "--out", "c", "--stream").splitlines()
    assert "times as fast as real time" in out[-1] and out[-2].startswith("3 clips of 0.40 s in c")
    for name in os.listdir(tmp_path / "a"):
        a, b, c = (soundfile.read(tmp_path / folder / name, dtype="int16")[0].astype(int) for folder in "abc")
        assert np.array_equal(a, b) and np.abs(a - c).max() <= 33  # 1e-3 of full scale


def test_standard_output(tiny, tmp_path, capsysbinary):
    assert main([*map(str, tiny), "--seconds", "0.5", "--stream", "--out", "-"]) == 0
    out, err = capsysbinary.readouterr()
    assert b"first sound" in err and err.count(b"\n") == 1
    (tmp_path / "a.wav").write_bytes(out)
    assert soundfile.info(tmp_path / "a.wav").frames == 8000 and len(out) == 44 + 16_000


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--out", "-"], "needs --stream"),
        (["--out", "-", "--stream", "--count", 2], "takes one clip"),
        (["--out", "-", "--stream", "--format", "flac"], "takes one clip, as wav"),
        (["--out", "-", "--stream", "--plot", "a.png"], "name a folder"),
        (["--seconds", 0], "above 0"),
        (["--seconds", -1], "above 0"),
        (["--seconds", 1e9], "up to 3600"),
    ],
)
def test_mistakes(fails, tiny, argv, message):
    assert message in fails(*tiny, *argv)


def test_full_disk(fails, tiny, full_disk):
    message = fails(*tiny, "--seconds", 2, "--stream", "--out", full_disk / "clips")
    assert "No space left on device" in message and "free space" in message


def test_a_file_grows_and_can_be_read(tmp_path):
    """`OUT.part` while it is written, and nothing after a failure."""
    with AudioWriter(tmp_path / "a.wav", 16_000, 600) as writer:
        writer.write(np.full(400, 0.5))
        part, rate = soundfile.read(tmp_path / "a.wav.part")
        assert rate == 16_000 and len(part) == 400 and abs(part[0] - 0.5) < 1e-4
        writer.write(np.full(200, 2.0))
    assert os.listdir(tmp_path) == ["a.wav"] and soundfile.read(tmp_path / "a.wav")[0].max() <= 1
    with pytest.raises(UserError, match="not finite"), AudioWriter(tmp_path / "b.flac", 16_000, 600) as writer:
        writer.write(np.full(400, np.nan))
    with pytest.raises(UserError, match="end the name"):
        AudioWriter(tmp_path / "b.mp3", 16_000, 600)
    with pytest.raises(UserError, match="cannot write"), AudioWriter(tmp_path / "none" / "b.wav", 16_000, 600):
        pass
    assert os.listdir(tmp_path) == ["a.wav"]
