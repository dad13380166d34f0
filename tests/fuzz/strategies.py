"""How hypothesis bends a seed: bytes, and values inside JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_EDGES = [0, 1, 2, 3, 7, 127, 128, 255, 256, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1]
_NUMBERS = st.one_of(
    st.sampled_from([*_EDGES, -1, -(2**31), 10**30, 10**9, 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf")]),
    st.integers(-3, 100),
)
_LEAVES = st.one_of(_NUMBERS, st.none(), st.booleans(), st.text(max_size=8))
VALUES = st.one_of(
    _LEAVES,
    st.lists(_LEAVES, max_size=4),
    st.dictionaries(st.text(max_size=4), _LEAVES, max_size=3),
    st.lists(st.lists(_NUMBERS, max_size=3), max_size=3),
)


@st.composite
def bent_bytes(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A seed with a few edits: bytes replaced, put in, taken out or repeated, fields set to numbers at some edge."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            data[place : place + 1] = draw(st.binary(max_size=4))
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            size, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
            data[place : place + size] = (draw(st.sampled_from(_EDGES)) % 256**size).to_bytes(size, order)
        elif kind == 3:
            del data[place : place + draw(st.integers(1, 16))]
        elif kind == 4:
            data[place:place] = data[place : place + draw(st.integers(1, 16))] * draw(st.integers(1, 8))
        elif place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def places(value: Any, above: tuple = ()) -> list[tuple]:
    """The paths of all values inside a JSON value."""
    found = [above] if above else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*above, key))
    return found


@st.composite
def bent_json(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A JSON object with one to three of its values replaced, removed, or joined by others."""
    value = json.loads(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(places(value) or [("nothing",)]))
        owner = value
        for key in above:
            owner = owner[key]
        if not isinstance(owner, dict | list) or (isinstance(owner, list) and last >= len(owner)):
            continue
        kind = draw(st.integers(0, 5))
        if kind == 0:
            del owner[last]
        elif kind == 1 and isinstance(owner, dict):
            owner[draw(st.text(max_size=6))] = draw(VALUES)
        else:
            owner[last] = draw(_NUMBERS if kind < 4 else VALUES)
    return json.dumps(value).encode()


def texts(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Bent seeds and any short text."""
    return st.one_of(bent_bytes(seeds), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
