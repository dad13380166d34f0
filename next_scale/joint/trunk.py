"""What carries the sequence: blocks of this project, or of a language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from next_scale.attention import KVCache, PrefixAttention
from next_scale.errors import UserError, first_line
from next_scale.joint.parts import TextPart
from next_scale.joint.text import ByteCodec, TextCodec
from next_scale.transformer import Transformer, init_weight


class Trunk(nn.Module, ABC):
    """Embedded places to features, one after another or all at once.

    Attributes:
        kind: in checkpoints and recipes.
        width: D.

    Shape notation: B batch, n places, D width.
    """

    kind: ClassVar[str]
    width: int

    @abstractmethod
    def forward(self, x: Tensor, prefix: PrefixAttention | None = None, cache: Any = None) -> Tensor:
        """(B, n, D) -> (B, n, D) float32.

        With `cache`, the places join it and see it and each other, or what `prefix` says, which counts from the first
        cached place. Without, place i sees what `prefix` says.
        """

    @abstractmethod
    def cache(self, batch: int, length: int) -> Any:
        """An empty cache for so many sequences of so many places; ``end`` says how many are in it."""

    @abstractmethod
    def to_config(self) -> dict:
        """Arguments that build this trunk again, for JSON."""

    def text_codec(self, length: int) -> TextCodec:
        """How text becomes symbols, at most so many. Raises UserError where it cannot."""
        return ByteCodec(length)

    def text_part(self, codec: TextCodec) -> TextPart:
        """What text looks like to this trunk."""
        return TextPart(codec, self.width)


class Blocks(Trunk):
    """The blocks that all predictors share; what conditions their norms elsewhere is one learned vector here.

    Args:
        width, depth, heads, options: of :class:`next_scale.transformer.Transformer`.
    """

    kind = "blocks"

    def __init__(self, width: int = 192, depth: int = 4, heads: int = 4, **options: Any) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} is not a multiple of {heads} heads")
        self.width = width
        self.options = {"width": width, "depth": depth, "heads": heads, **options}
        self.transformer = Transformer(width, depth, heads, None, **options)
        self.condition = nn.Parameter(torch.empty(1, width))
        init_weight(self.condition, (3 * width) ** -0.5)

    def to_config(self) -> dict:
        return {"kind": self.kind, **self.options}

    def forward(self, x: Tensor, prefix: PrefixAttention | None = None, cache: KVCache | None = None) -> Tensor:
        return self.transformer(x, self.transformer.modulations(self.condition), prefix, cache)

    def cache(self, batch: int, length: int) -> KVCache:
        return self.transformer.cache(batch, length)


def build_trunk(options: Mapping[str, Any]) -> Trunk:
    """A trunk from its configuration or a recipe's ``trunk``.

    Raises:
        UserError: no such kind, options that it does not take, or a language model that cannot be had.
    """
    options = dict(options)
    kind = options.pop("kind", Blocks.kind)
    if kind not in (Blocks.kind, "language"):
        raise UserError(f"a trunk is one of {Blocks.kind}, language; got '{kind}'")
    try:
        if kind == Blocks.kind:
            return Blocks(**options)
        from next_scale.joint.language import LanguageTrunk

        return LanguageTrunk(**options)
    except TypeError as error:
        raise UserError(f"the trunk '{kind}' cannot be built: {first_line(error)}") from error
