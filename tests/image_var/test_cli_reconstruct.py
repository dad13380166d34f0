"""`image-var reconstruct`, `tokenize` and `detokenize`: exact agreement, any size of image, and clear refusals."""

import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from image_var.io import read_image
from next_scale.checkpoint import from_pretrained
from next_scale.token_file import read_token_file


def picture(height=32, width=32, channels=1):
    rows, columns = np.indices((height, width))
    planes = [127 + 100 * np.sin(rows / (3 + c)) * np.cos(columns / (5 - c)) for c in range(channels)]
    values = np.stack(planes, -1).astype(np.uint8)
    return Image.fromarray(values if channels == 3 else values[..., 0])


def read(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture
def tiny(tiny_checkpoint):
    return ["--checkpoint", tiny_checkpoint, "--device", "cpu"]


@pytest.fixture
def png(tmp_path):
    picture().save(tmp_path / "in.png")
    return "in.png"


# Reconstruct


def test_an_image_is_what_the_tokenizer_makes_of_it(works, tiny, png, tiny_checkpoint, tmp_path):
    out = works("reconstruct", png, "out.png", *tiny)
    tokenizer = from_pretrained(tiny_checkpoint).tokenizer
    original = read_image(tmp_path / png, channels=1)
    expected = tokenizer.decode(tokenizer.encode(original[None]))[0]
    np.testing.assert_allclose(read(tmp_path / "out.png"), ((expected[0] + 1) * 127.5).numpy(), atol=0.51)
    decibels = 10 * np.log10(4 / (expected - original).square().mean().item())
    assert out == f"out.png: 32 x 32, 340 bits, 0.33 bits a pixel, PSNR {decibels:.2f} dB\n"


@pytest.mark.parametrize(
    "shape, said",
    [
        ((48, 64), "(from 64 x 48, resized and cropped)"),
        ((100, 100), "(from 100 x 100, resized)"),
        ((1, 7), "(from 7 x 1, resized and cropped)"),
    ],
)
def test_other_sizes(works, tiny, tmp_path, shape, said):
    picture(*shape, 3).save(tmp_path / "in.jpg")
    out = works("reconstruct", "in.jpg", "out.webp", *tiny)
    assert f"out.webp: 32 x 32 {said}, 340 bits" in out
    assert Image.open(tmp_path / "out.webp").size == (32, 32)


def test_tokenizers_of_any_size(works, tokenizer_checkpoint, tmp_path):
    argv = ["--checkpoint", tokenizer_checkpoint]
    for (height, width), (rows, columns) in {(48, 64): (48, 64), (70, 9): (64, 16), (1, 1): (16, 16)}.items():
        picture(height, width, 3).save(tmp_path / "in.png")
        out = works("reconstruct", "in.png", "out.png", *argv)
        assert f"out.png: {columns} x {rows}" in out and ("(from" in out) == ((height, width) != (rows, columns))
        works("tokenize", "in.png", "in.nst", *argv)
        works("detokenize", "in.nst", "again.png", *argv)
        assert read(tmp_path / "out.png").shape == (rows, columns, 3)
        assert (tmp_path / "out.png").read_bytes() == (tmp_path / "again.png").read_bytes()
        assert read_token_file(tmp_path / "in.nst").tokens.shape == (1, 21 * rows * columns // 256)


def test_leading_scales(works, tiny, png, tmp_path):
    lines = [works("reconstruct", png, f"{k}.png", "--scales", k, *tiny) for k in (1, 3, 4)]
    works("reconstruct", png, "all.png", *tiny)
    assert (tmp_path / "4.png").read_bytes() == (tmp_path / "all.png").read_bytes()
    assert len({(tmp_path / f"{k}.png").read_bytes() for k in (1, 3, 4)}) == 3
    for tokens, line in zip((1, 21, 85), lines, strict=True):
        assert f" {tokens * 4} bits" in line


def test_folder(works, tiny, tmp_path):
    for name in ("a.png", "a.jpg", "sub/b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("none of ours")
    out = works("reconstruct", "in", "out/deep", "--grid", "out/deep/pairs.png", *tiny)
    found = sorted(str(path.relative_to(tmp_path / "out/deep")) for path in (tmp_path / "out/deep").rglob("*.png"))
    assert found == ["a.png", "a.png.png", "pairs.png", "sub/b.png"]
    assert "3 of 3 files reconstructed in out/deep" in out and out.count("PSNR") == 3
    assert out.splitlines()[-1] == "grid in out/deep/pairs.png"


def test_folder_with_bad_files(tiny, tmp_path, capsys, program):
    (tmp_path / "in").mkdir()
    picture().save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG")
    assert program[1](["reconstruct", str(tmp_path / "in"), str(tmp_path / "out"), *map(str, tiny)]) == 0
    out, err = capsys.readouterr()
    assert "1 of 2 files" in out and "skipped" in err and "bad.png" in err
    assert os.listdir(tmp_path / "out") == ["good.png"]


def test_gray_model_of_colour_and_colour_model_of_gray(works, tiny, other_checkpoint, tmp_path):
    picture(32, 32, 3).save(tmp_path / "colour.png")
    picture().save(tmp_path / "gray.png")
    works("reconstruct", "colour.png", "a.png", *tiny)
    works("reconstruct", "gray.png", "b.png", "--checkpoint", other_checkpoint)
    assert read(tmp_path / "a.png").shape == (32, 32) and read(tmp_path / "b.png").shape == (32, 32, 3)


# Token files


def test_tokenize_and_back(works, tiny, tmp_path):
    picture(40, 60).save(tmp_path / "in.png")
    out = works("tokenize", "in.png", "a.nst", *tiny)
    assert re.fullmatch(
        r"a.nst: 32 x 32 \(from 60 x 40, resized and cropped\), 340 bits, 0.33 bits a pixel; file of \d+ bytes\n", out
    )
    back = works("detokenize", "a.nst", "a.png", *tiny)
    works("reconstruct", "in.png", "b.png", *tiny)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "a.png: 32 x 32 (from 60 x 40" in back
    file = read_token_file(tmp_path / "a.nst")
    assert file.tokens.shape == (1, 85) and file.details == {"size": [32, 32], "original": [40, 60]}
    assert (tmp_path / "a.nst").stat().st_size < 300
    works("detokenize", "a.nst", "coarse.webp", "--scales", 1, *tiny)
    assert Image.open(tmp_path / "coarse.webp").size == (32, 32)


def test_tokens_of_another_checkpoint(fails, works, tiny, other_checkpoint, png, tmp_path):
    works("tokenize", png, "a.nst", *tiny)
    message = fails("detokenize", "a.nst", "a.png", "--checkpoint", other_checkpoint)
    assert "was made by the tokenizer" in message
    assert read_token_file(tmp_path / "a.nst").fingerprint in message


def test_damaged_token_files(fails, works, tiny, png, tmp_path):
    works("tokenize", png, "a.nst", *tiny)
    data = (tmp_path / "a.nst").read_bytes()
    for damaged, message in (
        (data[:-1], "truncated"),
        (b"", "not a token file"),
        (b"junk" + data, "not a token file"),
        (data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "checksum"),
    ):
        (tmp_path / "a.nst").write_bytes(damaged)
        assert message in fails("detokenize", "a.nst", "a.png", *tiny)
    assert "No such file" in fails("detokenize", "b.nst", "a.png", *tiny)
    assert "not a token file" in fails("detokenize", png, "a.png", *tiny)


@pytest.mark.parametrize(
    "details", [{"size": [10**9] * 2}, {"size": [0, 32]}, {"size": "x"}, {"original": [32]}, {"original": [1.5, 2]}, {}]
)
@pytest.mark.parametrize("kind", ["tiny_checkpoint", "tokenizer_checkpoint"])
def test_details_that_do_not_fit(fails, works, request, png, tmp_path, kind, details):
    checkpoint = ["--checkpoint", request.getfixturevalue(kind)]
    works("tokenize", png, "a.nst", *checkpoint)
    data = (tmp_path / "a.nst").read_bytes()
    size = struct.unpack_from("<I", data, 6)[0]
    header = json.loads(data[10 : 10 + size])
    header["details"] = {**header["details"], **details} if details else {}
    text = json.dumps(header).encode()
    body = data[:6] + struct.pack("<I", len(text)) + text + data[10 + size : -4]
    (tmp_path / "a.nst").write_bytes(body + struct.pack("<I", zlib.crc32(body)))
    assert "does not describe its image as this program does" in fails("detokenize", "a.nst", "a.png", *checkpoint)


# Mistakes


BAD = {
    "empty": (b"", "is empty (0 bytes)"),
    "noise": (np.random.default_rng(0).bytes(5000), "no readable image file"),
    "text": (b"not an image\n", "no readable image file"),
}


@pytest.mark.parametrize("command", ["reconstruct", "tokenize"])
@pytest.mark.parametrize("name", BAD)
def test_bad_images(fails, tiny, tmp_path, command, name):
    data, expected = BAD[name]
    (tmp_path / "bad.png").write_bytes(data)
    message = fails(command, "bad.png", "out.png" if command == "reconstruct" else "out.nst", *tiny)
    assert "bad.png" in message and expected in message


@pytest.mark.parametrize("command", ["reconstruct", "tokenize"])
def test_damage_that_only_decoding_shows(fails, tiny, tmp_path, command):
    picture(64, 64).save(tmp_path / "bad.png")
    data = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(data[: len(data) // 2])
    assert "bad.png is damaged" in fails(command, "bad.png", "out.png" if command == "reconstruct" else "o.nst", *tiny)


def test_animations(fails, tiny, tmp_path):
    frames = [Image.new("L", (32, 32), level) for level in (0, 100, 200)]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:])
    assert "in.gif has 3 frames: save the one you mean" in fails("reconstruct", "in.gif", "out.png", *tiny)


def test_missing_input(fails, tiny, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "there is no file nowhere.png" in fails("reconstruct", "nowhere.png", "out.png", *tiny)
    assert "there is no file nowhere.png" in fails("tokenize", "nowhere.png", "out.nst", *tiny)
    assert "folder holds no image file; give a folder with png, jpg or webp files" in fails(
        "reconstruct", "folder", "out", *tiny
    )
    assert "folder is a folder" in fails("tokenize", "folder", "out.nst", *tiny)


def test_folder_without_a_good_file(fails, tiny, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    assert "holds no image file that can be read; first: in/a.png is empty" in fails("reconstruct", "in", "out", *tiny)


def test_wrong_outputs(fails, tiny, png, tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "in").mkdir()
    picture().save(tmp_path / "in" / "a.png")
    assert "end the name in .png, .jpg" in fails("reconstruct", png, "out.gif", *tiny)
    assert "end the name in .png, .jpg" in fails("reconstruct", png, "out", *tiny)
    assert "would overwrite what is read" in fails("reconstruct", png, png, *tiny)
    assert "would overwrite what is read" in fails("reconstruct", "in", "in", *tiny)
    assert "so OUT must be one too" in fails("reconstruct", "in", "out.png", *tiny)
    assert "folder.png is a folder" in fails("reconstruct", png, "folder.png", *tiny)
    assert "there is no folder no" in fails("reconstruct", png, "no/out.png", *tiny)
    assert "there is no folder no" in fails("tokenize", png, "no/out.nst", *tiny)
    assert "an image file; end it in .nst" in fails("tokenize", png, "out.png", *tiny)
    assert "cannot write pairs.txt" in fails("reconstruct", png, "out.png", "--grid", "pairs.txt", *tiny)
    assert "there is no folder no" in fails("reconstruct", png, "out.png", "--grid", "no/pairs.png", *tiny)
    assert "two outputs would be written to out.png" in fails("reconstruct", png, "out.png", "--grid", "out.png", *tiny)


def test_wrong_scales(fails, tiny, png):
    assert "--scales must be from 1 to 4, the scales of this tokenizer, got 5" in fails(
        "reconstruct", png, "out.png", "--scales", 5, *tiny
    )
    assert "--scales: must be 1 or more" in fails("reconstruct", png, "out.png", "--scales", 0, *tiny)


def test_weights_that_give_no_numbers(fails, tiny_generator, png, tmp_path, tmp_path_factory):
    from copy import deepcopy

    from next_scale.checkpoint import save_pretrained

    broken = deepcopy(tiny_generator)
    with torch.no_grad():
        broken.tokenizer.autoencoder.decoder.conv_out.bias.fill_(torch.nan)
    folder = save_pretrained(broken, tmp_path_factory.mktemp("broken"))
    assert "its values are not finite numbers" in fails("reconstruct", png, "out.png", "--checkpoint", folder)
    assert "its values are not finite numbers" in fails("generate", "--checkpoint", folder)
