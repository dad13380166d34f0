"""Prompts as the bytes of their UTF-8, one token a byte (as ByT5, arXiv 2105.13626, spells its text)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from next_scale.conditioning.words import Read, Words
from next_scale.errors import UserError

_NONE = 256  # row of the table for places after the end


class ByteText(Words):
    """A table of 256 bytes and of what stands after the end.

    Args:
        width: D.
        length: most bytes, P.

    Shape notation: B batch, P bytes, D width.
    """

    kind = "bytes"

    def __init__(self, width: int, length: int = 64) -> None:
        if length < 1:
            raise UserError(f"a prompt of {length} bytes says nothing: set length to 1 or more")
        super().__init__(length, width)
        self.table = nn.Embedding(_NONE + 1, width)
        nn.init.trunc_normal_(self.table.weight, std=(3 * width) ** -0.5)

    def to_config(self) -> dict:
        return {"kind": self.kind, "length": self.count}

    def check(self, text: str) -> None:
        count = len(text.encode())
        if count > self.count:
            raise UserError(f"the prompt has {count} bytes, and this model reads {self.count}: shorten it")

    def read(self, texts: Sequence[str]) -> Read:
        rows = []
        for text in texts:
            self.check(text)
            spelt = list(text.encode())
            rows.append(spelt + [_NONE] * (self.count - len(spelt)))
        ids = torch.tensor(rows, device=self.table.weight.device)
        return Read(self.table(ids), ids != _NONE)
