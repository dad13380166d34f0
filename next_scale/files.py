"""Files of users: clear refusals when reading, and writing whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from next_scale.errors import UserError

PARTIAL = ".????????????????????????????????.part"  # what a kill may leave of a file that `write_whole` was writing


def check_readable(path: str | os.PathLike, kind: str, mend: str) -> None:
    """Check that a path names a regular file that holds something and may be read.

    Args:
        kind: what the file should be, with its article, such as "a recording".
        mend: what to do about an empty file, such as "record it again".

    Raises:
        UserError: a folder, missing, a device or pipe, empty, or forbidden.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name {kind} in it")
    if not path.exists():
        raise UserError(f"there is no file {path}: check the path")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: give {kind}")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes): {mend}")
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def settle(path: str | os.PathLike) -> None:
    """Wait until the disk has all of a file, so that a move after it cannot come to last without it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_whole(path: str | os.PathLike, data: bytes | memoryview) -> None:
    """Write a file beside its target under another name, and move it over the target.

    Raises:
        UserError: a folder in its place, a missing folder, a full disk, or anything else that stops it.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file to write")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}: create it or write elsewhere")
    partial = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free space or write elsewhere") from error


def user_cache(name: str) -> Path:
    """Where things are kept that can be had again: ``next-scale/NAME`` in the user's cache."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "next-scale" / name


@contextmanager
def alone(path: str | os.PathLike) -> Iterator[None]:
    """No other process is in a block of the same path meanwhile: a file of that name, empty, is locked and stays."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def manifest_of(folder: Path, files: Iterable[Path], **options: object) -> str:
    """SHA-256 of what a data set is made of: the files' paths in the folder and sizes, and how they are read.

    Contents are not read: a file that is replaced by another of the same name and size goes unnoticed.

    Args:
        options: JSON values that decide what is made of the files.
    """
    listed = [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in files]
    return hashlib.sha256(json.dumps([listed, options], sort_keys=True).encode()).hexdigest()
