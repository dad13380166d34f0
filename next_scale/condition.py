"""Conditions: fields with a list of values each, vectors, and a prompt in words, any of which may be left out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.conditioning import PROMPT, build_words, decode_prompts
from next_scale.errors import UserError

NOT_GIVEN = -1  # index of a field that is left out

ConditionSpec = dict[str, list[str | int]]
"""Field name -> its values in order: ``{"label": ["bass", "flute"], "pitch": [36, 37, ...]}``."""


VectorSpec = dict[str, int]
"""Field name -> numbers of its vector: ``{"embedding": 512}``. A sample that leaves the field out has NaN there."""


def is_numeric(values: Sequence[str | int]) -> bool:
    """Whether a field's values are numbers, between which the nearest is taken, and not names."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def validate_spec(spec: Mapping[str, Sequence[str | int]]) -> ConditionSpec:
    """Return the spec as plain lists.

    Raises:
        UserError: a field has no values, repeats one, or mixes numbers and names.
    """
    for name, values in spec.items():
        if isinstance(values, str) or not values:
            raise UserError(f"condition field '{name}' needs a list of values")
        if len(set(values)) != len(values):
            raise UserError(f"condition field '{name}' lists a value twice")
        if not is_numeric(values) and not all(isinstance(value, str) for value in values):
            raise UserError(f"condition field '{name}' must list either numbers or names")
    return {name: list(values) for name, values in spec.items()}


def encode_condition(spec: ConditionSpec, values: Mapping[str, str | int | float | None]) -> dict[str, int]:
    """Turn what a user asks for into indices: ``{"label": "flute", "pitch": 60}`` -> ``{"label": 4, "pitch": 24}``.

    Fields left out, or None, get -1. A number between two listed ones is taken as the nearest, the lower on a tie.

    Raises:
        UserError: unknown field, unknown name (with the known ones and the closest), number out of range.
    """
    for name in values:
        if name not in spec:
            raise UserError(f"unknown condition '{name}'; known: {', '.join(spec) or 'none'}")
    indices = {}
    for name, known in spec.items():
        value = values.get(name)
        if value is None:
            indices[name] = NOT_GIVEN
        elif is_numeric(known):
            indices[name] = _nearest(name, known, value)
        elif value in known:
            indices[name] = known.index(value)
        else:
            close = difflib.get_close_matches(str(value), known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(f"unknown {name} '{value}'; known: {', '.join(known)}{hint}")
    return indices


def _nearest(name: str, known: Sequence[int], value: str | int | float) -> int:
    low, high = min(known), max(known)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be a number from {low} to {high}, got '{value}'") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise UserError(f"{name} {value} is out of range; give a number from {low} to {high}")
    return min(range(len(known)), key=lambda i: (abs(known[i] - number), known[i]))


def collate_conditions(
    conditions: Iterable[Mapping[str, int | Tensor]], spec: ConditionSpec, vectors: VectorSpec | None = None
) -> dict[str, Tensor]:
    """Conditions of B samples to a condition batch.

    Args:
        conditions: field -> index, or vector (S,), or of "prompt" what
            :func:`next_scale.conditioning.encode_prompt` gives, in each; what one leaves out it leaves to the model.

    Returns:
        Field -> (B,) int64, -1 where not given; of a vector field (B, S) float32, NaN where not given; "prompt", if any
        sample has one, (B, N) int32, -1 after the end and where not given.
    """
    rows = list(conditions)
    batch = {name: torch.tensor([row.get(name, NOT_GIVEN) for row in rows], dtype=torch.int64) for name in spec}
    for name, size in (vectors or {}).items():
        absent = torch.full((size,), torch.nan)
        batch[name] = torch.stack([row.get(name, absent) for row in rows]) if rows else absent.new_zeros(0, size)
    prompts = [row[PROMPT] for row in rows if PROMPT in row and PROMPT not in spec]
    if prompts:
        absent = torch.full_like(prompts[0], NOT_GIVEN)
        batch[PROMPT] = torch.stack([row.get(PROMPT, absent) for row in rows])
    return batch


def any_given(condition: Mapping[str, Tensor]) -> bool:
    """Whether a condition batch gives any sample any field."""
    return any(bool(_given(value).any()) for value in condition.values())


def _given(value: Tensor) -> Tensor:
    """Which samples have a field: of indices (B,), vectors (B, S), or prompts (B, N), (B,) bool."""
    if value.is_floating_point():
        return ~value.isnan().any(-1)
    return value != NOT_GIVEN if value.dim() == 1 else (value != NOT_GIVEN).any(-1)


class VectorEmbedding(nn.Module):
    """Two linear layers without bias, tanh GELU between them, and a fixed vector that stands for "not given".

    So AAR (arXiv 2408.09027, section 3.3) takes the embedding of what shall be made.

    Args:
        size: S.
        width: D.

    Shape notation: B batch, S numbers of the vector, D width.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, width, bias=False), nn.Linear(width, width, bias=False)
        self.register_buffer("null", torch.randn(size) * size**-0.5)
        for layer in (self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, vectors: Tensor, given: Tensor) -> Tensor:
        """Vectors (B, S), whatever where not `given` (B,) bool, to (B, D)."""
        vectors = torch.where(given[:, None], vectors, self.null)
        return self.fc2(F.gelu(self.fc1(vectors), approximate="tanh"))


class Encoded(NamedTuple):
    """What a predictor gets of a condition batch.

    vector: (B, D), for the adaptive norms and for what starts a sequence. prefix: (B, P, D), tokens that stand before
    the first of the sequence and that all its tokens see; None without prompts.
    """

    vector: Tensor
    prefix: Tensor | None = None

    @property
    def length(self) -> int:
        """P."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    def before(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, P + L, D)."""
        return x if self.prefix is None else torch.cat([self.prefix, x], dim=1)

    def beside(self, other: Encoded) -> Encoded:
        """The samples of both, one batch after the other."""
        prefix = None if self.prefix is None else torch.cat([self.prefix, other.prefix])
        return Encoded(torch.cat([self.vector, other.vector]), prefix)


class Conditioner(nn.Module):
    """Sum of one embedding a field; every field has an embedding of its own for "not given".

    Beside fields there may be a prompt in words, which gives prefix tokens, and a summary that joins the sum.

    In training, `dropout` of the samples lose all fields (what classifier-free guidance, arXiv 2207.12598, needs) and
    each remaining field is lost with probability `field_dropout` (so that any subset may be asked for later). Without
    fields it gives zeros.

    Args:
        spec: field name -> values.
        width: D.
        dropout, field_dropout: probabilities, in training only.
        vectors: field name -> numbers of its vector, for :class:`VectorEmbedding`.
        words: what prompts are read by, as :func:`next_scale.conditioning.build_words` takes it; None for no prompts.

    Raises:
        UserError: a field without values or of both kinds, or words that cannot be built.

    Shape notation: B batch, S numbers of a vector, D width, P prefix tokens.
    """

    def __init__(
        self,
        spec: ConditionSpec,
        width: int,
        dropout: float = 0.1,
        field_dropout: float = 0.0,
        vectors: VectorSpec | None = None,
        words: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.vectors = validate_spec(spec), dict(vectors or {})
        if words is not None and PROMPT in {**self.spec, **self.vectors}:
            raise UserError(f"the condition field '{PROMPT}' is the words': rename the other one")
        if twice := set(self.spec) & set(self.vectors):
            raise UserError(f"condition field '{min(twice)}' has both values and a vector: rename one")
        self.width = width
        self.dropout = dropout
        self.field_dropout = field_dropout
        # Lists, for a field may have any name; the last row of each table is its null row.
        self.tables = nn.ModuleList(nn.Embedding(len(values) + 1, width) for values in self.spec.values())
        self.embeddings = nn.ModuleList(VectorEmbedding(size, width) for size in self.vectors.values())
        std = math.sqrt(1 / (3 * width))
        for table in self.tables:
            nn.init.trunc_normal_(table.weight, std=std, a=-2 * std, b=2 * std)
        self.register_buffer("zero", torch.zeros(width), persistent=False)
        self.words = None if words is None else build_words(words, width)

    @property
    def length(self) -> int:
        """P."""
        return 0 if self.words is None else self.words.count

    def forward(self, condition: Mapping[str, Tensor], batch: int) -> Tensor:
        """The vector of :meth:`encode`: (B, D)."""
        return self.encode(condition, batch).vector

    def encode(self, condition: Mapping[str, Tensor], batch: int) -> Encoded:
        """Of a condition batch (:func:`collate_conditions`). Fields missing from it count as not given.

        Raises:
            ValueError: a field that the conditioner does not have.
            UserError: a prompt does not fit, see :meth:`next_scale.conditioning.Words.check`.
        """
        known = [*self.spec, *self.vectors, *([] if self.words is None else [PROMPT])]
        unknown = set(condition) - set(known)
        if unknown:
            raise ValueError(f"condition has fields {sorted(unknown)} that the spec lacks: {known}")
        device = self.zero.device
        out = self.zero.expand(batch, self.width)
        kept = torch.ones(batch, dtype=torch.bool, device=device)
        if self.training and self.dropout > 0:
            kept = torch.rand(batch, device=device) >= self.dropout

        def here(value: Tensor) -> Tensor:
            """Which samples keep a field: (B,) bool."""
            given = _given(value) & kept
            if self.training and self.field_dropout > 0:
                given &= torch.rand(batch, device=device) >= self.field_dropout
            return given

        for (name, values), table in zip(self.spec.items(), self.tables, strict=True):
            index = condition.get(name)
            index = torch.full((batch,), NOT_GIVEN, device=device) if index is None else index.to(device)
            out = out + table(torch.where(here(index), index, len(values)))
        for (name, size), embedding in zip(self.vectors.items(), self.embeddings, strict=True):
            vectors = condition.get(name)
            vectors = self.zero.new_full((batch, size), torch.nan) if vectors is None else vectors.to(self.zero)
            out = out + embedding(vectors, here(vectors))
        if self.words is None:
            return Encoded(out)
        codes = condition.get(PROMPT)
        texts: list[str | None] = [None] * batch
        if codes is not None:
            kept_rows = here(codes.to(device)).tolist()
            texts = [text if keep else None for text, keep in zip(decode_prompts(codes), kept_rows, strict=True)]
        prefix, summary = self.words(texts)
        return Encoded(out + summary, prefix)
