"""Image files: what is read is what is shown, and everything that is wrong with a file is told in one sentence."""

import errno
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from image_var import io as image_io
from image_var.io import MOST_PIXELS, check_image, read_image, to_picture, write_image
from next_scale.errors import UserError

RED = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)


def gradient(height=6, width=8, top=255):
    """Every value different from its neighbours, so that a turn or a mirror shows."""
    return np.linspace(0, top, height * width).reshape(height, width)


def save(path, picture, **options):
    picture.save(path, **options)
    return path


def levels(tensor):
    return ((tensor + 1) * 127.5).round().to(torch.uint8)


# Kinds of images


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_formats(tmp_path, suffix):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(rgb), **({"lossless": True} if suffix == "webp" else {}))
    assert check_image(path) == (6, 8)
    image = read_image(path)
    assert image.shape == (3, 6, 8) and image.dtype == torch.float32 and image.is_contiguous()
    np.testing.assert_array_equal(levels(image).permute(1, 2, 0), rgb)


def test_gray_and_colour(tmp_path):
    gray = save(tmp_path / "gray.png", Image.fromarray(gradient().astype(np.uint8)))
    image = read_image(gray, channels=1)
    assert image.shape == (1, 6, 8) and image.min() == -1 and image.max() == 1
    assert torch.equal(read_image(gray, channels=3), image.expand(3, -1, -1))
    red = save(tmp_path / "red.png", Image.new("RGB", (8, 6), "red"))
    assert torch.equal(read_image(red), RED.expand(3, 6, 8))
    assert levels(read_image(red, channels=1)).unique().tolist() == [76]  # 0.299 of 255


def test_black_and_white(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(gradient() > 100))
    assert read_image(path, channels=1).unique().tolist() == [-1, 1]


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits(tmp_path, suffix):
    values = gradient(top=65535).round().astype(np.uint16)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(values))
    expected = torch.from_numpy(values / 32767.5 - 1).float()
    for channels in (1, 3):
        torch.testing.assert_close(read_image(path, channels=channels), expected.expand(channels, -1, -1))
    small = read_image(path, (3, 4), 1)
    assert small.shape == (1, 3, 4) and abs(small.mean()) < 0.05


def test_sixteen_bits_of_colour(tmp_path):
    """Pillow writes no such file: three samples of 16 bits a pixel, most significant byte first."""
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32896, 0) * 2 for _ in range(2))
    header = struct.pack(">2I5B", 2, 2, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "a.png").write_bytes(data)
    assert levels(read_image(tmp_path / "a.png"))[:, 0, 0].tolist() == [255, 128, 0]


def test_transparency_is_laid_over_white(tmp_path):
    half = save(tmp_path / "half.png", Image.new("RGBA", (2, 2), (255, 0, 0, 128)))
    assert levels(read_image(half))[:, 0, 0].tolist() == [255, 127, 127]
    nothing = save(tmp_path / "nothing.png", Image.new("LA", (2, 2), (0, 0)))
    assert torch.equal(read_image(nothing, channels=1), torch.ones(1, 2, 2))


def test_palettes(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    for name in ("a.png", "a.gif", "a.tiff"):
        assert levels(read_image(save(tmp_path / name, picture)))[:, 0].tolist() == [[255, 0], [0, 0], [0, 255]]
    clear = save(tmp_path / "clear.png", picture, transparency=1)
    assert levels(read_image(clear))[:, 0].tolist() == [[255, 255], [0, 255], [0, 255]]
    several = save(tmp_path / "several.png", picture, transparency=b"\x80\x00")
    assert levels(read_image(several))[:, 0].tolist() == [[255, 255], [127, 255], [127, 255]]


def test_cmyk(tmp_path):
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for name in ("a.jpg", "a.tiff"):
        torch.testing.assert_close(read_image(save(tmp_path / name, picture)), RED.expand(3, 16, 16), atol=0.03, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    upright = Image.fromarray(gradient().astype(np.uint8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    path = save(tmp_path / "a.png", stored, exif=exif)
    assert check_image(path) == (6, 8)
    np.testing.assert_array_equal(levels(read_image(path, channels=1))[0], np.asarray(upright))


def test_second_view_of_a_phone(tmp_path):
    picture = Image.new("RGB", (16, 16), "red")
    path = save(tmp_path / "a.jpg", picture, format="MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    torch.testing.assert_close(read_image(path), RED.expand(3, 16, 16), atol=0.03, rtol=0)


# Sizes


@pytest.mark.parametrize("shape, size", [((60, 80), (30, 40)), ((64, 128), (32, 32)), ((5, 3), (20, 20))])
def test_resized_and_cropped_to_the_middle(tmp_path, shape, size):
    ramp = np.broadcast_to(np.linspace(0, 255, shape[1]), shape).round().astype(np.uint8)
    image = read_image(save(tmp_path / "a.png", Image.fromarray(ramp)), size, 1)
    assert image.shape == (1, *size)
    assert abs(image.mean()) < 0.02  # the middle of the ramp is in the middle
    visible = min(shape[0] / size[0], shape[1] / size[1]) * size[1] / shape[1]  # share of the width that is kept
    assert image.max() - image.min() == pytest.approx(2 * visible, abs=0.15)


def test_resizing_averages(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    image = read_image(save(tmp_path / "a.png", Image.fromarray(board.astype(np.uint8))), (16, 16), 1)
    assert image.abs().max() < 0.1  # no moire


def test_same_size_is_left_alone(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(gradient().astype(np.uint8)))
    assert torch.equal(read_image(path, (6, 8), 1), read_image(path, channels=1))


def test_thin_images_do_not_grow_huge(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(np.zeros((1, 50_000), np.uint8)))
    assert read_image(path, (256, 256), 3).shape == (3, 256, 256)


# Mistakes


def png(picture=None):
    buffer = io.BytesIO()
    (picture or Image.fromarray(gradient(64, 64).astype(np.uint8))).save(buffer, "PNG")
    return buffer.getvalue()


def bomb():
    """A PNG that says it has 50,000 x 50,000 pixels."""
    data = bytearray(png())
    data[16:24] = struct.pack(">2I", 50_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def frames():
    buffer = io.BytesIO()
    pictures = [Image.new("L", (8, 8), level) for level in (0, 100, 200)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def floats():
    buffer = io.BytesIO()
    Image.fromarray(gradient().astype(np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


BAD = {
    "empty": (b"", "is empty (0 bytes)"),
    "noise": (np.random.default_rng(0).bytes(4000), "is no readable image file"),
    "text": (b"hello\n", "is no readable image file"),
    "only the beginning": (png()[:20], "is no readable image file"),
    "cut off": (png()[: len(png()) // 2], "is damaged"),
    "bits flipped": (png()[:60] + b"\xff" * 40 + png()[100:], "is damaged"),
    "bomb": (bomb(), f"has more than {MOST_PIXELS:,} pixels"),
    "frames": (frames(), "has 3 frames"),
    "floats": (floats(), "samples that are not of 8 or 16 bits"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no readable image file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, recwarn, name):
    data, message = BAD[name]
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / "bad.png", (32, 32), 3)
    assert message in str(caught.value) and "bad.png" in str(caught.value) and "\n" not in str(caught.value)
    assert not recwarn.list


def test_large_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(image_io, "MOST_PIXELS", 47)
    path = save(tmp_path / "a.png", Image.fromarray(gradient().astype(np.uint8)))
    for call in (check_image, read_image):
        with pytest.raises(UserError, match="has more than 47 pixels"):
            call(path)


def test_no_file(tmp_path):
    for path, message in (("no.png", "there is no file"), (".", "is a folder")):
        with pytest.raises(UserError, match=message):
            read_image(tmp_path / path)


# Writing


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "suffix, start", [("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpg", b"\xff\xd8"), ("JPEG", b"\xff")]
)
def test_written_and_read(tmp_path, channels, suffix, start):
    image = torch.linspace(-1, 1, 24 * 24).view(1, 24, 24).expand(channels, -1, -1)
    path = tmp_path / f"a.{suffix}"
    write_image(path, image)
    assert path.read_bytes().startswith(start) and [path] == list(tmp_path.iterdir())
    again = read_image(path, channels=channels)
    torch.testing.assert_close(again, image.contiguous(), atol=0.05 if start == b"\xff\xd8" else 0.02, rtol=0)
    if suffix in ("png", "webp"):
        assert torch.equal(levels(again), levels(image))


def test_values_beyond_are_clipped(tmp_path):
    assert np.asarray(to_picture(torch.tensor([[[-3.0, -1.0, 0.0, 1.0, 7.0]]]))).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize(
    "name, image, message",
    [
        ("a.gif", torch.zeros(3, 4, 4), "end the name in .png, .jpg"),
        ("a", torch.zeros(3, 4, 4), "end the name in"),
        ("a.png", torch.zeros(2, 4, 4), "expected 1 or 3 channels"),
        ("a.png", torch.zeros(4, 4), "expected 1 or 3 channels"),
        ("a.png", torch.zeros(3, 0, 4), "expected 1 or 3 channels"),
        ("a.png", torch.full((3, 4, 4), torch.nan), "not finite"),
        ("a.webp", torch.zeros(1, 1, 20_000), "use .png"),
        ("no/a.png", torch.zeros(3, 4, 4), "there is no folder"),
        ("folder.png", torch.zeros(3, 4, 4), "is a folder"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, image, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=message):
        write_image(tmp_path / name, image)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("next_scale.files.os.fsync", full)
    with pytest.raises(UserError, match="cannot write .*a.png: No space left on device"):
        write_image(tmp_path / "a.png", torch.zeros(1, 4, 4))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
