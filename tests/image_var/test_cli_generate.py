"""`image-var generate`: the images asked for, the same for the same seed, and nothing at all after a mistake."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image


def read(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture
def tiny(tiny_checkpoint):
    return ["generate", "--checkpoint", tiny_checkpoint, "--device", "cpu"]


def test_names_tell_the_condition(works, tiny, tmp_path):
    out = works(*tiny, "--label", "sneaker", "--count", 2, "--seed", 7, "--out", "a/b")
    names = ["sneaker_s7_000.png", "sneaker_s7_001.png"]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == names
    assert out.splitlines() == [
        *(f"a/b/{name}" for name in names),
        "2 images of 32 x 32 in a/b: label sneaker (seed 7)",
    ]
    images = [read(tmp_path / "a" / "b" / name) for name in names]
    assert all(image.shape == (32, 32) and np.ptp(image) > 20 for image in images)
    assert not np.array_equal(*images)


def test_every_label(works, tiny, tmp_path):
    works(*tiny, "--label", "sneaker,bag", "ankle-boot", "--out", "images")
    names = ["ankle-boot_s0_000.png", "bag_s0_000.png", "sneaker_s0_000.png"]
    assert sorted(os.listdir(tmp_path / "images")) == names
    assert len({(tmp_path / "images" / name).read_bytes() for name in names}) == 3  # conditions change what is made


def test_no_condition(works, tiny, tmp_path):
    out = works(*tiny)
    assert os.listdir(tmp_path / "images") == ["any_s0_000.png"]
    assert "1 image of 32 x 32 in images: no condition (seed 0)" in out


def test_numbered_classes(works, fails, other_checkpoint, tmp_path):
    argv = ["generate", "--checkpoint", other_checkpoint]
    out = works(*argv, "--label", 207, 3, "--grid", "sheet.png")
    assert sorted(os.listdir(tmp_path / "images")) == ["label003_s0_000.png", "label207_s0_000.png"]
    assert read(tmp_path / "images" / "label207_s0_000.png").shape == (32, 32, 3)
    assert "label 207, 3 (seed 0)" in out and (tmp_path / "sheet.png").is_file()
    shutil.rmtree(tmp_path / "images")
    assert "label 1000 is out of range; give a number from 0 to 999" in fails(*argv, "--label", 1000)


def test_images_that_are_not_square(works, wide_checkpoint, tmp_path):
    argv = ["--checkpoint", wide_checkpoint]
    out = works("generate", "--label", "日本", "a/b, c", "--count", 2, "--grid", "--format", "webp", *argv)
    assert "4 images of 64 x 32 in images: label 日本, a/b, c (seed 0)" in out
    names = ["a-b-c_s0_000.webp", "a-b-c_s0_001.webp", "grid.png", "日本_s0_000.webp", "日本_s0_001.webp"]
    assert sorted(os.listdir(tmp_path / "images")) == names
    assert read(tmp_path / "images" / names[0]).shape == (32, 64, 3)
    works("reconstruct", "images", "again", "--grid", "pairs.png", *argv)
    assert read(tmp_path / "again" / "日本_s0_000.png").shape == (32, 64, 3)


def test_many_are_summed_up(works, tiny):
    out = works(*tiny, "--count", 23).splitlines()
    assert len(out) == 22 and out[20] == "... and 3 more" and out[21].startswith("23 images")


@pytest.mark.parametrize("suffix, header", [("png", b"\x89PNG"), ("jpg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_formats(works, tiny, tmp_path, suffix, header):
    works(*tiny, "--format", suffix)
    assert (tmp_path / "images" / f"any_s0_000.{suffix}").read_bytes().startswith(header)


def test_scale(works, tiny, tmp_path):
    works(*tiny, "--out", "small")
    assert "1 image of 96 x 96" in works(*tiny, "--scale", 3, "--out", "large")
    small, large = (read(tmp_path / name / "any_s0_000.png") for name in ("small", "large"))
    assert np.array_equal(large, np.kron(small, np.ones((3, 3), int)))


def test_grid(works, tiny, tmp_path):
    out = works(*tiny, "--label", "bag", "sneaker", "--count", 3, "--grid")
    assert out.splitlines()[-1] == "grid of 6 in images/grid.png"
    width, height = Image.open(tmp_path / "images" / "grid.png").size
    assert width > 3 * 96 and 2 * 96 < height < 3 * 96
    assert len(os.listdir(tmp_path / "images")) == 7
    works(*tiny, "--count", 2, "--out", "others", "--grid", "others/sheet.webp")
    assert (tmp_path / "others" / "sheet.webp").is_file()


# Repeatability


ASKED = ["--label", "sneaker", "bag", "--count", "4"]


def test_same_seed_same_bytes(works, tiny, tmp_path):
    for out in ("a", "b"):
        works(*tiny, *ASKED, "--out", out, "--grid")
    works(*tiny, *ASKED, "--seed", 1, "--out", "c")
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("a", "b"))
    assert first == second
    other = [path.read_bytes() for path in (tmp_path / "c").iterdir()]
    assert not set(first.values()) & set(other)


@pytest.mark.parametrize("sampling", [[], ["--cfg", "0", "--top-k", "0"], ["--cfg", "3", "--top-p", "0.9"]])
def test_batch_size_changes_nothing(works, tiny, tmp_path, sampling):
    for size in (1, 3, 16):
        works(*tiny, *ASKED, *sampling, "--batch-size", size, "--out", f"by{size}")
    names = os.listdir(tmp_path / "by1")
    assert len(names) == 8
    for name in names:
        one, *others = (read(tmp_path / f"by{size}" / name) for size in (1, 3, 16))
        assert all(np.abs(one - other).max() <= 1 for other in others)


def test_an_image_depends_on_its_condition_and_number_only(works, tiny, tmp_path):
    works(*tiny, *ASKED, "--out", "many")
    works(*tiny, "--label", "bag", "--count", 3, "--batch-size", 2, "--out", "few")
    for path in (tmp_path / "few").iterdir():
        assert np.abs(read(path) - read(tmp_path / "many" / path.name)).max() <= 1


def test_sampling_options_have_an_effect(works, tiny, tmp_path):
    options = [["--temperature", "0"], ["--cfg", "5"], ["--cfg", "5", "--no-cfg-ramp"], ["--smooth"], ["--top-k", "1"]]
    made = []
    for number, argv in enumerate([[], *options]):
        works(*tiny, "--label", "sneaker", "--count", 2, "--out", str(number), *argv)
        made.append([(tmp_path / f"{number}" / f"sneaker_s0_00{i}.png").read_bytes() for i in range(2)])
    assert made[1] == made[5] and made[1][0] == made[1][1]  # the most likely token, whatever the seed
    assert len({made[i][0] for i in range(5)}) == 5


# Mistakes


@pytest.mark.parametrize(
    "argv, message",
    [
        (
            ["--label", "sneker"],
            "unknown label 'sneker'; known: t-shirt, sneaker, bag, ankle-boot; did you mean 'sneaker'?",
        ),
        (["--label", 207], "unknown label '207'; known: t-shirt, sneaker"),
        (["--condition", "colour=red"], "unknown condition 'colour'; known: label"),
        (["--pitch", 60], "unknown argument --pitch; conditions of this checkpoint: label"),
        (["--count", 0], "--count: must be from 1 to 100000, got 0"),
        (["--count", -1], "--count: must be from 1"),
        (["--count", 50_000, "--label", "bag", "sneaker", "t-shirt"], "more than 100,000 images"),
        (["--seed", -1], "--seed: must be 0 or more"),
        (["--temperature", "nan"], "temperature must be"),
        (["--top-p", 2], "top-p must be"),
        (["--cfg", "inf"], "cfg must be"),
        (["--format", "gif"], "invalid choice: 'gif'"),
        (["--scale", 0], "--scale: must be from 1 to 32, got 0"),
        (["--grid", "sheet.gif"], "cannot write sheet.gif: end the name in .png"),
        (["--grid", "nowhere/sheet.png"], "there is no folder nowhere"),
        (["--batch-size", 0], "--batch-size: must be 1 or more"),
        (["--device", "gpu"], "the device 'gpu' does not work here"),
    ],
)
def test_wrong_arguments(fails, tiny, argv, message):
    assert message in fails(*tiny, *argv)


def test_checkpoints_that_are_none(fails, tiny_checkpoint, tokenizer_checkpoint, tmp_path):
    assert "no checkpoint at nowhere" in fails("generate", "--checkpoint", "nowhere")
    assert "a tokenizer only" in fails("generate", "--checkpoint", tokenizer_checkpoint)
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    data = (copy / "model.safetensors").read_bytes()
    for damaged in (data[: len(data) // 2], b"", bytes(100), b"RIFF" + data):
        (copy / "model.safetensors").write_bytes(damaged)
        assert "not a whole safetensors file" in fails("generate", "--checkpoint", copy)
    torch.save({"a": torch.zeros(1)}, tmp_path / "var_d16.pth")
    assert "not a whole safetensors file" in fails("generate", "--checkpoint", "var_d16.pth")


def test_unwritable(fails, tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "file is a file; name a folder" in fails(*tiny, "--out", "file")
    assert "a part of this path is a file" in fails(*tiny, "--out", "file/images")
    if os.path.isdir("/proc"):
        assert "cannot write /proc/images" in fails(*tiny, "--out", "/proc/images")

    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", forbidden)
    assert "Permission denied; write to another folder" in fails(*tiny)


def test_a_folder_lies_where_an_image_should_go(fails, tiny, tmp_path):
    (tmp_path / "images" / "any_s0_000.png").mkdir(parents=True)
    assert "any_s0_000.png is a folder" in fails(*tiny)


def test_disk_fills_up(fails, tiny, monkeypatch):
    written = []

    def full(descriptor):
        written.append(descriptor)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("next_scale.files.os.fsync", full)
    message = fails(*tiny, "--count", 8, "--out", "a/images")
    assert "a/images/any_s0_004.png: No space left on device" in message and "partial" not in message
    assert len(written) == 5


def test_full_disk(fails, tiny, full_disk):
    message = fails(*tiny, "--count", 20, "--scale", 8, "--out", full_disk / "images")
    assert "No space left on device" in message and "free space" in message


def test_interrupted(tiny, tmp_path, monkeypatch, capsys):
    from image_var import cli

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("next_scale.files.os.fsync", interrupt)
    assert cli.main([*map(str, tiny), "--out", str(tmp_path / "images")]) == 130
    assert capsys.readouterr() == ("", "image-var: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_from_a_shell(tiny, tmp_path):
    command = [sys.executable, "-m", "image_var", *map(str, tiny), "--count", "0", "--out", str(tmp_path / "images")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert not list(tmp_path.iterdir())
