"""Images on a sheet, as tiles with captions.

Shape notation: C channels, H W height and width of an image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from image_var.io import to_picture, write_picture

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_SIDE = 96  # of a tile: smaller images are enlarged by repeating their pixels
_MOST_COLUMNS = 24
_GAP = 6  # between tiles, and around the sheet
_BETWEEN = 2  # between the two images of a pair
_PAPER, _INK = (255, 255, 255), (60, 60, 60)


def image_sheet(path: str | os.PathLike, tiles: Sequence[tuple[str, Tensor]], columns: int) -> None:
    """Draw generated images: a row a condition, with its name on the left.

    One image of each of several conditions: tiles with captions. One condition: tiles alone.

    Args:
        path: .png, .jpg or .webp.
        tiles: condition and image (C, H, W) in [-1, 1], all of one size; those of a condition follow each other.
        columns: images of a condition.
    """
    pictures = [_enlarged(to_picture(image)) for _, image in tiles]
    names = list(dict.fromkeys(name for name, _ in tiles))
    if len(names) == 1:
        sheet = _tiled(pictures, [""] * len(pictures))
    elif columns == 1:
        sheet = _tiled(pictures, [name for name, _ in tiles])
    else:
        sheet = _rows({name: [p for p, (own, _) in zip(pictures, tiles, strict=True) if own == name] for name in names})
    write_picture(path, sheet)


def pair_sheet(path: str | os.PathLike, pairs: Sequence[tuple[str, Tensor, Tensor]]) -> None:
    """Draw images beside what became of them, each pair with its name: (name, (C, H, W), (C, H, W))."""
    pictures = []
    for _, left, right in pairs:
        both = [_enlarged(to_picture(image)) for image in (left, right)]
        pictures.append(Image.new("RGB", (both[0].width + _BETWEEN + both[1].width, both[0].height), _PAPER))
        pictures[-1].paste(both[0], (0, 0))
        pictures[-1].paste(both[1], (both[0].width + _BETWEEN, 0))
    write_picture(path, _tiled(pictures, [name for name, _, _ in pairs], 3 * _GAP))


def _tiled(pictures: Sequence[Image.Image], captions: Sequence[str], gap: int = _GAP) -> Image.Image:
    """Tiles side by side, the sheet about square, with captions below them where there are any."""
    width, height = (max(side) for side in zip(*(picture.size for picture in pictures), strict=True))
    columns = min(len(pictures), math.ceil(math.sqrt(len(pictures) * height / width)))
    font = _font(height)
    below = _line(font) if any(captions) else 0
    lines = math.ceil(len(pictures) / columns)
    sheet = _paper(columns * (width + gap) - gap + _GAP, lines * (height + below + _GAP))
    draw = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        line, column = divmod(number, columns)
        left, top = _GAP + column * (width + gap), _GAP + line * (height + below + _GAP)
        sheet.paste(picture, (left, top))
        if caption:
            text = _shortened(caption, font, width)
            draw.text((left + width / 2, top + height + below / 2), text, _INK, font, anchor="mm")
    return sheet


def _rows(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Rows of tiles, each with its name on the left; a long row goes on in the next line."""
    width, height = next(iter(rows.values()))[0].size
    font = _font(height)
    columns = min(_MOST_COLUMNS, max(map(len, rows.values())))
    names = {name: _shortened(name, font, 3 * max(width, height)) for name in rows}
    margin = math.ceil(max(map(font.getlength, names.values()))) + _GAP
    lines = sum(math.ceil(len(row) / columns) for row in rows.values())
    sheet = _paper(margin + columns * (width + _GAP), lines * (height + _GAP))
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for name, row in rows.items():
        draw.text((margin, top + height / 2), names[name], _INK, font, anchor="rm")
        for start in range(0, len(row), columns):
            for column, picture in enumerate(row[start : start + columns]):
                sheet.paste(picture, (margin + _GAP + column * (width + _GAP), top))
            top += height + _GAP
    return sheet


def _paper(width: int, height: int) -> Image.Image:
    """An empty sheet for contents of this size, each with a gap on its right and below it."""
    return Image.new("RGB", (_GAP + width, _GAP + height), _PAPER)


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = math.ceil(_LEAST_SIDE / min(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _font(height: int) -> ImageFont.FreeTypeFont:
    """For captions of tiles of this height."""
    return ImageFont.load_default(min(22, max(13, height // 12)))


def _line(font: ImageFont.FreeTypeFont) -> int:
    """Height of a line of captions."""
    return round(1.5 * font.size)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, its end cut off where it is wider than `width`."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
