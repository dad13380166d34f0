"""Sheets of images: every image is there, in its place, and captions do not cover any."""

import numpy as np
import pytest
import torch
from PIL import Image

from image_var.plots import image_sheet, pair_sheet

LEVELS = torch.linspace(-0.9, 0.9, 12)


def flat(level, side=32, channels=1):
    return torch.full((channels, side, side), float(level))


def found(path, side):
    """Number of tiles of each of the levels on the sheet."""
    sheet = np.asarray(Image.open(path).convert("L"))
    values = ((LEVELS + 1) * 127.5).round()
    return [int((sheet == int(value)).sum()) / side**2 for value in values]


def red(level):
    """A colour that no caption has."""
    return torch.tensor([level, -1.0, -1.0]).view(3, 1, 1).expand(3, 32, 32)


def spans(path, level):
    """First and last row and column where the sheet has this red."""
    colour = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = np.nonzero((colour == (round((level + 1) * 127.5), 0, 0)).all(-1))
    return rows.min(), rows.max(), columns.min(), columns.max()


@pytest.mark.parametrize("labels, columns", [(["a"] * 12, 12), (list("abcdefghijkl"), 1), (["a", "b", "c"], 4)])
def test_every_image_is_there(tmp_path, labels, columns):
    names = [name for name in labels for _ in range(columns)] if len(labels) == 3 else labels
    image_sheet(tmp_path / "a.png", [(name, flat(level)) for name, level in zip(names, LEVELS, strict=True)], columns)
    assert found(tmp_path / "a.png", 96) == pytest.approx([1] * 12, abs=0.02)


def test_rows_are_conditions(tmp_path):
    tiles = {-0.9: "sneaker", -0.5: "sneaker", 0.1: "bag", 0.5: "bag"}
    image_sheet(tmp_path / "a.png", [(name, red(level)) for level, name in tiles.items()], 2)
    places = [spans(tmp_path / "a.png", level) for level in tiles]
    assert places[0][:2] == places[1][:2] and places[2][:2] == places[3][:2] and places[0][1] < places[2][0]
    assert places[0][2:] == places[2][2:] and places[1][2:] == places[3][2:] and places[0][3] < places[1][2]
    margin = np.asarray(Image.open(tmp_path / "a.png").convert("L"))[:, : places[0][2]]
    assert margin.min() < 128 and (margin[:, -4:] == 255).all()  # text, with a gap to the images


def test_long_rows_go_on(tmp_path):
    image_sheet(tmp_path / "a.png", [(name, flat(0)) for name in "ab" for _ in range(30)], 30)
    width, height = Image.open(tmp_path / "a.png").size
    assert width < 25 * 104 and 4 * 96 < height < 4 * 104


def test_colour_and_large(tmp_path):
    image_sheet(tmp_path / "a.png", [("207", torch.stack([flat(1, 512)[0], *flat(-1, 512, 2)]))] * 3, 3)
    sheet = Image.open(tmp_path / "a.png")
    assert sheet.mode == "RGB" and sheet.getpixel((300, 300)) == (255, 0, 0) and max(sheet.size) < 1100


def test_pairs(tmp_path):
    pairs = [("a very long name of a file that nobody can read.png", red(-0.9), red(0.9)), ("ü", red(0), red(0.5))]
    pair_sheet(tmp_path / "a.png", pairs)
    before, after = spans(tmp_path / "a.png", -0.9), spans(tmp_path / "a.png", 0.9)
    assert before[:2] == after[:2] and 1 < after[2] - before[3] < 5


def test_images_of_several_sizes(tmp_path):
    pair_sheet(tmp_path / "a.png", [(str(side), flat(0, side), flat(0, side)) for side in (32, 100, 160)])
    assert min(Image.open(tmp_path / "a.png").size) > 320
