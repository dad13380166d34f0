"""Limits on YAML from strangers: a few hundred bytes of aliases could otherwise stand for billions of values."""

from __future__ import annotations

import yaml
from jsonargparse import get_loader, set_loader

from next_scale.errors import first_line

MOST_BYTES, MOST_VALUES, MOST_DEPTH = 1 << 20, 2_000, 50  # jsonargparse takes up to 2 ms a value


def limit_yaml() -> None:
    """Let jsonargparse, which reads recipes, plans and options, refuse what is beyond the limits."""
    load = get_loader("yaml")
    if getattr(load, "limited", False):
        return

    def limited(text: str) -> object:
        check_yaml(text)
        try:
            return load(text)
        except yaml.YAMLError:
            raise
        except Exception as error:  # of values, such as a number of a million digits
            raise yaml.YAMLError(first_line(error)) from error

    limited.limited = True
    set_loader("yaml", limited, exceptions=(yaml.YAMLError,))


def check_yaml(text: str) -> None:
    """Count what a text stands for, its aliases written out, without building any of it.

    Raises:
        yaml.YAMLError: more than 1 MiB, 2,000 values or 50 levels, or no YAML.
    """
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"more than {MOST_BYTES:,} characters")
    sizes: dict[str, int] = {}  # of the values that anchors name
    open_: list[tuple[str | None, int]] = []  # anchors of the collections around, and the count at their start
    count = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = open_.pop()
            sizes[anchor or ""] = count - start
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise yaml.YAMLError(f"the alias *{event.anchor} is inside of what it stands for")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            sizes[event.anchor or ""] = 1
        if len(open_) > MOST_DEPTH or count > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES:,} values, aliases written out, or {MOST_DEPTH} levels")
