"""Words as a drawing: one word a line on a small gray canvas, in a font that every installation has.

The font is DejaVu Sans (Bitstream Vera licence), which comes with matplotlib. Glyphs are drawn from their outlines and
set side by side, without shaping: so a drawing is the same on every machine, whatever libraries it has. Words of right
to left scripts are set from the right, and Arabic letters stand unjoined.
"""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from next_scale.errors import UserError, printable

_EM = 0.86  # of a line's height; ascender and descender of the font need 1.16 em
_BASELINE = 0.22  # of a line's height, from below
_NARROWEST = 0.5  # a word wider than the canvas is condensed, down to this share of its width
_STEPS = 16  # of that share: so many widths of a glyph are kept


@cache
def _font():
    import matplotlib
    from matplotlib.ft2font import FT2Font

    font = FT2Font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")))
    font.set_size(font.units_per_EM, 72)  # a unit of the font is a unit of length
    return font


@cache
def _covered() -> frozenset[int]:
    """Code points that the font has glyphs of."""
    return frozenset(_font().get_charmap())


@lru_cache(8192)
def _advance(letter: str) -> float:
    """Width of a letter, in ems."""
    font = _font()
    glyph = font.load_char(ord(letter))
    return 0.0 if unicodedata.combining(letter) else glyph.linearHoriAdvance / 65536 / font.units_per_EM


@lru_cache(8192)
def _glyph(letter: str, height: int, stretch: int) -> np.ndarray:
    """A letter's ink, (height, 3 height + 1) uint8, its origin at column `height`."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.path import Path as Outline
    from matplotlib.transforms import Affine2D

    font = _font()
    font.load_char(ord(letter))
    vertices, codes = font.get_path()
    canvas = RendererAgg(3 * height + 1, height, 72)
    if len(vertices):
        em = height * _EM / font.units_per_EM
        place = Affine2D().scale(em * stretch / _STEPS, em).translate(height, height * _BASELINE)
        style = canvas.new_gc()
        style.set_linewidth(0)
        style.set_snap(False)  # thin strokes would vanish
        canvas.draw_path(style, Outline(vertices, codes), place, (0.0, 0.0, 0.0))
    return np.asarray(canvas.buffer_rgba())[..., 3].copy()


def _visual_order(word: str) -> str:
    """Letters from left to right: those of a word that begins with a right-to-left letter in reverse, with their
    marks."""
    directions = [unicodedata.bidirectional(letter) for letter in word]
    strong = next((direction for direction in directions if direction in ("L", "R", "AL")), "L")
    if strong == "L":
        return word
    clusters: list[str] = []
    for letter in word:
        if clusters and unicodedata.combining(letter):
            clusters[-1] += letter
        else:
            clusters.append(letter)
    return "".join(reversed(clusters))


def check_word(word: str, height: int, width: int) -> None:
    """Raise UserError where the word is too long for a line, or the font lacks a character of it."""
    missing = [letter for letter in word if ord(letter) not in _covered()]
    if missing:
        shown = ", ".join(f"{printable(letter)} (U+{ord(letter):04X})" for letter in dict.fromkeys(missing[:5]))
        raise UserError(f"the font has no glyph of {shown}: write the prompt in other characters")
    if _natural_width(word, height) * _NARROWEST > width:
        raise UserError(
            f"the word '{printable(word[:20])}...' of {len(word)} letters is too long for a line: shorten it"
        )


def _natural_width(word: str, height: int) -> float:
    return sum(map(_advance, word)) * height * _EM


@lru_cache(16384)
def _draw_word(word: str, height: int, width: int) -> np.ndarray:
    check_word(word, height, width)
    stretch = min(_STEPS, int(_STEPS * width / max(_natural_width(word, height), 1e-9)))
    line = np.zeros((height, width + 4 * height + 2), np.uint8)  # with a margin on both sides
    pen = 0.0
    for letter in _visual_order(word):
        ink, start = _glyph(letter, height, stretch), round(pen)
        place = line[:, start : start + ink.shape[1]]  # the origin of a glyph is at column `height` of line and ink
        np.maximum(place, ink[:, : place.shape[1]], out=place)
        pen += _advance(letter) * height * _EM * stretch / _STEPS
    return line[:, height : height + width]


def draw_words(text: str, lines: int, height: int, width: int) -> np.ndarray:
    """The words of a clean prompt, one a line: (lines * height, width) uint8, ink 255 on 0.

    Raises:
        UserError: more words than lines, a word too long for one, or characters that the font lacks.
    """
    words = text.split()
    if len(words) > lines:
        raise UserError(f"the prompt has {len(words)} words, and {lines} are drawn at most, one a line: use fewer")
    drawn = np.zeros((lines * height, width), np.uint8)
    for line, word in enumerate(words):
        drawn[line * height : (line + 1) * height] = _draw_word(word, height, width)
    return drawn
