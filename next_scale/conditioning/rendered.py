"""Prompts as drawings: no vocabulary, no language model; a misspelt word still looks like the word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from next_scale.conditioning.drawing import check_word, draw_words
from next_scale.conditioning.words import Read, Words
from next_scale.errors import UserError, printable


class RenderedText(Words):
    """One word a line on a gray canvas, cut into patches, each of them one linear layer away from its token.

    Args:
        width: D.
        lines: most words.
        height: of a line.
        columns: width of the canvas.
        patch: width of a patch, which is as high as a line; P is lines * columns / patch.

    Raises:
        UserError: patches that do not divide the canvas.

    Shape notation: B batch, P patches, D width.
    """

    kind = "rendered"

    def __init__(self, width: int, lines: int = 8, height: int = 12, columns: int = 96, patch: int = 12) -> None:
        if min(lines, patch) < 1 or height < 6 or columns % patch or columns < height:
            raise UserError(
                f"a drawing of {lines} lines, {height} high and {columns} wide, is not cut into patches of {patch}: "
                "give lines of 6 or more, and a width that patches divide"
            )
        super().__init__(lines * columns // patch, width)
        self.lines, self.height, self.columns, self.patch = lines, height, columns, patch
        self.embed = nn.Linear(height * patch, width)
        nn.init.trunc_normal_(self.embed.weight, std=(height * patch / 4) ** -0.5)  # a quarter of a patch is ink
        nn.init.zeros_(self.embed.bias)

    def to_config(self) -> dict:
        return {
            "kind": self.kind, "lines": self.lines, "height": self.height, "columns": self.columns,
            "patch": self.patch,
        }  # fmt: skip

    def check(self, text: str) -> None:
        words = text.split()
        if len(words) > self.lines:
            raise UserError(
                f"the prompt '{printable(text[:30])}...' has {len(words)} words, and this model draws {self.lines} at "
                "most, one a line: use fewer"
            )
        for word in words:
            check_word(word, self.height, self.columns)

    def read(self, texts: Sequence[str]) -> Read:
        drawn = np.stack([draw_words(text, self.lines, self.height, self.columns) for text in texts])
        rows = torch.from_numpy(drawn).to(self.embed.weight.device)  # (B, lines height, columns)
        rows = rows.unflatten(2, (-1, self.patch)).unflatten(1, (self.lines, -1))  # -> (B, lines, height, n, patch)
        patches = rows.transpose(2, 3).flatten(3).flatten(1, 2)  # -> (B, lines n, height patch)
        return Read(self.embed(patches.to(self.embed.weight.dtype) / 255), patches.amax(2) > 0)
