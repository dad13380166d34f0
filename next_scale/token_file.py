"""Token files: token pyramids on disk, as few bits a token as the codebook needs.

Layout, little-endian: ``NSTK``, version (uint16), length of the header (uint32), header (JSON, UTF-8), codes of
ceil(log2 V) bits each, most significant bit first, the last byte completed with zeros; CRC-32 (uint32) of all before.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from next_scale.errors import UserError
from next_scale.files import settle
from next_scale.schedule import Schedule

MAGIC = b"NSTK"
VERSION = 1
_PREFIX = struct.Struct("<4sHI")
_CHECK = struct.Struct("<I")
_MOST_HEADER = 1 << 20
_MOST_CODES = 1 << 31
_BLOCK = 1 << 16  # codes packed at once; a multiple of 8, so that every block ends with a byte


@dataclass(frozen=True)
class TokenFile:
    """What a token file holds.

    Attributes:
        tokens: (B, L) int64, pyramids of one length each, below `codebook_size`.
        schedule: of every pyramid.
        codebook_size: V.
        fingerprint: of the tokenizer that made them, see :func:`next_scale.model.fingerprint`.
        details: whatever else the writer needs to make samples of them again; JSON values.

    Shape notation: B pyramids, L tokens each, V codes.
    """

    tokens: Tensor
    schedule: Schedule
    codebook_size: int
    fingerprint: str
    details: dict = field(default_factory=dict)

    @property
    def bits(self) -> int:
        """Bits that the codes take, header and checksum aside."""
        return self.tokens.numel() * code_bits(self.codebook_size)


def code_bits(codebook_size: int) -> int:
    """Bits of one code: ceil(log2 V), at least 1."""
    return max(1, (codebook_size - 1).bit_length())


def pack(codes: np.ndarray, bits: int) -> bytes:
    """Codes (N,) int64, each of `bits` bits, most significant first."""
    shifts = np.arange(bits - 1, -1, -1)
    blocks = (codes[start : start + _BLOCK, None] >> shifts & 1 for start in range(0, len(codes), _BLOCK))
    return b"".join(np.packbits(block.astype(np.uint8).reshape(-1)).tobytes() for block in blocks)


def unpack(data: bytes | memoryview, count: int, bits: int) -> np.ndarray:
    """Inverse of :func:`pack`: (count,) int64."""
    codes = np.empty(count, np.int64)
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        block = np.frombuffer(data, np.uint8, (size * bits + 7) // 8, start * bits // 8)
        codes[start : start + size] = np.unpackbits(block, count=size * bits).reshape(size, bits) @ weights
    return codes


def write_token_file(path: str | Path, file: TokenFile) -> int:
    """Write a token file, whole or not at all; returns its size in bytes.

    Raises:
        UserError: it cannot be written.
        ValueError: the tokens do not fit the schedule or the codebook.
    """
    path = Path(path)
    tokens = file.tokens.cpu().numpy()
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] != file.schedule.length:
        raise ValueError(f"tokens of shape {tokens.shape} do not fit a schedule of {file.schedule.length} tokens")
    if tokens.min() < 0 or tokens.max() >= file.codebook_size:
        raise ValueError(f"tokens must be from 0 to {file.codebook_size - 1}")
    header = {
        "schedule": file.schedule.to_config(),
        "codebook_size": file.codebook_size,
        "fingerprint": file.fingerprint,
        "pyramids": len(tokens),
        "details": file.details,
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    body = _PREFIX.pack(MAGIC, VERSION, len(text)) + text + pack(tokens.reshape(-1), code_bits(file.codebook_size))
    body += _CHECK.pack(zlib.crc32(body))
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
            partial = Path(scratch, path.name)
            partial.write_bytes(body)
            settle(partial)
            os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; write elsewhere") from error
    return len(body)


def read_token_file(path: str | Path) -> TokenFile:
    """Read and check a token file.

    Raises:
        UserError: missing, not a token file, truncated, damaged, or made by a newer program.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file; give a token file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if data[:4] != MAGIC[: len(data)] or not data:
        raise UserError(f"{path} is not a token file: it does not start as one")
    if len(data) < _PREFIX.size + _CHECK.size:
        raise UserError(f"{path} is truncated: {len(data)} bytes are too few; copy it again")
    _, version, length = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise UserError(f"{path} has token file version {version}; this program reads version {VERSION}")
    end = _PREFIX.size + length
    if length > _MOST_HEADER or end + _CHECK.size > len(data):
        raise UserError(f"{path} is truncated or damaged: its header would take {length:,} bytes; copy it again")
    header = _header(data[_PREFIX.size : end], path)
    schedule, codes = header["schedule"], header["codebook_size"]
    count = header["pyramids"] * schedule.length
    expected = end + (count * code_bits(codes) + 7) // 8 + _CHECK.size
    if len(data) != expected:  # before anything of that size is allocated
        kind = "truncated" if len(data) < expected else "too long"
        raise UserError(f"{path} is {kind}: {len(data):,} bytes instead of {expected:,}; copy it again")
    if _CHECK.unpack(data[-_CHECK.size :])[0] != zlib.crc32(data[: -_CHECK.size]):
        raise UserError(f"{path} is damaged: its checksum does not match; copy it again")
    tokens = unpack(memoryview(data)[end : -_CHECK.size], count, code_bits(codes))
    if tokens.max() >= codes:
        raise UserError(f"{path} holds the code {tokens.max()}, but its codebook has {codes} codes; make it again")
    tokens = torch.from_numpy(tokens).view(-1, schedule.length)  # (B * L,) -> (B, L)
    return TokenFile(tokens, schedule, codes, header["fingerprint"], header["details"])


def _header(text: bytes, path: Path) -> dict:
    try:
        header = json.loads(text)
        schedule = Schedule.from_config(header["schedule"])
        codes, pyramids = header["codebook_size"], header["pyramids"]
        fingerprint, details = header["fingerprint"], header["details"]
        sound = type(codes) is int and type(pyramids) is int and 1 <= codes <= _MOST_CODES and pyramids >= 1
        sound = sound and isinstance(fingerprint, str) and isinstance(details, dict)
    except (UserError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path} is damaged: its header makes no sense; copy it or make it again")
    return {**header, "schedule": schedule}


def check_fingerprint(file: TokenFile, fingerprint: str, path: str | Path) -> None:
    """Raise UserError where the tokens were made by another tokenizer than the one with this fingerprint."""
    if file.fingerprint != fingerprint:
        raise UserError(
            f"{path} was made by the tokenizer {file.fingerprint}, but this checkpoint's is {fingerprint}; "
            "give the checkpoint that made it with --checkpoint"
        )
