"""The splits of a data set, and which sample belongs to which."""

import hashlib

from next_scale.errors import UserError

SPLITS = ("train", "validation", "test")


def check_split(split: str) -> None:
    """Raise UserError unless `split` is one of `SPLITS` or "all"."""
    if split not in (*SPLITS, "all"):
        raise UserError(f"no split named {split}: choose from {', '.join((*SPLITS, 'all'))}")


def split_of(relative_path: str) -> str:
    """The split of a file by a hash of its path in the folder (with /): 85% train, 5% validation, 10% test.

    It depends on nothing else, so adding files never moves another file to another split.
    """
    position = int.from_bytes(hashlib.sha256(relative_path.encode()).digest()[:8], "big") / 2**64
    return "test" if position < 0.10 else "validation" if position < 0.15 else "train"
