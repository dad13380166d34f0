"""`image-var edit` with a real tiny model: what stays, what changes, the mask's forms, and mistakes."""

import pytest
import torch
from PIL import Image, ImageDraw

from image_var.cli.edit import parse_box
from image_var.editing import Editor, fill
from image_var.io import read_image
from next_scale.errors import UserError


@pytest.fixture
def picture(tmp_path):
    """A gray image of 32 x 32 in the folder where the program runs."""
    image = Image.new("L", (32, 32), 30)
    ImageDraw.Draw(image).ellipse((4, 10, 28, 30), 200)
    image.save(tmp_path / "in.png")
    return read_image(tmp_path / "in.png", None, 1)


def edit(works, tiny_checkpoint, *options, out="out.png"):
    return works("edit", "in.png", out, "--checkpoint", tiny_checkpoint, *options)


def test_only_the_part_changes(works, tiny_checkpoint, picture, tmp_path):
    out = edit(works, tiny_checkpoint, "--mask", "16,0,32,32")
    assert out.splitlines()[0] == "out.png" and "50% of the pixels painted" in out
    made = read_image(tmp_path / "out.png", None, 1)
    assert torch.equal(made[..., :16], picture[..., :16])
    assert (made[..., 16:] - picture[..., 16:]).abs().mean() > 0.05


def test_out_painting_is_the_other_way_round(works, tiny_checkpoint, picture, tmp_path):
    edit(works, tiny_checkpoint, "--mask", "0.25,0.25,0.75,0.75", "--mode", "out-paint")
    made = read_image(tmp_path / "out.png", None, 1)
    inside = torch.zeros(1, 32, 32, dtype=torch.bool)
    inside[:, 8:24, 8:24] = True
    assert torch.equal(made[inside], picture[inside])
    assert (made[~inside] - picture[~inside]).abs().mean() > 0.05


def test_a_mask_file_is_a_box(works, tiny_checkpoint, picture, tmp_path):
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (5, 6, 20, 31))
    mask.save(tmp_path / "mask.png")
    edit(works, tiny_checkpoint, "--mask", "5,6,20,31", out="box.png")
    edit(works, tiny_checkpoint, "--mask-file", "mask.png", out="file.png")
    assert (tmp_path / "box.png").read_bytes() == (tmp_path / "file.png").read_bytes()


def test_without_keep_the_image_is_the_decoders(works, tiny_checkpoint, tiny_generator, picture, tmp_path):
    """A part of nearly no size: what the model gives is near its reconstruction, and not the original."""
    edit(works, tiny_checkpoint, "--mask", "0,0,1,1", "--no-keep")
    made = read_image(tmp_path / "out.png", None, 1)
    again = tiny_generator.tokenizer.decode(tiny_generator.tokenizer.encode(picture[None]))[0]
    assert not torch.equal(made[..., 16:, 16:], picture[..., 16:, 16:])
    assert (made - again).abs().mean() < 0.1


def test_labels_counts_and_grid(works, tiny_checkpoint, picture, tmp_path):
    options = ("--mask", "0,16,32,32", "--label", "bag", "sneaker", "--count", "2", "--smooth", "--cfg-scales", "2")
    out = edit(works, tiny_checkpoint, *options, "--grid", "grid.png", "--batch-size", "3")
    names = ["out_bag_000.png", "out_bag_001.png", "out_sneaker_000.png", "out_sneaker_001.png"]
    assert out.splitlines()[:4] == names and "grid of 5 in grid.png" in out
    made = [(tmp_path / name).read_bytes() for name in names]
    assert len(set(made)) == 4
    assert Image.open(tmp_path / "grid.png").width > 96
    edit(works, tiny_checkpoint, *options, "--batch-size", "1")
    assert [(tmp_path / name).read_bytes() for name in names] == made
    edit(works, tiny_checkpoint, *options, "--seed", "1")
    assert all((tmp_path / name).read_bytes() != old for name, old in zip(names, made, strict=True))


def test_other_sizes_are_cropped_and_resized(works, tiny_checkpoint, tmp_path):
    """128 x 64 keeps its middle square: its left quarter is gone, and a part in it is a mistake."""
    Image.effect_noise((128, 64), 90).save(tmp_path / "in.png")
    original = read_image(tmp_path / "in.png", (32, 32), 1)
    edit(works, tiny_checkpoint, "--mask", "0,0,64,64")
    made = read_image(tmp_path / "out.png", None, 1)
    torch.testing.assert_close(made[..., 16:], original[..., 16:], atol=1 / 127, rtol=0)
    assert (made[..., :16] - original[..., :16]).abs().mean() > 0.05


def test_what_was_in_the_part_plays_no_role(works, tiny_checkpoint, picture, tmp_path):
    edit(works, tiny_checkpoint, "--mask", "8,8,24,24")
    first = (tmp_path / "out.png").read_bytes()
    other = Image.open(tmp_path / "in.png")
    other.paste(255, (8, 8, 24, 24))
    other.save(tmp_path / "in.png")
    edit(works, tiny_checkpoint, "--mask", "8,8,24,24")
    assert (tmp_path / "out.png").read_bytes() == first
    edit(works, tiny_checkpoint, "--mask", "8,8,24,24", "--candidates", "4", "--passes", "2")
    assert (tmp_path / "out.png").read_bytes() != first


def test_the_nearest_fills(picture):
    painted = torch.zeros(32, 32, dtype=torch.bool)
    painted[:, 17:] = True
    filled = fill(picture, painted)
    assert torch.equal(filled[..., :17], picture[..., :17])
    assert torch.equal(filled[..., 17:], picture[..., 16:17].expand(-1, -1, 15))


def test_variations_and_mixtures(works, tiny_checkpoint, tiny_generator, picture, tmp_path):
    text = edit(works, tiny_checkpoint, "--variation", "0", out="same.png")
    assert "the coarsest 4 of 4 scales kept" in text
    again = tiny_generator.tokenizer.decode(tiny_generator.tokenizer.encode(picture[None]))[0]
    same = read_image(tmp_path / "same.png", None, 1)
    torch.testing.assert_close(same, again.clamp(-1, 1), atol=1 / 127, rtol=0)
    edit(works, tiny_checkpoint, "--variation", "0.5", "--keep-scales", "fine", out="fine.png")
    edit(works, tiny_checkpoint, "--relabel", "bag", "--amount", "0.5", "--count", "2")
    names = ("same.png", "fine.png", "out_bag_000.png", "out_bag_001.png")
    assert len({(tmp_path / name).read_bytes() for name in names}) == 4
    Image.effect_noise((32, 32), 90).save(tmp_path / "other.png")
    edit(works, tiny_checkpoint, "--interpolate", "other.png", "--amount", "0", out="first.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    edit(works, tiny_checkpoint, "--interpolate", "other.png", out="between.png")
    assert (tmp_path / "between.png").read_bytes() != (tmp_path / "same.png").read_bytes()


def test_repair(works, tiny_checkpoint, picture, tmp_path):
    assert "noise taken off" in edit(works, tiny_checkpoint, "--denoise", "--label", "bag")
    small = Image.open(tmp_path / "in.png").resize((16, 16))
    small.save(tmp_path / "in.png")
    assert "detail for 16 x 16 pixels" in edit(works, tiny_checkpoint, "--upsample")
    assert Image.open(tmp_path / "out.png").size == (32, 32)


def test_reduced_again_it_is_what_was_enlarged(tiny_generator, picture):
    def reduced(images):
        return torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)

    editor = Editor(tiny_generator, picture, {}, [0, 1])
    before, after = (
        (reduced(made) - reduced(picture[None])).abs().mean() for made in (editor.denoise(), editor.upsample((16, 16)))
    )
    assert after < 0.3 * before


def test_boxes():
    assert parse_box("8,0,24,16", (64, 32)) == (8, 0, 24, 16)
    assert parse_box("0.5,0,1,0.25", (64, 32)) == (16, 0, 32, 16)
    for text in ("1,2,3", "a,b,c,d", "0,0,nan,9", ""):
        with pytest.raises(UserError, match="four numbers"):
            parse_box(text, (64, 32))
    with pytest.raises(UserError, match="shares from 0 to 1"):
        parse_box("0.5,0,12,12", (64, 32))
    for text in ("8,8,8,16", "0,0,33,64", "-1,0,8,8", "9,0,8,8"):
        with pytest.raises(UserError, match="no part of an image of 32 x 64"):
            parse_box(text, (64, 32))


def test_mistakes(fails, tiny_checkpoint, picture, tmp_path):
    def check(*options, source="in.png", out="out.png"):
        return fails("edit", source, out, "--checkpoint", tiny_checkpoint, *options)

    assert "--mask --mask-file is required" in check()
    assert "no part of an image" in check("--mask", "0,0,99,9")
    assert "nothing is left of the image" in check("--mask", "0,0,32,32")
    assert "--upsample takes a smaller image" in check("--upsample")
    assert "--candidates and --passes are for a part" in check("--denoise", "--passes", "2")
    assert "not allowed with" in check("--denoise", "--mask", "0,0,9,9")
    assert "is what is read" in check("--mask", "0,0,9,9", out="in.png")
    assert "nothing is left to paint" in check("--mask", "0,0,32,32", "--mode", "out-paint")
    assert "no file other.png" in check("--mask", "0,0,9,9", source="other.png")
    assert "end the name in" in check("--mask", "0,0,9,9", out="out.txt")
    assert "unknown label 'boot'" in check("--mask", "0,0,9,9", "--label", "boot")
    assert "cfg-scales must be a whole number" in check("--mask", "0,0,9,9", "--cfg-scales", "-1")
    Image.new("L", (16, 32)).save(tmp_path / "mask.png")
    assert "must have the size of in.png, 32 x 32" in check("--mask-file", "mask.png")
    Image.new("L", (32, 32)).save(tmp_path / "mask.png")
    assert "mask.png (white is the part) has nothing" in check("--mask-file", "mask.png")
