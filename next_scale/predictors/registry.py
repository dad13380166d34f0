"""Families of predictors by name: those of this package, and those that other packages bring as entry points."""

from __future__ import annotations

from importlib.metadata import entry_points

from next_scale.errors import UserError
from next_scale.predictors.interface import Predictor

GROUP = "next_scale.predictors"
"""Group of entry points in which a package names a family that it brings: ``name = "package.module:Class"``."""


def predictor_class(name: str) -> type[Predictor]:
    """The class of a family.

    Raises:
        UserError: no such family, or what brings it does not import.
    """
    import next_scale.predictors as own

    for kind in own.FAMILIES:
        if kind.name == name:
            return kind
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            try:
                return entry.load()
            except Exception as error:  # another package's code
                raise UserError(f"the predictor '{name}' ({entry.value}) does not import: {error}") from error
    raise UserError(f"no predictor is called '{name}'; known: {', '.join(predictor_names())}")


def predictor_names() -> list[str]:
    """All families that can be asked for."""
    import next_scale.predictors as own

    names = [kind.name for kind in own.FAMILIES]
    return names + sorted({entry.name for entry in entry_points(group=GROUP)} - set(names))
