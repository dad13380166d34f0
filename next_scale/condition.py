"""Conditions: named fields with a fixed list of values each, any of which may be left out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from next_scale.errors import UserError

NOT_GIVEN = -1  # index of a field that is left out

ConditionSpec = dict[str, list[str | int]]
"""Field name -> its values in order: ``{"label": ["bass", "flute"], "pitch": [36, 37, ...]}``."""


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


def collate_conditions(conditions: Iterable[Mapping[str, int]], spec: ConditionSpec) -> dict[str, Tensor]:
    """Indices of B samples to a condition batch: field -> (B,) int64, -1 where a sample leaves the field out."""
    rows = list(conditions)
    return {name: torch.tensor([row.get(name, NOT_GIVEN) for row in rows], dtype=torch.int64) for name in spec}


class Conditioner(nn.Module):
    """Sum of one embedding a field; every field has a null row of its own for "not given".

    In training, `dropout` of the samples lose all fields (what classifier-free guidance, arXiv 2207.12598, needs) and
    each remaining field is lost with probability `field_dropout` (so that any subset may be asked for later). A spec
    without fields gives zeros.

    Args:
        spec: field name -> values.
        width: D.
        dropout, field_dropout: probabilities, in training only.

    Shape notation: B batch, D width.
    """

    def __init__(self, spec: ConditionSpec, width: int, dropout: float = 0.1, field_dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = validate_spec(spec)
        self.width = width
        self.dropout = dropout
        self.field_dropout = field_dropout
        # A list, for a field may have any name; the last row of each table is its null row.
        self.tables = nn.ModuleList(nn.Embedding(len(values) + 1, width) for values in self.spec.values())
        std = math.sqrt(1 / (3 * width))
        for table in self.tables:
            nn.init.trunc_normal_(table.weight, std=std, a=-2 * std, b=2 * std)
        self.register_buffer("zero", torch.zeros(width), persistent=False)

    def forward(self, condition: Mapping[str, Tensor], batch: int) -> Tensor:
        """Condition batch, field -> (B,) int64 indices or -1, to (B, D). Fields missing from it count as not given.

        Raises:
            ValueError: a field that the spec does not have.
        """
        unknown = set(condition) - set(self.spec)
        if unknown:
            raise ValueError(f"condition has fields {sorted(unknown)} that the spec lacks: {list(self.spec)}")
        device = self.zero.device
        out = self.zero.expand(batch, self.width)
        lost = torch.rand(batch, device=device) < self.dropout if self.training and self.dropout > 0 else None
        for (name, values), table in zip(self.spec.items(), self.tables, strict=True):
            null = len(values)
            index = condition.get(name)
            index = torch.full((batch,), null, device=device) if index is None else index.to(device)
            index = torch.where(index == NOT_GIVEN, null, index)
            if lost is not None:
                index = torch.where(lost, null, index)
            if self.training and self.field_dropout > 0:
                index = torch.where(torch.rand(batch, device=device) < self.field_dropout, null, index)
            out = out + table(index)
        return out
