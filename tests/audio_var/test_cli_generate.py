"""`audio-var generate`: the clips asked for, the same for the same seed, and nothing at all after a mistake."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch


def read(path):
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == 16_000
    return samples


@pytest.fixture
def tiny(tiny_checkpoint):
    return ["generate", "--checkpoint", tiny_checkpoint, "--device", "cpu"]


def test_names_tell_the_condition(works, tiny, tmp_path):
    out = works(*tiny, "--label", "flute", "--pitch", 60, "--velocity", 80, "--count", 2, "--seed", 7, "--out", "a/b")
    names = ["flute_p060_v080_s7_000.wav", "flute_p060_v080_s7_001.wav"]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == names
    assert out.splitlines() == [
        *(f"a/b/{name}" for name in names),
        "2 clips of 0.06 s in a/b: label flute; pitch 60; velocity 80 (seed 7)",
    ]
    clips = [read(tmp_path / "a" / "b" / name) for name in names]
    assert all(clip.shape == (1024,) and np.abs(clip).max() > 0 for clip in clips)
    assert not np.array_equal(*clips)


def test_every_combination(works, tiny, tmp_path):
    works(*tiny, "--label", "flute", "brass", "--pitch", "60,61", "--pitch", 62, "--out", "clips")
    expected = [f"{label}_p0{pitch}_s0_000.wav" for label in ("brass", "flute") for pitch in (60, 61, 62)]
    assert sorted(os.listdir(tmp_path / "clips")) == expected
    data = [(tmp_path / "clips" / name).read_bytes() for name in expected]
    assert len(set(data)) > 3  # conditions change what is made


def test_no_condition(works, tiny, tmp_path):
    out = works(*tiny, "--out", "clips")
    assert os.listdir(tmp_path / "clips") == ["any_s0_000.wav"]
    assert "1 clip of 0.06 s in clips: no condition (seed 0)" in out


def test_many_are_summed_up(works, tiny):
    out = works(*tiny, "--count", 23, "--out", "clips").splitlines()
    assert len(out) == 22 and out[20] == "... and 3 more" and out[21].startswith("23 clips")


def test_nearest_velocity(works, tiny, tmp_path):
    works(*tiny, "--velocity", 100, 90, 112, "--out", "clips")
    assert sorted(os.listdir(tmp_path / "clips")) == ["v080_s0_000.wav", "v115_s0_000.wav"]


def test_conditions_of_another_model(works, other_checkpoint, tmp_path):
    argv = ["--checkpoint", other_checkpoint, "--out", "clips"]
    works("generate", "--emotion", "calm", "angry", "--condition", "speaker=3", *argv)
    assert sorted(os.listdir(tmp_path / "clips")) == ["angry_s003_s0_000.wav", "calm_s003_s0_000.wav"]


@pytest.mark.parametrize("suffix, header", [("wav", b"RIFF"), ("flac", b"fLaC"), ("ogg", b"OggS")])
def test_formats(works, tiny, tmp_path, suffix, header):
    works(*tiny, "--format", suffix, "--out", "clips")
    assert (tmp_path / "clips" / f"any_s0_000.{suffix}").read_bytes().startswith(header)


def test_plot(works, tiny, tmp_path):
    out = works(*tiny, "--count", 3, "--out", "clips", "--plot", "clips/sheet.png")
    assert (tmp_path / "clips" / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert out.splitlines()[-1] == "spectrograms of 3 in clips/sheet.png"
    assert len(os.listdir(tmp_path / "clips")) == 4


# Repeatability


ASKED = ["--label", "flute", "bass", "--pitch", "60", "--count", "6"]


def test_same_seed_same_bytes(works, tiny, tmp_path):
    for out in ("a", "b"):
        works(*tiny, *ASKED, "--out", out)
    works(*tiny, *ASKED, "--seed", 1, "--out", "c")
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("a", "b"))
    assert first == second
    other = [path.read_bytes() for path in (tmp_path / "c").iterdir()]
    assert not set(first.values()) & set(other)


@pytest.mark.parametrize("sampling", [[], ["--cfg", "0", "--top-k", "0"], ["--cfg", "3", "--top-p", "0.9"]])
def test_batch_size_changes_nothing(works, tiny, tmp_path, sampling):
    for size in (1, 5, 16):
        works(*tiny, *ASKED, *sampling, "--batch-size", size, "--out", f"by{size}")
    names = os.listdir(tmp_path / "by1")
    assert len(names) == 12
    for name in names:
        clips = [read(tmp_path / f"by{size}" / name) / 32767 for size in (1, 5, 16)]
        assert np.abs(clips[0] - clips[1]).max() <= 1e-4 and np.abs(clips[0] - clips[2]).max() <= 1e-4


def test_a_clip_depends_on_its_condition_and_number_only(works, tiny, tmp_path):
    works(*tiny, *ASKED, "--out", "many")
    works(*tiny, "--label", "bass", "--pitch", 60, "--count", 3, "--batch-size", 2, "--out", "few")
    for path in (tmp_path / "few").iterdir():
        difference = read(path).astype(int) - read(tmp_path / "many" / path.name)
        assert np.abs(difference).max() <= 3  # 1e-4 of full scale


def test_sampling_options_have_an_effect(works, tiny, tmp_path):
    options = [["--temperature", "0"], ["--cfg", "5"], ["--cfg", "5", "--no-cfg-ramp"], ["--top-k", "1"]]
    made = {}
    for number, argv in enumerate([[], *options]):
        works(*tiny, "--label", "flute", "--count", 2, "--out", str(number), *argv)
        made[number] = [(tmp_path / f"{number}" / f"flute_s0_00{i}.wav").read_bytes() for i in range(2)]
    assert made[1] == made[4] and made[1][0] == made[1][1]  # the most likely token, whatever the seed
    assert len({made[i][0] for i in (0, 1, 2, 3)}) == 4


# Mistakes


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--label", "flut"], "unknown label 'flut'; known: bass, brass, flute; did you mean 'flute'?"),
        (["--pitch", 20], "pitch 20 is out of range; give a number from 36 to 84"),
        (["--pitch", 60, 85], "pitch 85 is out of range"),
        (["--velocity", "loud"], "velocity must be a number"),
        (["--condition", "colour=red"], "unknown condition 'colour'; known: label, pitch, velocity"),
        (["--count", 0], "--count: must be from 1 to 100000, got 0"),
        (["--count", -1], "--count: must be from 1"),
        (["--count", "many"], "--count: must be a whole number"),
        (["--count", 50_000, "--label", "bass", "brass", "flute"], "more than 100,000 clips"),
        (["--seed", -1], "--seed: must be 0 or more"),
        (["--temperature", -1], "temperature must be"),
        (["--temperature", "nan"], "temperature must be"),
        (["--top-p", 2], "top-p must be"),
        (["--top-k", -3], "top-k must be"),
        (["--cfg", "inf"], "cfg must be"),
        (["--format", "mp3"], "invalid choice: 'mp3'"),
        (["--plot", "sheet.gif"], "cannot draw sheet.gif"),
        (["--plot", "nowhere/sheet.png"], "there is no folder nowhere"),
        (["--batch-size", 0], "--batch-size: must be 1 or more"),
        (["--device", "gpu"], "the device 'gpu' does not work here"),
        (
            ["--tempreature", 1],
            "unknown argument --tempreature; conditions of this checkpoint: label, pitch, velocity",
        ),
    ],
)
def test_wrong_arguments(fails, tiny, argv, message):
    assert message in fails(*tiny, "--out", "clips", *argv)


def test_checkpoints_that_are_none(fails, tiny_checkpoint, tokenizer_checkpoint, tmp_path):
    assert "no checkpoint at nowhere" in fails("generate", "--checkpoint", "nowhere")
    assert "a tokenizer only" in fails("generate", "--checkpoint", tokenizer_checkpoint)
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    data = (copy / "model.safetensors").read_bytes()
    for damaged in (data[: len(data) // 2], b"", bytes(100), b"RIFF" + data):
        (copy / "model.safetensors").write_bytes(damaged)
        assert "not a whole safetensors file" in fails("generate", "--checkpoint", copy)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pt")
    assert "not a whole safetensors file" in fails("generate", "--checkpoint", "pickle.pt")


def test_unwritable(fails, tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "file is a file; name a folder" in fails(*tiny, "--out", "file")
    assert "a part of this path is a file" in fails(*tiny, "--out", "file/clips")
    if os.path.isdir("/proc"):
        assert "cannot write /proc/clips" in fails(*tiny, "--out", "/proc/clips")

    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", forbidden)
    assert "Permission denied; write to another folder" in fails(*tiny, "--out", "clips")


def test_a_folder_lies_where_a_clip_should_go(fails, tiny, tmp_path):
    (tmp_path / "clips" / "any_s0_000.wav").mkdir(parents=True)
    assert "any_s0_000.wav is a folder" in fails(*tiny, "--out", "clips")


def test_disk_fills_up(fails, tiny, monkeypatch):
    written = []

    def full(descriptor):
        written.append(descriptor)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("audio_var.io.os.fsync", full)
    message = fails(*tiny, "--count", 8, "--out", "a/clips")
    assert "a/clips/any_s0_004.wav: No space left on device" in message and "partial" not in message
    assert len(written) == 5


def test_full_disk(fails, tiny, full_disk):
    message = fails(*tiny, "--count", 20, "--out", full_disk / "clips")
    assert "No space left on device" in message and "free space" in message


def test_full_disk_for_the_plot(fails, tiny, full_disk):
    assert "No space left on device" in fails(*tiny, "--count", 4, "--out", "clips", "--plot", full_disk / "a.png")


def test_interrupted(tiny, tmp_path, monkeypatch, capsys):
    from audio_var import cli, io

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(io.os, "fsync", interrupt)
    assert cli.main([*map(str, tiny), "--out", str(tmp_path / "clips")]) == 130
    assert capsys.readouterr() == ("", "audio-var: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_from_a_shell(tiny, tmp_path):
    command = [sys.executable, "-m", "audio_var", *map(str, tiny), "--count", "0", "--out", str(tmp_path / "clips")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert not list(tmp_path.iterdir())
