"""What every kind of prompt shares: a fixed number of prefix tokens, and a summary for the adaptive norms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.errors import UserError


class Read(NamedTuple):
    """tokens: (B, P, D), of the prompts' pieces. used: (B, P) bool, which pieces hold something."""

    tokens: Tensor
    used: Tensor


class Words(nn.Module, ABC):
    """Prompts to prefix tokens that all tokens of a predictor see.

    A kind gives the pieces of a prompt (:meth:`read`). Each piece also gets a place embedding and passes a hidden layer
    of its own, as it would in a transformer's block; how pieces belong together, the predictor's attention finds out.
    The mean of the pieces that hold something, through a linear layer, is the summary.

    Where no prompt is given, learned tokens take their place.

    Args:
        count: P, tokens of a prompt, whatever its length.
        width: D.

    Attributes:
        kind: name of the kind, in checkpoints and recipes.

    Shape notation: B batch, P prefix tokens, D width.
    """

    kind: ClassVar[str]

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count, self.width = count, width
        self.places = nn.Parameter(torch.empty(count, width))
        self.null = nn.Parameter(torch.empty(count, width))
        self.norm = nn.LayerNorm(width)
        self.hidden, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.summary_norm, self.summary = nn.LayerNorm(width), nn.Linear(width, width)
        std = (3 * width) ** -0.5
        for weight in (self.places, self.null, self.hidden.weight, self.out.weight, self.summary.weight):
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        for layer in (self.hidden, self.out, self.summary):
            nn.init.zeros_(layer.bias)

    @abstractmethod
    def check(self, text: str) -> None:
        """Raise UserError where a clean prompt does not fit."""

    @abstractmethod
    def read(self, texts: Sequence[str]) -> Read:
        """The pieces of clean prompts; an empty text has none that holds anything."""

    @abstractmethod
    def to_config(self) -> dict:
        """Arguments of :func:`build_words`, for JSON."""

    def forward(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """B clean prompts, None where there is none, to prefix tokens (B, P, D) and summaries (B, D).

        Raises:
            UserError: a prompt does not fit.
        """
        tokens, used = self.read([text or "" for text in texts])
        given = torch.tensor([text is not None for text in texts], device=tokens.device)[:, None]
        tokens = tokens + self.places
        tokens = tokens + self.out(F.gelu(self.hidden(self.norm(tokens)), approximate="tanh"))
        tokens = torch.where(given[..., None], tokens, self.null)
        share = (used | ~given).to(tokens.dtype)
        mean = (tokens * share[..., None]).sum(1) / share.sum(1, keepdim=True).clamp_min(1)  # (B, P, D) -> (B, D)
        return tokens, self.summary(self.summary_norm(mean))


def words_kinds() -> dict[str, type[Words]]:
    """All kinds by name."""
    from next_scale.conditioning.byte_text import ByteText
    from next_scale.conditioning.frozen import ClapText, T5Text
    from next_scale.conditioning.rendered import RenderedText

    return {kind.kind: kind for kind in (RenderedText, ByteText, T5Text, ClapText)}


def build_words(config: Mapping[str, object], width: int) -> Words:
    """Prompts of the kind that ``config["kind"]`` names, its other entries being options of that kind's class.

    Raises:
        UserError: no such kind or option.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    kinds = words_kinds()
    if kind not in kinds:
        raise UserError(f"words need a kind, one of {', '.join(kinds)}; got '{kind}'")
    try:
        return kinds[kind](width=width, **options)
    except TypeError as error:
        raise UserError(f"words of the kind '{kind}' cannot be built: {error}") from error
