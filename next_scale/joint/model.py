"""The joint model: any order of text and pyramids as one sequence, with one loss, one likelihood and one sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from next_scale.attention import PrefixAttention
from next_scale.errors import UserError
from next_scale.joint.parts import TEXT, Filled, Part, PyramidPart, TextPart, parse_layout
from next_scale.joint.sampler import Drawn, draw
from next_scale.joint.text import TextCodec, codec_from
from next_scale.joint.trunk import Trunk, build_trunk
from next_scale.predictors.token_predictor import entropy_of
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule


class JointLoss(NamedTuple):
    """loss: scalar to minimise. nats: of each part, the mean over its tokens. accuracy: share of top-1 hits in each."""

    loss: Tensor
    nats: list[Tensor]
    accuracy: list[Tensor]


class JointModel(nn.Module):
    """Learns sequences of parts: text as bytes, pyramids scale by scale, each part from all that stands before it.

    Text is causal, a pyramid scale-causal, and every place sees all earlier parts whole: one number a place
    (`visible_end`) says all of it. Which part comes next is given, not predicted.

    Args:
        layouts: orders of parts, such as ``"text shape"``, that it is trained on. What begins one is known as well.
        pyramids: name -> arguments of :class:`next_scale.joint.parts.PyramidPart` without the width.
        trunk: what carries the sequence.
        codec: how text becomes symbols; needed where a layout has text.
        text_weight: of the mean loss of a text beside that of a pyramid, which has 1.

    Raises:
        UserError: no layouts, or one with a part that is not there.

    Shape notation: B batch, L tokens of a part, V codes of a part.
    """

    def __init__(
        self, layouts: Sequence[str | Sequence[str]], pyramids: Mapping[str, Mapping], trunk: Trunk,
        codec: TextCodec | None = None, text_weight: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layouts = [parse_layout(layout) for layout in layouts]
        self.trunk, self.codec, self.text_weight = trunk, codec, text_weight
        known = [*pyramids, *([TEXT] if codec else [])]
        names = list(dict.fromkeys(name for layout in self.layouts for name in layout))
        if not names:
            raise UserError("a joint model needs layouts, such as 'text shape'")
        for name in names:
            if name not in known or not name.isidentifier():
                raise UserError(f"a layout names the part '{name}'; parts are {', '.join(known)}")
        self.parts = nn.ModuleDict({name: self._part(name, pyramids) for name in names})
        self._prefixes: dict[tuple[str, ...], PrefixAttention] = {}

    def _part(self, name: str, pyramids: Mapping[str, Mapping]) -> Part:
        if name == TEXT:
            return self.trunk.text_part(self.codec)
        return PyramidPart(width=self.trunk.width, **pyramids[name])

    def to_config(self) -> dict:
        """Arguments that build this model again, for JSON."""
        return {
            "layouts": [" ".join(layout) for layout in self.layouts],
            "pyramids": {name: part.to_config() for name, part in self.parts.items() if isinstance(part, PyramidPart)},
            "trunk": self.trunk.to_config(),
            "codec": self.codec.to_config() if self.codec else None,
            "text_weight": self.text_weight,
        }

    @classmethod
    def from_config(cls, config: Mapping, definition: bytes = b"") -> JointModel:
        """Inverse of :meth:`to_config`; `definition` is that of a language model's tokenizer."""
        if foreign := {"model", "tokenizer"} & set(config["trunk"]):
            raise ValueError(f"its trunk names a {min(foreign)} from elsewhere")  # which loading it would fetch
        codec = codec_from(config["codec"], definition) if config["codec"] else None
        pyramids = {
            name: {**part, "schedule": Schedule.from_config(part["schedule"])}
            for name, part in config["pyramids"].items()
        }
        return cls(config["layouts"], pyramids, build_trunk(config["trunk"]), codec, config["text_weight"])

    def start_from(self, quantizers: Mapping[str, MultiScaleQuantizer]) -> None:
        """Take from the quantizers what helps the start of training."""
        for name, quantizer in quantizers.items():
            if name in self.parts:
                self.parts[name].start_from(quantizer)

    # Sequences

    def knows(self, layout: Sequence[str]) -> bool:
        """Whether a layout, or what it begins, was trained on."""
        return any(known[: len(layout)] == tuple(layout) for known in self.layouts)

    def check(self, layout: Sequence[str]) -> None:
        """Raise UserError where a layout was not trained on."""
        if not self.knows(layout):
            known = ", ".join(f"'{' '.join(each)}'" for each in self.layouts)
            raise UserError(f"the model never learned the order '{' '.join(layout)}'; it knows {known}")

    def fill(
        self, name: str, content: Tensor | Sequence[str], quantizer: MultiScaleQuantizer | None = None,
        closed: bool = True,
    ) -> Filled:  # fmt: skip
        """A part with its content: texts, or tokens (B, L) with the quantizer that they are of.

        Args:
            closed: whether other parts follow.

        Raises:
            UserError: a text that does not fit.
        """
        part = self.parts[name]
        if isinstance(part, TextPart):
            tokens = content if isinstance(content, Tensor) else self.codec.encode(content)
            return Filled(name, tokens.to(part.begin.device))
        return part.fill(name, content.to(part.begin.device), quantizer, closed)

    def prefix(self, layout: tuple[str, ...], closed: bool = False, start: int = 0) -> PrefixAttention:
        """What each place of a sequence sees.

        Args:
            closed: whether the last part shows all of itself to others.
            start: places before the first, which all see.
        """
        key = (*layout, str(closed), str(start))
        if key not in self._prefixes:
            ends, offset = [], start
            for i, name in enumerate(layout):
                ends.append(self.parts[name].visible_end(closed or i + 1 < len(layout)) + offset)
                offset += len(ends[-1])
            self._prefixes[key] = PrefixAttention(torch.cat(ends))
        return self._prefixes[key].to(next(self.trunk.parameters()).device)

    def embed(self, sequence: Sequence[Filled], closed: bool = False) -> Tensor:
        """All places of a sequence under teacher forcing, (B, places, D); `closed` as in :meth:`prefix`."""
        last = len(sequence) - 1
        return torch.cat(
            [self.parts[filled.name].embed(filled, closed or i < last) for i, filled in enumerate(sequence)], dim=1
        )

    def forward(self, sequence: Sequence[Filled]) -> list[Tensor]:
        """Logits of every part under teacher forcing: (B, L, V) float32 each."""
        layout = tuple(filled.name for filled in sequence)
        self.check(layout)
        features = self.trunk(self.embed(sequence), self.prefix(layout))
        logits, start = [], 0
        for name in layout:
            part = self.parts[name]
            logits.append(part.all_logits(features[:, start : start + part.length]))
            start += part.places(True)
        return logits

    def loss(self, sequence: Sequence[Filled]) -> JointLoss:
        """Cross-entropy of all parts."""
        total, weights, nats, accuracy = 0.0, 0.0, [], []
        for filled, logits in zip(sequence, self.forward(sequence), strict=True):
            part = self.parts[filled.name]
            entropy = entropy_of(logits, filled.tokens)
            weight = self.text_weight if filled.name == TEXT else 1.0
            total = total + weight * (entropy * part.weights(filled.tokens)).sum()
            weights += weight
            with torch.no_grad():
                counted = (part.weights(filled.tokens) > 0).float()
                hits = (logits.argmax(-1) == filled.tokens).float()
                nats.append((entropy * counted).sum() / counted.sum())
                accuracy.append((hits * counted).sum() / counted.sum())
        return JointLoss(total / max(weights, 1e-8), nats, accuracy)

    def log_prob(self, sequence: Sequence[Filled]) -> Tensor:
        """Natural log-probability of every part given those before it, exact in eval mode: (B, parts)."""
        found = []
        for filled, logits in zip(sequence, self.forward(sequence), strict=True):
            counted = self.parts[filled.name].weights(filled.tokens) > 0
            found.append(-(entropy_of(logits, filled.tokens) * counted).sum(1))
        return torch.stack(found, dim=1)

    def generate(
        self, prompt: Sequence[Filled], names: Sequence[str], quantizers: Mapping[str, MultiScaleQuantizer],
        sampling: Mapping[str, SamplingOptions], seeds: Sequence[int],
    ) -> list[Drawn]:  # fmt: skip
        """Draw parts, one after another, after those of a prompt, see :func:`next_scale.joint.sampler.draw`."""
        training = self.training
        self.eval()
        try:
            return draw(self, prompt, names, quantizers, sampling, seeds)
        finally:
            self.train(training)
