"""Where a set of shards lies: a folder, or a URL whose shards are fetched into a cache and checked there."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from next_scale.errors import UserError, first_line
from next_scale.files import user_cache
from next_scale.shards.index import INDEX, MOST_INDEX, Shard, ShardIndex, parse_index
from next_scale.shards.shard import check_shard

CACHE_VARIABLE = "NEXT_SCALE_SHARD_CACHE"
_BLOCK = 1 << 20
_FETCHED_AT_ONCE = 4
_ATTEMPTS = 3


class NoShards(UserError):
    """There is no index, so no set of shards."""


def open_place(location: str | os.PathLike, cache: str | os.PathLike | None = None) -> Folder | Remote:
    """The folder or URL of one split's shards.

    Args:
        cache: folder for what is fetched from a URL; default ``NEXT_SCALE_SHARD_CACHE``, else ``next-scale/shards`` in
            the user's cache.

    Raises:
        NoShards: no index there.
        UserError: it cannot be read, or makes no sense.
    """
    if not is_url(location):
        return Folder(Path(location))
    return Remote(str(location).rstrip("/"), Path(cache or os.environ.get(CACHE_VARIABLE) or user_cache("shards")))


def is_url(location: str | os.PathLike) -> bool:
    """Whether this names something that is fetched."""
    return "://" in str(location)


class Folder:
    """Shards in a folder, read where they are.

    Attributes:
        index: of the set.

    Raises:
        UserError: no index, or one that makes no sense.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / INDEX
        try:
            with open(path, "rb") as file:
                text = file.read(MOST_INDEX + 1)
        except FileNotFoundError as error:
            raise NoShards(
                f"{folder} holds no {INDEX}: name a folder that tokenize-dataset wrote, or run it again to its end"
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        self.index: ShardIndex = parse_index(text, str(path))

    def path(self, shard: Shard) -> Path:
        """Where a shard is."""
        return self.folder / shard.file

    def ahead(self, shards: Sequence[Shard]) -> None:
        """Have the system read these from the disk, one after the other, while others are in use."""
        if not hasattr(os, "posix_fadvise"):
            return
        for shard in shards:
            try:
                file = os.open(self.path(shard), os.O_RDONLY)
            except OSError:  # whoever needs it will say so
                continue
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)


class Remote:
    """Shards behind a URL of any protocol that fsspec knows: https, s3 (with the extra `shards`), gs, hf, ...

    A shard is fetched when it is first needed, or ahead of that, and kept in the cache under its SHA-256, which has
    been checked then. Several processes that need the same one wait for the one that fetches it.

    Attributes:
        index: of the set.

    Raises:
        UserError: the URL cannot be read, or its index makes no sense.
    """

    def __init__(self, url: str, cache: Path):
        self.url, self.cache = url, cache
        self._threads: ThreadPoolExecutor | None = None
        self.index: ShardIndex = parse_index(self._read_index(), f"{url}/{INDEX}")

    def path(self, shard: Shard) -> Path:
        """Where a shard is once it has been fetched.

        Raises:
            UserError: it cannot be fetched, or is not what the index says.
        """
        from filelock import FileLock

        kept = self.cache / f"{shard.sha256}.safetensors"
        if _kept(kept, shard):
            return kept
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            with FileLock(kept.with_suffix(".lock")):
                if not _kept(kept, shard):  # another process may have fetched it meanwhile
                    self._fetch(shard, kept)
        except OSError as error:
            raise UserError(f"cannot write to the cache {self.cache}: {error.strerror or error}; free space") from error
        return kept

    def ahead(self, shards: Sequence[Shard]) -> None:
        """Fetch these in the background; whoever needs one that cannot be had will say so."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_FETCHED_AT_ONCE, "shards")
        for shard in shards:
            self._threads.submit(self.path, shard)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_threads": None}

    def _read_index(self) -> bytes:
        try:
            with _opened(f"{self.url}/{INDEX}") as file:
                return file.read(MOST_INDEX + 1)
        except ImportError as error:
            mend = "install it (for s3 the extra `shards`, which brings s3fs)"
            raise UserError(f"{self.url} needs a package that is not here ({first_line(error)}): {mend}") from error
        except Exception as error:  # whatever the network and its libraries raise
            # fsspec says so too where nobody answered
            status = getattr(error.__cause__, "status", 404 if error.__cause__ is None else None)
            if isinstance(error, FileNotFoundError) and status == 404:
                raise NoShards(f"there is no {self.url}/{INDEX}: name a set that tokenize-dataset wrote") from error
            raise UserError(f"cannot fetch {self.url}/{INDEX} ({_told(error)}): check the connection") from error

    def _fetch(self, shard: Shard, kept: Path) -> None:
        partial = kept.with_name(f".{uuid.uuid4().hex}.part")
        try:
            for attempt in range(_ATTEMPTS):
                try:
                    self._copy(shard, partial)
                    break
                except UserError:
                    raise
                except Exception as error:
                    if attempt + 1 == _ATTEMPTS or (isinstance(error, OSError) and error.filename == str(partial)):
                        cause = f"cannot fetch {self.url}/{shard.file} ({_told(error)})"
                        raise UserError(f"{cause}: check the connection; what was fetched is kept") from error
                    time.sleep(2**attempt)
            check_shard(partial, shard, self.index)
            os.replace(partial, kept)
        except UserError as error:
            raise UserError(str(error).replace(str(partial), f"{self.url}/{shard.file}")) from error
        finally:
            partial.unlink(missing_ok=True)

    def _copy(self, shard: Shard, partial: Path) -> None:
        """Copy the shard's bytes, and not one more than it should have."""
        copied = 0
        with _opened(f"{self.url}/{shard.file}") as source, open(partial, "wb") as target:
            while block := source.read(_BLOCK):
                copied += len(block)
                if copied > shard.bytes:
                    raise UserError(f"{self.url}/{shard.file} has more than its {shard.bytes:,} bytes: upload it again")
                target.write(block)


def _told(error: Exception) -> str:
    """What went wrong, of which fsspec's own error may say nothing but the URL."""
    return first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def _kept(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.bytes
    except OSError:
        return False


def _opened(url: str):
    """The bytes behind a URL, from the first to the last."""
    import fsspec

    streamed = {"block_size": 0} if url.startswith("http") else {}  # one request for all, whether it has ranges or not
    return fsspec.open(url, "rb", **streamed).open()
