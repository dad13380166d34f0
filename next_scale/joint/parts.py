"""The parts of a sequence: what each looks like to the trunk, what its places may see, and what they predict.

A part begins with its mark, learned vectors that say what begins, and ends with places that show all of it to the parts
after it; a part that nothing follows needs none of these. Places count from the beginning of their part, so that a part
is the same wherever it stands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from next_scale import flops
from next_scale.joint.text import TextCodec
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule
from next_scale.transformer import init_weight

TEXT = "text"
"""Name of the part that is text; pyramids have any other."""


class Filled(NamedTuple):
    """A part with its content.

    name: of the part. tokens: (B, L) int64. inputs: (B, L - n_0 + n_K, C) float, of a pyramid: what its scales but the
    first get, and what ends it, the whole sum.

    Shape notation: B batch, L tokens, n_0 and n_K tokens of the first and the last scale, C channels.
    """

    name: str
    tokens: Tensor
    inputs: Tensor | None = None


class Part(nn.Module, ABC):
    """One kind of part.

    Attributes:
        codes: V.
        steps: tokens drawn at each step; they sum to L.
        closing: places at the end that show all of it to later parts.

    Shape notation: B batch, L tokens, P places (L, and `closing` more of a part that others follow), D width, V codes.
    """

    codes: int
    steps: tuple[int, ...]
    closing: int

    @property
    def length(self) -> int:
        """L, the places that predict."""
        return sum(self.steps)

    def places(self, closed: bool) -> int:
        """P."""
        return self.length + self.closing * closed

    def visible_end(self, closed: bool) -> Tensor:
        """Places, from the part's first on, that each of its own sees: those of its step and before, (P,) int64."""
        steps = torch.tensor([*self.steps, *([self.closing] if closed else [])])
        return torch.repeat_interleave(steps.cumsum(0), steps)

    @abstractmethod
    def embed(self, filled: Filled, closed: bool) -> Tensor:
        """All places under teacher forcing, (B, P, D)."""

    @abstractmethod
    def logits(self, features: Tensor, step: int) -> Tensor:
        """Of the tokens of one step: (B, n, D) -> (B, n, V)."""

    @abstractmethod
    def all_logits(self, features: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, V)."""

    @abstractmethod
    def weights(self, tokens: Tensor) -> Tensor:
        """Share of each token in the mean that training minimises, (B, L); 0 where a token follows from others."""


class TextPart(Part):
    """Symbols one at a time, each from those before it.

    Its first place is the mark; place i + 1 shows symbol i.

    Args:
        codec: how text becomes symbols.
        width: D.
    """

    def __init__(self, codec: TextCodec, width: int) -> None:
        super().__init__()
        self.codec, self.codes = codec, codec.size
        self.steps, self.closing = (1,) * codec.length, 1
        std = (3 * width) ** -0.5
        self.begin = nn.Parameter(torch.empty(1, width))
        init_weight(self.begin, std)
        self._build(width, std)

    def _build(self, width: int, std: float) -> None:
        self.table = nn.Embedding(self.codes, width)
        self.position_embed = nn.Parameter(torch.empty(self.codec.length + 1, width))
        self.head = nn.Linear(width, self.codes)
        for weight in (self.table.weight, self.position_embed):
            init_weight(weight, std)
        init_weight(self.head.weight, 0.02 * std)
        nn.init.zeros_(self.head.bias)

    def embed(self, filled: Filled, closed: bool) -> Tensor:
        tokens = filled.tokens if closed else filled.tokens[:, :-1]
        begin = self.first(tokens.shape[0])
        return torch.cat([begin, self.shown(tokens, 1)], dim=1)

    def first(self, batch: int) -> Tensor:
        """The mark, (B, 1, D)."""
        return (self.begin + self.position_embed[:1]).expand(batch, 1, -1)

    def shown(self, tokens: Tensor, place: int) -> Tensor:
        """Symbols (B, n) at `place` and after: (B, n, D)."""
        return self.table(tokens) + self.position_embed[place : place + tokens.shape[1]]

    def logits(self, features: Tensor, step: int) -> Tensor:
        return self.head(features)

    def all_logits(self, features: Tensor) -> Tensor:
        return self.head(features)

    def weights(self, tokens: Tensor) -> Tensor:
        said = self.codec.said(tokens).float()
        return said / said.sum()


class PyramidPart(Part):
    """A token pyramid, a scale at a time (VAR, arXiv 2404.02905, section 3.2).

    The places of scale 0 hold the mark, those of scale k the sum of scales < k at scale k's size, and those that end
    it the sum of all. Logits of scale k are dot products with output embeddings of its own codes.

    Args:
        schedule: of the quantizer.
        codes: V.
        channels: C, inside the quantizer's pyramid.
        width: D.
        scale_power: the training loss weights the mean of scale k by n_k ** scale_power.

    Shape notation: K scales, n_k tokens of scale k, C channels.
    """

    def __init__(self, schedule: Schedule, codes: int, channels: int, width: int, scale_power: float = 1.0) -> None:
        super().__init__()
        self.schedule, self.codes, self.channels, self.scale_power = schedule, codes, channels, scale_power
        self.steps, self.closing = schedule.counts, schedule.counts[-1]
        self.begin = nn.Parameter(torch.empty(schedule.counts[0], width))
        self.word_embed = nn.Linear(channels, width)
        self.level_embed = nn.Parameter(torch.empty(schedule.scales + 1, width))  # the last is that of the end
        self.position_embed = nn.Parameter(torch.empty(self.places(True), width))
        self.head = nn.Linear(width, channels)
        self.codebook = nn.Parameter(torch.randn(schedule.scales, codes, channels))
        self.code_bias = nn.Parameter(torch.zeros(schedule.scales, codes))
        level = torch.cat([schedule.level, torch.full((self.closing,), schedule.scales)])
        self.register_buffer("level", level, persistent=False)
        std = (3 * width) ** -0.5
        for weight in (self.begin, self.word_embed.weight, self.level_embed, self.position_embed):
            init_weight(weight, std)
        init_weight(self.head.weight, 0.02 * std)
        for linear in (self.word_embed, self.head):
            nn.init.zeros_(linear.bias)

    @torch.no_grad()
    def start_from(self, quantizer: MultiScaleQuantizer) -> None:
        """Set the output embeddings to the codebooks' entries, centred and at unit spread, where they are as wide."""
        for k, codes in enumerate(self.codebook):
            entries = quantizer.codebook(k).weight
            if entries.shape == codes.shape:
                entries = entries - entries.mean(0)
                codes.copy_(entries / entries.square().mean().sqrt().clamp_min(1e-8))

    @torch.no_grad()
    def fill(self, name: str, tokens: Tensor, quantizer: MultiScaleQuantizer, closed: bool) -> Filled:
        """Tokens (B, L) with what the places show of them; no gradient passes."""
        if not closed:
            return Filled(name, tokens, quantizer.teacher_forcing(tokens))
        latent, inputs = quantizer.initial_latent(tokens.shape[0]), []
        for k, ids in enumerate(self.schedule.split(tokens)):
            latent, shown = quantizer.step(latent, ids, k)
            inputs.append(whole(latent) if shown is None else shown)
        return Filled(name, tokens, torch.cat(inputs, dim=1))

    def embed(self, filled: Filled, closed: bool) -> Tensor:
        first = self.schedule.counts[0]
        shown = self.shown(filled.inputs[:, : self.places(closed) - first], first)
        return torch.cat([self.first(filled.tokens.shape[0]), shown], dim=1)

    def first(self, batch: int) -> Tensor:
        """The mark, (B, n_0, D)."""
        return (self.begin + self._places(0, self.schedule.counts[0])).expand(batch, -1, -1)

    def shown(self, inputs: Tensor, place: int) -> Tensor:
        """Sums (B, n, C) at `place` and after: (B, n, D)."""
        return self.word_embed(inputs) + self._places(place, inputs.shape[1])

    def _places(self, start: int, count: int) -> Tensor:
        here = slice(start, start + count)
        return self.position_embed[here] + self.level_embed[self.level[here]]

    def logits(self, features: Tensor, step: int) -> Tensor:
        features = self.head(features)
        flops.report_product(features, self.codebook, self.codes)
        return features @ (self.codebook[step].T * self.channels**-0.5) + self.code_bias[step]

    def all_logits(self, features: Tensor) -> Tensor:
        return torch.cat([self.logits(part, k) for k, part in enumerate(self.schedule.split(features))], dim=1)

    def weights(self, tokens: Tensor) -> Tensor:
        counts = torch.tensor(self.schedule.counts, dtype=torch.float32, device=tokens.device)
        scales = counts**self.scale_power
        each = (scales / scales.sum() / counts)[self.level[: self.length]]
        return each.expand(tokens.shape) / tokens.shape[0]

    def to_config(self) -> dict:
        """Arguments that build this part again, without the width, for JSON."""
        return {
            "schedule": self.schedule.to_config(), "codes": self.codes, "channels": self.channels,
            "scale_power": self.scale_power,
        }  # fmt: skip


def whole(latent: Tensor) -> Tensor:
    """The sum of all scales as places: (B, C, *grid) -> (B, n_K, C)."""
    return latent.flatten(2).transpose(1, 2)


def parse_layout(text: str | Sequence[str]) -> tuple[str, ...]:
    """Names of parts in their order, such as ``"text shape"``."""
    return tuple(text.split() if isinstance(text, str) else text)
