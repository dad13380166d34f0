"""Prompts as embeddings of a frozen language model of the `transformers` library: T5's tokens, or CLAP's one vector.

The language model is no part of a checkpoint, which only names it: it is loaded when the first prompt is read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from next_scale.conditioning.words import Read, Words
from next_scale.errors import UserError, first_line

_KEPT = 4096  # prompts whose embeddings are kept


class FrozenText(Words):
    """A linear layer from a frozen model's embeddings.

    Args:
        width: D.
        source: a folder as the hub has it, or a hub id; safetensors only.
        size: S, features of the embeddings; asked of the model where it is None.
        length: most tokens of a prompt, P; longer ones are cut by the language model's own rule.

    Raises:
        UserError: the library or the model is not there.

    Shape notation: B batch, P tokens, S features of an embedding, D width.
    """

    def __init__(self, width: int, source: str, size: int | None = None, length: int = 32) -> None:
        super().__init__(length, width)
        self.source = source
        # outside of the module's parts, so that neither a checkpoint nor an optimizer holds it
        self._frozen = SimpleNamespace(parts=None, known=OrderedDict())
        self.size = self._features() if size is None else size
        self.embed = nn.Linear(self.size, width)
        nn.init.trunc_normal_(self.embed.weight, std=self.size**-0.5)
        nn.init.zeros_(self.embed.bias)

    def to_config(self) -> dict:
        return {"kind": self.kind, "source": self.source, "size": self.size, "length": self.count}

    def check(self, text: str) -> None:
        self._parts()  # nothing is too long: the language model cuts it

    def _parts(self) -> tuple:
        """The language model and its tokenizer."""
        if self._frozen.parts is None:
            try:
                import transformers
            except ImportError as error:
                raise UserError(
                    f"prompts of the kind '{self.kind}' need the package transformers: pip install 'next-scale[codecs]'"
                ) from error
            transformers.utils.logging.disable_progress_bar()
            try:
                model = self._load(transformers).eval().requires_grad_(False)
                self._frozen.parts = model, transformers.AutoTokenizer.from_pretrained(self.source)
            except Exception as error:  # whatever the network and the library raise
                raise UserError(
                    f"no {self.kind} text model at {self.source} ({first_line(error)[:120]}): download it elsewhere "
                    "and name its folder as words.source"
                ) from error
        return self._frozen.parts

    @abstractmethod
    def _load(self, library) -> nn.Module:
        """The language model."""

    @abstractmethod
    def _features(self) -> int:
        """S of the language model."""

    @abstractmethod
    def _embed(self, text: str) -> Tensor:
        """Embeddings of a prompt, (n, S) float32 on the CPU, n at most P."""

    @torch.no_grad()
    def _of(self, text: str) -> Tensor:
        known = self._frozen.known
        if text not in known:
            while len(known) >= _KEPT:
                known.popitem(last=False)
            known[text] = self._embed(text).float()
        return known[text]

    def read(self, texts: Sequence[str]) -> Read:
        weight = self.embed.weight
        found = weight.new_zeros(len(texts), self.count, self.size)
        used = torch.zeros(len(texts), self.count, dtype=torch.bool, device=weight.device)
        for row, text in enumerate(texts):
            if text:
                one = self._of(text)
                found[row, : len(one)], used[row, : len(one)] = one.to(found), True
        return Read(self.embed(found), used)


class T5Text(FrozenText):
    """The encoder of a T5 (arXiv 1910.10683) or ByT5: an embedding a token."""

    kind = "t5"

    def __init__(
        self, width: int, source: str = "google-t5/t5-small", size: int | None = None, length: int = 32
    ) -> None:
        super().__init__(width, source, size, length)

    def _load(self, library) -> nn.Module:
        return library.T5EncoderModel.from_pretrained(self.source, use_safetensors=True)

    def _features(self) -> int:
        return self._parts()[0].config.d_model

    def _embed(self, text: str) -> Tensor:
        model, tokenizer = self._parts()
        inputs = tokenizer([text], truncation=True, max_length=self.count, return_tensors="pt")
        return model(**inputs).last_hidden_state[0]  # (1, n, S) -> (n, S)


class ClapText(FrozenText):
    """CLAP's joint embedding of what is described (arXiv 2211.06687): one vector of unit length, one prefix token."""

    kind = "clap"

    def __init__(
        self, width: int, source: str = "laion/larger_clap_general", size: int | None = None, length: int = 1
    ) -> None:
        if length != 1:
            raise UserError("CLAP gives a prompt one vector: leave length out")
        super().__init__(width, source, size, 1)

    def _load(self, library) -> nn.Module:
        return library.ClapTextModelWithProjection.from_pretrained(self.source, use_safetensors=True)

    def _features(self) -> int:
        return self._parts()[0].config.projection_dim

    def _embed(self, text: str) -> Tensor:
        model, tokenizer = self._parts()
        inputs = tokenizer([text], truncation=True, return_tensors="pt")
        return nn.functional.normalize(model(**inputs).text_embeds, dim=-1)  # (1, S)
