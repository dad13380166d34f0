"""How much building a model may take, judged by the weights that are there for it.

A configuration is a few hundred bytes that may ask for terabytes, or for a billion layers. While a model is built, all
that PyTorch is about to allocate is counted first, and refused where it is out of proportion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from next_scale.errors import UserError

# what any model may take: windows, filter banks and masks are no weights; and one whose codec brings weights of its own
_ELEMENTS, _CALLS = 1 << 24, 4_000
_ELEMENTS_ELSEWHERE, _CALLS_ELSEWHERE = 1 << 28, 40_000
_ELEMENTS_EACH, _CALLS_EACH = 4, 20  # measured: 1.7 and 4
_LARGEST = 2**31  # of whole numbers in a configuration


class Allowance(TorchDispatchMode):
    """Within this context, elements that operations make are counted before they are made, and calls as they come.

    Args:
        shapes: of all tensors that the model will be given.
        source: where they are, for the message.
        elsewhere: a part of the model brings weights from elsewhere.

    Raises:
        UserError: more than the weights account for.
    """

    def __init__(self, shapes: Iterable[Sequence[int]], source: object, elsewhere: bool = False) -> None:
        super().__init__()
        sizes = [math.prod(shape) for shape in shapes]
        self.elements = (_ELEMENTS_ELSEWHERE if elsewhere else _ELEMENTS) + _ELEMENTS_EACH * sum(sizes)
        self.calls = (_CALLS_ELSEWHERE if elsewhere else _CALLS) + _CALLS_EACH * len(sizes)
        self.source = source

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.calls -= 1
        self.elements -= _made(func, args, kwargs)
        if self.calls < 0 or self.elements < 0:
            raise UserError(f"{self.source} describes a model far larger than its weights: it was not built")
        return func(*args, **kwargs)


def _made(func, args: tuple, kwargs: dict) -> int:
    """Elements of the tensors that an operation will make: those that it makes on the meta device, without memory."""
    schema = func._schema
    if any(result.alias_info is not None for result in schema.returns):  # a view, or in place
        return 0
    if any(argument.name == "device" for argument in schema.arguments):
        if torch.device(kwargs.get("device") or "cpu").type == "meta":
            return 0
        kwargs = {**kwargs, "device": torch.device("meta")}
    try:
        made = func(*tree_map(_on_meta, args), **tree_map(_on_meta, kwargs))
    except Exception:  # the size depends on values, or the operation itself will raise
        return 0
    made = made if isinstance(made, tuple | list) else [made]
    return sum(tensor.numel() for tensor in made if isinstance(tensor, Tensor))


def _on_meta(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def check_types(options: Mapping[str, Any], *kinds: type) -> None:
    """Check values of a configuration against the annotations of constructors, those of later classes first.

    Options that none of them names are left to the constructor.

    Raises:
        UserError: a value of another type, a number that is not finite, a whole number beyond 2^31, or a probability
            of dropping something that is none.
    """
    hints: dict[str, Any] = {}
    for kind in kinds:
        for owner in reversed(kind.__mro__):
            if "__init__" in vars(owner) and owner is not object:
                try:
                    hints |= get_type_hints(vars(owner)["__init__"])
                except NameError:  # a type that is imported for checkers only
                    continue
    for name, value in options.items():
        probability = name.endswith(("dropout", "drop_path"))
        if (name in hints and not _is(value, hints[name])) or (
            probability and not (_is(value, float) and 0 <= value <= 1)
        ):
            raise UserError(f"{name} cannot be {str(value)[:60]!r}")


def _is(value: object, hint: Any) -> bool:
    """Whether a value of JSON has a type; types that JSON does not have are not judged."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_is(value, one) for one in inner)
    if kind in (None, NoneType):
        return value is None
    if kind is Literal:
        return value in inner
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind in (list, tuple, Sequence):
        inner = [one for one in inner if one is not ...]
        return isinstance(value, list | tuple) and all(not inner or any(_is(v, one) for one in inner) for v in value)
    if kind in (dict, Mapping):
        fits = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        return fits and (not inner or all(_is(one, inner[1]) for one in value.values()))
    return True
