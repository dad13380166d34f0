"""How text becomes symbols: its bytes, or the tokens of a language model's own tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from next_scale.errors import UserError, printable

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Reader


class TextCodec(ABC):
    """Text as M symbols, the last of which stand for the end where it is shorter.

    Attributes:
        kind: in checkpoints.
        size: symbols that there are, the end included, V.
        end: the symbol after the last one of a text.
        length: most symbols of a text, M.

    Shape notation: M symbols.
    """

    kind: str
    size: int
    end: int
    unit: str

    def __init__(self, length: int) -> None:
        if length < 1:
            raise UserError(f"a text of {length} symbols says nothing: set text_length to 1 or more")
        self.length = length

    @abstractmethod
    def spell(self, text: str) -> list[int]:
        """The symbols of a text, without the end."""

    @abstractmethod
    def read(self, symbols: Sequence[int]) -> str:
        """Inverse of :meth:`spell`; of symbols that spell nothing, something."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """B texts to (B, M) int64. Raises UserError where one is empty or has too many symbols."""
        rows = []
        for text in texts:
            spelt = self.spell(text)
            if not spelt:
                raise UserError("the text is empty: say something")
            if len(spelt) > self.length:
                start = printable(text[:20])
                raise UserError(
                    f"a text has {len(spelt):,} {self.unit}s, and this model reads {self.length}: shorten '{start}...'"
                )
            rows.append(spelt + [self.end] * (self.length - len(spelt)))
        return torch.tensor(rows)

    def decode(self, symbols: Tensor) -> list[str]:
        """Inverse of :meth:`encode`: (B, M) int64 to B texts, each up to its first end."""
        texts = []
        for row in symbols.tolist():
            texts.append(self.read(row[: row.index(self.end)] if self.end in row else row))
        return texts

    def said(self, symbols: Tensor) -> Tensor:
        """Which symbols (B, M) are text or its first end, (B, M) bool; the rest follows from them."""
        ended = symbols == self.end
        return (ended.cumsum(1) - ended.long()) == 0

    def to_config(self) -> dict:
        """Arguments that build this codec again, for JSON."""
        return {"kind": self.kind, "length": self.length}


class ByteCodec(TextCodec):
    """The bytes of UTF-8, and 256 for the end."""

    kind, unit = "bytes", "byte"
    size, end = 257, 256

    def spell(self, text: str) -> list[int]:
        return list(text.encode())

    def read(self, symbols: Sequence[int]) -> str:
        return bytes(symbols).decode(errors="replace")


class TokenizerCodec(TextCodec):
    """The tokens of a language model's tokenizer.

    Args:
        definition: of the tokenizer, the JSON text of its ``tokenizer.json``, as bytes.
        end: token that ends a text.
        size: tokens that the language model has, V.
    """

    kind, unit = "tokenizer", "token"

    def __init__(self, definition: bytes, end: int, size: int, length: int) -> None:
        from tokenizers import Tokenizer as Reader

        super().__init__(length)
        self.definition, self.end, self.size = definition, end, size
        try:
            self._reader: Reader = Reader.from_str(definition.decode())
        except Exception as error:  # the package raises nothing more exact
            raise UserError(f"the language model's tokenizer cannot be read: {error}") from error
        most = max([end, *self._reader.get_vocab().values()])
        if most >= size:
            raise UserError(f"the tokenizer has a token {most}, and the language model only {size}: name its own one")

    def spell(self, text: str) -> list[int]:
        return self._reader.encode(text, add_special_tokens=False).ids

    def read(self, symbols: Sequence[int]) -> str:
        return self._reader.decode(list(symbols), skip_special_tokens=True)

    def to_config(self) -> dict:
        return {**super().to_config(), "end": self.end, "size": self.size, "bytes": len(self.definition)}


def codec_from(config: Mapping, definition: bytes = b"") -> TextCodec:
    """Inverse of :meth:`TextCodec.to_config`; `definition` is that of a tokenizer."""
    if config["kind"] == ByteCodec.kind:
        return ByteCodec(config["length"])
    return TokenizerCodec(definition, config["end"], config["size"], config["length"])
