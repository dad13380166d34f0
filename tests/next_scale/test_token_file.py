"""Token files: exact round trips at ceil(log2 V) bits a token, and every kind of damage noticed."""

import json
import math
import struct
import zlib

import numpy as np
import pytest
import torch

from next_scale.errors import UserError
from next_scale.schedule import Schedule
from next_scale.token_file import (
    TokenFile,
    check_fingerprint,
    code_bits,
    pack,
    read_token_file,
    unpack,
    write_token_file,
)

SCHEDULE = Schedule.parse("1 2 4")


def token_file(codes=1000, pyramids=5, schedule=SCHEDULE, **details):
    generator = torch.Generator().manual_seed(codes)
    tokens = torch.randint(codes, (pyramids, schedule.length), generator=generator)
    return TokenFile(tokens, schedule, codes, "0123456789abcdef", details)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.nst"
    write_token_file(path, token_file(note="x"))
    return path


def refused(path):
    with pytest.raises(UserError) as caught:
        read_token_file(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def forge(path, header=None, payload=None, magic=b"NSTK", version=1, length=None):
    """Write a file with a right checksum and parts of one's choice over the one at `path`."""
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 6)[0]
    text = data[10 : 10 + size]
    if header is not None:
        text = header if isinstance(header, bytes) else json.dumps({**json.loads(text), **header}).encode()
    payload = data[10 + size : -4] if payload is None else payload
    body = struct.pack("<4sHI", magic, version, len(text) if length is None else length) + text + payload
    path.write_bytes(body + struct.pack("<I", zlib.crc32(body)))


@pytest.mark.parametrize("codes", [1, 2, 3, 16, 1000, 1024, 1025, 65536, 2**31])
def test_round_trip(tmp_path, codes):
    file = token_file(codes, pyramids=3, samples=7, name="ü")
    size = write_token_file(tmp_path / "a.nst", file)
    again = read_token_file(tmp_path / "a.nst")
    assert torch.equal(again.tokens, file.tokens) and again.tokens.dtype == torch.int64
    assert (again.schedule, again.codebook_size) == (SCHEDULE, codes)
    assert (again.fingerprint, again.details) == (file.fingerprint, {"samples": 7, "name": "ü"})
    assert size == (tmp_path / "a.nst").stat().st_size
    assert file.bits == 21 * max(1, math.ceil(math.log2(codes)))


def test_two_dimensions(tmp_path):
    file = token_file(schedule=Schedule.parse("1x1 2x3"))
    write_token_file(tmp_path / "a.nst", file)
    assert read_token_file(tmp_path / "a.nst").schedule == file.schedule


@pytest.mark.parametrize("bits", [1, 3, 10, 31])
@pytest.mark.parametrize("count", [1, 7, 65536, 65537, 140_001])
def test_packing(bits, count):
    codes = np.random.default_rng(0).integers(0, 1 << bits, count)
    data = pack(codes, bits)
    assert len(data) == math.ceil(count * bits / 8)
    assert np.array_equal(unpack(data, count, bits), codes)
    if count < 10:  # the definition: one number in base 2
        text = "".join(f"{code:0{bits}b}" for code in codes)
        assert data == int(text.ljust(8 * len(data), "0"), 2).to_bytes(len(data), "big")


def test_code_bits():
    assert [code_bits(v) for v in (1, 2, 3, 4, 5, 1024, 1025)] == [1, 1, 2, 2, 3, 10, 11]


def test_write_checks(tmp_path):
    with pytest.raises(ValueError, match="from 0 to 9"):
        write_token_file(tmp_path / "a", TokenFile(torch.full((1, 7), 10), SCHEDULE, 10, ""))
    with pytest.raises(ValueError, match="do not fit"):
        write_token_file(tmp_path / "a", TokenFile(torch.zeros(1, 6, dtype=torch.int64), SCHEDULE, 10, ""))
    assert not list(tmp_path.iterdir())


def test_every_truncation_is_noticed(path):
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        refused(path)
    path.write_bytes(data + b"\0")
    assert "too long" in refused(path)


def test_every_flipped_byte_is_noticed(path):
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        refused(path)


def test_not_a_token_file(tmp_path, path):
    assert "No such file" in refused(tmp_path / "none")
    assert "not a regular file" in refused(tmp_path)
    path.write_bytes(b"RIFF" + bytes(100))
    assert "not a token file" in refused(path)
    path.write_bytes(b"")
    assert "not a token file" in refused(path)


def test_newer_version(path):
    forge(path, version=2)
    assert "version 2" in refused(path)


@pytest.mark.parametrize(
    "header",
    [
        {"pyramids": 10**15},
        {"schedule": [[2**22]]},
        {"schedule": [[2**16]] * 50},
        {"codebook_size": 2**30},
    ],
)
def test_absurd_sizes_allocate_nothing(path, header):
    forge(path, header)
    assert "truncated" in refused(path)


def test_absurd_header_length(path):
    forge(path, length=2**31)
    assert "header" in refused(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        {"schedule": "1 2"},
        {"schedule": []},
        {"schedule": [[2], [1]]},
        {"schedule": [[10**9]]},
        {"schedule": [[1]] * 2000},
        {"schedule": [[1e400]]},
        {"pyramids": 0},
        {"pyramids": -5},
        {"pyramids": True},
        {"pyramids": 5.0},
        {"codebook_size": 0},
        {"codebook_size": 2**40},
        {"fingerprint": 5},
        {"details": []},
    ],
)
def test_senseless_headers(path, header):
    forge(path, header)
    assert "header makes no sense" in refused(path)


def test_code_out_of_range(path):
    forge(path, payload=b"\xff" * ((5 * 7 * 10 + 7) // 8))
    assert "1023, but its codebook has 1000" in refused(path)


def test_fingerprints(path):
    file = read_token_file(path)
    check_fingerprint(file, "0123456789abcdef", path)
    with pytest.raises(UserError, match="0123456789abcdef.*fedcba9876543210"):
        check_fingerprint(file, "fedcba9876543210", path)
