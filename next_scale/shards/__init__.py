"""Token shards: a data set passed through a frozen tokenizer once, by any number of processes, to train from.

A split is a folder of shards and an index, which is written last. :mod:`.index` says what an index is, :mod:`.shard`
what a shard; :mod:`.writer` makes them, :mod:`.predict` in many processes; :mod:`.place` is a folder or a URL,
:mod:`.reader` reads what is there, and :mod:`.datamodule` is what recipes name.
"""

from __future__ import annotations


def __getattr__(name: str) -> type:
    if name == "ShardDataModule":  # imported when asked for: it needs Lightning, and the rest does not
        from next_scale.shards.datamodule import ShardDataModule

        return ShardDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
