"""`next-scale joint` as a user runs it, on a tiny model: every direction, bad input, and nothing half-written."""

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from image_var.data.icons import draw_icon
from image_var.io import write_image
from next_scale.checkpoint import from_pretrained


@pytest.fixture
def program():
    from next_scale.compare.cli import main

    return "next-scale", main


@pytest.fixture
def note(tmp_path):
    soundfile.write(tmp_path / "note.wav", 0.5 * np.sin(np.arange(16_384) / 9), 16_000)
    return "note.wav"


@pytest.fixture
def picture(tmp_path):
    write_image(tmp_path / "flute.png", draw_icon("flute", torch.Generator().manual_seed(0)))
    return "flute.png"


def test_every_direction(works, joint_checkpoint, note, picture, tmp_path):
    begin = ("joint", "generate", "--checkpoint", joint_checkpoint)
    out = works(*begin, "--from", "text:soft flute", "--to", "audio", "--out", "made.wav")
    assert out == "made.wav: 1.02 s\n"
    audio, rate = soundfile.read(tmp_path / "made.wav")
    assert (len(audio), rate) == (16_384, 16_000)
    assert works(*begin, "--from", "text:a boot", "--to", "image", "--out", "made.png") == "made.png: 32 x 32\n"
    assert Image.open(tmp_path / "made.png").size == (32, 32)
    for given in (f"audio:{note}", f"image:{picture}"):
        said = works(*begin, "--from", given, "--to", "text", "--count", 2)
        assert said.count("\n") == 2 and said.isprintable() is False and all(map(str.isprintable, said.splitlines()))
        assert said == works(*begin, "--from", given, "--to", "text", "--count", 2)
    out = works(*begin, "--from", f"image:{picture}", "--to", "audio", "--out", "it.flac", "--count", 3, "--seed", 5)
    assert [line.split(":")[0] for line in out.splitlines()] == [f"it_00{i}.flac" for i in range(3)]
    works(*begin, "--from", f"audio:{note}", "--to", "image", "--out", "it.png", "--temperature", 0)
    works(*begin, "--from", f"image:{picture}", "--from", "text:soft low", "--to", "audio", "--out", "soft.wav")
    assert (tmp_path / "soft.wav").read_bytes() != (tmp_path / "made.wav").read_bytes()
    # a part drawn is a part given: text of nothing, then what it describes
    out = works(*begin, "--to", "text", "--to", "image", "--out", "own.png")
    assert out.splitlines()[1] == "own.png: 32 x 32"


def test_a_sample_does_not_depend_on_its_batch(works, joint_checkpoint, tmp_path):
    begin = ("joint", "generate", "--checkpoint", joint_checkpoint, "--from", "text:a flute", "--to", "image")
    works(*begin, "--out", "all.png", "--count", 3)
    works(*begin, "--out", "one.png", "--count", 3, "--batch-size", 1)
    for i in range(3):
        assert (tmp_path / f"all_00{i}.png").read_bytes() == (tmp_path / f"one_00{i}.png").read_bytes()


def test_mistakes_are_told_in_a_line(fails, joint_checkpoint, tokenizers, tiny_checkpoint, picture):
    begin = ("joint", "generate", "--checkpoint", joint_checkpoint)
    to_audio = ("--to", "audio", "--out", "a.wav")
    for arguments, message in (
        (("--from", "text", *to_audio), "takes KIND:VALUE"),
        (("--from", "text:", *to_audio), "gives nothing"),
        (("--from", "text: \u200b ", *to_audio), "the prompt is empty"),
        (("--from", "text:a\x1b[31mflute", *to_audio), "control character, \\x1b"),
        (("--from", "text:" + "flute " * 2000, *to_audio), "256 fit"),
        (("--from", "text:a very soft low flute", *to_audio), "bytes, and this model reads 16"),
        (("--from", "smell:rose", *to_audio), "no kind 'smell'; kinds are text, audio, image"),
        (("--from", "text:a", "--to", "audio"), "needs 1 --out, got 0"),
        (("--from", f"image:{picture}", "--to", "text", "--out", "a.txt"), "text is printed and needs none --out"),
        (("--from", "text:a", "--to", "audio", "--out", "a.xyz"), "a.xyz"),
        (("--from", "image:none.png", *to_audio), "none.png"),
        (("--from", "text:a", "--from", f"image:{picture}", *to_audio), "never learned the order 'text image audio'"),
        (("--from", "text:a", *to_audio, "--temperature", "-1"), "temperature must be"),
        (("--from", "text:a", "--to", "audio", "--out", "missing/a.wav"), "no folder missing"),
    ):
        assert message in fails(*begin, *arguments), arguments
    assert "is no joint model" in fails(
        "joint", "generate", "--checkpoint", tokenizers["audio"], "--from", "text:a", *to_audio
    )
    assert "is no joint model" in fails(
        "joint", "generate", "--checkpoint", tiny_checkpoint, "--from", "text:a", *to_audio
    )
    assert "--checkpoint" in fails("joint", "generate", "--from", "text:a", *to_audio)


def test_right_to_left_and_emoji_are_text_like_any_other(works, joint_checkpoint):
    begin = ("joint", "generate", "--checkpoint", joint_checkpoint, "--to", "audio", "--out", "a.wav")
    works(*begin, "--from", "text:חליל")
    works(*begin, "--from", "text:🎺🎷")


def test_other_programs_name_this_one(joint_checkpoint, tmp_path, capsys):
    from audio_var.cli import main

    assert main(["generate", "--checkpoint", str(joint_checkpoint), "--out", str(tmp_path)]) == 2
    assert "is a joint model of audio, image; use next-scale joint generate" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_teaches(capsys):
    from next_scale.compare.cli import main

    for arguments in (["joint", "generate", "--help"], ["joint", "fit", "--help"], ["--help"]):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr().out
        assert not code and "next-scale joint" in out
    assert main(["joint", "fit"]) == 2


def test_checkpoint_comes_back(joint_checkpoint):
    model = from_pretrained(joint_checkpoint)
    assert model.sampling["audio"].cfg == 1.0 and set(model.tokenizers) == {"audio", "image"}
    made = model.generate([model.fill("text", ["a flute"] * 2)], ["image"], [1, 2])
    assert made[0].content.shape == (2, 1, 32, 32)
