"""Compiled kernels on disk, found again by the hash of all that made them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from next_scale.files import user_cache

FOLDER_VARIABLE = "NEXT_SCALE_KERNEL_CACHE"


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``NEXT_SCALE_KERNEL_CACHE``, else ``next-scale/kernels`` in the user's cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else user_cache("kernels")


def key_of(*parts: str) -> str:
    """One hash of several texts, none of which can run into the next."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def load(key: str) -> bytes | None:
    """What was stored under a key; None where nothing whole was."""
    try:
        data = (cache_folder() / key).read_bytes()
    except OSError:
        return None
    checksum, content = data[:32], data[32:]
    return content if hashlib.sha256(content).digest() == checksum else None


def store(key: str, content: bytes) -> None:
    """Keep `content`, whole or not at all; a cache that cannot be written is done without."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as file:
            try:
                file.write(hashlib.sha256(content).digest() + content)
                file.close()
                os.replace(file.name, folder / key)
            except OSError:
                os.unlink(file.name)
                raise
    except OSError:
        return
