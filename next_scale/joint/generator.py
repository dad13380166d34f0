"""What a checkpoint of a joint model holds: the tokenizers of its pyramids, and the model of their sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from next_scale.joint.model import JointModel
from next_scale.joint.parts import TEXT, Filled
from next_scale.joint.text import TokenizerCodec
from next_scale.sampling import SamplingOptions
from next_scale.tokenizer import Tokenizer


class Made(NamedTuple):
    """A part that was drawn: its name, and B texts or samples (B, ...)."""

    name: str
    content: list[str] | Tensor


class JointGenerator(nn.Module):
    """Tokenizers, and a joint model trained on their tokens.

    Args:
        tokenizers: name of a pyramid -> its tokenizer.
        model: draws parts.
        sampling: name of a part -> options that suit it, used where a caller gives none.

    Shape notation: B batch, L tokens.
    """

    def __init__(
        self, tokenizers: Mapping[str, Tokenizer], model: JointModel,
        sampling: Mapping[str, SamplingOptions] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokenizers, self.model = nn.ModuleDict(tokenizers), model
        self.sampling = {name: SamplingOptions() for name in model.parts} | dict(sampling or {})
        definition = model.codec.definition if isinstance(model.codec, TokenizerCodec) else b""
        # among the weights, so that a checkpoint needs nothing beside it
        self.register_buffer("definition", torch.from_numpy(np.frombuffer(definition, np.uint8).copy()))

    @property
    def quantizers(self) -> dict[str, nn.Module]:
        """Name of a pyramid -> its quantizer."""
        return {name: tokenizer.quantizer for name, tokenizer in self.tokenizers.items()}

    def to_config(self) -> dict:
        """The joint model and its sampling, for JSON; tokenizers are written beside it."""
        sampling = {name: asdict(options) for name, options in self.sampling.items()}
        return {"model": self.model.to_config(), "sampling": sampling}

    @classmethod
    def from_config(cls, config: Mapping, tokenizers: Mapping[str, Tokenizer], definition: bytes) -> JointGenerator:
        """Inverse of :meth:`to_config`."""
        sampling = {name: SamplingOptions(**options) for name, options in config["sampling"].items()}
        return cls(tokenizers, JointModel.from_config(config["model"], definition), sampling)

    def fill(self, name: str, content: Tensor | Sequence[str], closed: bool = True) -> Filled:
        """A part of a prompt: B texts, or tokens (B, L). Raises UserError where a text does not fit."""
        quantizer = None if name == TEXT else self.tokenizers[name].quantizer
        return self.model.fill(name, content, quantizer, closed)

    @torch.inference_mode()
    def generate(
        self, prompt: Sequence[Filled], names: Sequence[str], seeds: Sequence[int],
        sampling: Mapping[str, SamplingOptions] | None = None,
    ) -> list[Made]:  # fmt: skip
        """Draw parts after those of a prompt, one sample a seed, and decode them.

        Args:
            prompt: parts of B samples each, as :meth:`fill` gives them.
            names: of the parts to draw.
            seeds: B integers; a sample depends on its own seed and prompt only.
            sampling: by the name of a part, in place of the model's own.

        Raises:
            UserError: the model never learned this order, see :func:`next_scale.joint.sampler.draw`.
        """
        options = self.sampling | dict(sampling or {})
        made = []
        for part in self.model.generate(prompt, names, self.quantizers, options, seeds):
            if part.latent is None:
                made.append(Made(part.name, self.model.codec.decode(part.tokens)))
                continue
            autoencoder = self.tokenizers[part.name].autoencoder
            # one at a time: matrix products round differently in a batch, and a decoder may amplify that
            made.append(Made(part.name, torch.cat([autoencoder.decode(row) for row in part.latent.split(1)])))
        return made
