"""One shard: a safetensors file of tokens, conditions and, where kept, latents, named by its number and checksum.

Tensors: ``tokens`` (N, L) uint16, or int32 where the codebook has more than 65,536 codes; ``condition`` (N, F) int32,
-1 where a field is not given; ``latent`` (N, C, *grid) float16. The same arrays always give the same bytes.

Shape notation: N samples, L tokens each, F fields, C latent channels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from next_scale.errors import UserError, first_line
from next_scale.files import write_whole
from next_scale.shards.index import FILE, Shard, ShardIndex

TOKENS, CONDITION, LATENT = "tokens", "condition", "latent"


def write_shard(folder: Path, number: int, arrays: Mapping[str, np.ndarray]) -> Shard:
    """Write a shard, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    digest = hashlib.sha256(data).hexdigest()
    shard = Shard(f"{number:06}-{digest[:16]}.safetensors", len(arrays[TOKENS]), len(data), digest)
    write_whole(folder / shard.file, data)
    return shard


def open_shard(path: Path, shard: Shard, index: ShardIndex) -> dict[str, np.ndarray]:
    """A shard's arrays, mapped into memory and not to be written; nothing is read yet.

    Raises:
        UserError: it is missing, cut off, or not what the index says.
    """
    check_size(path, shard)
    try:
        with safe_open(path, framework="pt") as file:  # maps the file, where "np" would copy it
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): {MEND}") from error
    shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    if shapes != expected(index, shard.samples):
        raise UserError(f"{path} does not hold what its index says: {MEND}")
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


MEND = "copy it again, or run tokenize-dataset again, which makes it anew"


def expected(index: ShardIndex, samples: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Data type and shape of every array of a shard."""
    tokens = np.dtype(np.uint16 if index.token_bytes == 2 else np.int32)
    found = {
        TOKENS: (tokens, (samples, index.schedule.length)),
        CONDITION: (np.dtype(np.int32), (samples, len(index.condition))),
    }
    if index.latent is not None:
        found[LATENT] = (np.dtype(np.float16), (samples, *index.latent))
    return found


def check_size(path: Path, shard: Shard) -> None:
    """Raise UserError where a shard is missing or has another size than the index says."""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise UserError(f"the shard {path} is missing ({error.strerror}): {MEND}") from error
    if size != shard.bytes:
        kind = "cut off" if size < shard.bytes else "too long"
        raise UserError(f"{path} is {kind}: {size:,} bytes instead of {shard.bytes:,}; {MEND}")


def check_shard(path: Path, shard: Shard, index: ShardIndex) -> None:
    """Read a shard and compare it with the index: size, checksum, and that all codes and conditions exist.

    Raises:
        UserError: anything is not as it should be, by the name of the shard.
    """
    check_size(path, shard)
    if digest_of(path) != shard.sha256:
        raise UserError(f"{path} is damaged, its checksum does not match: {MEND}")
    arrays = open_shard(path, shard, index)
    least, most = arrays[TOKENS].min(), arrays[TOKENS].max()
    if least < 0 or most >= index.codebook_size:
        raise UserError(f"{path} holds the code {most}, but its codebook has {index.codebook_size}: {MEND}")
    sizes = np.array([len(values) for values in index.condition.values()], np.int64)
    if (arrays[CONDITION] < -1).any() or (arrays[CONDITION] >= sizes).any():
        raise UserError(f"{path} holds a condition that its index does not list: {MEND}")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def shard_files(folder: Path) -> list[Path]:
    """The files in a folder that have the name of a shard, in order."""
    return sorted(path for path in folder.glob("*.safetensors") if FILE.fullmatch(path.name))


def whole_shards(folder: Path) -> dict[int, Shard]:
    """The shards in a folder that are whole, by number: those whose checksum is the one in their name.

    Their `samples` are 0, for that is what a plan tells.
    """
    found = {}
    for path in shard_files(folder):
        number, _, digest = path.stem.partition("-")
        full = digest_of(path)
        if full[:16] == digest:
            found[int(number)] = Shard(path.name, 0, path.stat().st_size, full)
    return found
