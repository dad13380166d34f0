"""Results: one JSON object a line, of which the last of a cell or tokenizer counts.

Keys of a tokenizer's record: ``id``, ``place`` (``modality``, ``dimension``, ``schedule``), ``key`` (of all that it
depends on), and, as below, ``tokenizer`` and where it comes from. Keys of a cell's record: ``id`` and ``cell``
(:class:`next_scale.compare.cells.Cell` and ``place``), ``key``,
then either ``error``, one line, or

- ``versions``, ``git``, ``data`` (names and a checksum), ``device``, ``finished``: where it comes from;
- ``tokenizer``: ``schedule``, ``codebook_size``, ``tokens``, ``bits``, ``bits_per_second``, ``parameters``, ``steps``,
  ``floor`` and ``latent_floor`` (distortions and distances of reconstructions, with and without quantization),
  ``profile`` (:class:`next_scale.profile.ScaleProfile`);
- ``model``: ``parameters``, ``size``, ``options``, ``family``;
- ``training``: ``steps``, ``batch_size``, ``samples``, ``flops``, ``seconds``, ``loss``, ``curve`` of [step, loss];
- ``likelihood``: None, or ``exact``, ``per_scale`` in bits, ``bits_per_sample``, ``bits_resampled`` (the same of draws
  of the held-out samples, see :func:`next_scale.compare.measure.resampled_rows`), ``bits_per_dim``,
  ``bits_per_token``, ``bits_per_second``;
- ``quality``, and ``real`` of validation samples in the place of generated ones: ``n``, ``features``, ``guidance``,
  ``frechet``, ``frechet_resampled``, ``frechet_infinity``, ``frechet_to_reconstructions``, ``kernel``, ``precision``,
  ``recall``, ``density``, ``coverage``, ``class_accuracy``;
- ``sampling``: ``steps``, ``flops`` a sample, ``latency_1`` and ``latency_16`` in seconds, ``per_second_1``,
  ``per_second_16``, ``peak_memory`` in bytes, ``threads``; measured last, when no other cell runs;
- ``samples``: ``file``, ``picture``, ``kind``, ``label``.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from next_scale import provenance
from next_scale.errors import UserError

RESULTS, PLAN = "results.jsonl", "plan.yaml"


def append_record(folder: Path, record: dict) -> None:
    """Add one line, whole or not at all; several processes may.

    Raises:
        UserError: a full disk, or anything else that stops it.
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    path = folder / RESULTS
    try:
        with open(path, "ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = file.seek(0, os.SEEK_END)
            try:
                if before and os.pread(file.fileno(), 1, before - 1) != b"\n":  # after a line that a kill cut off
                    line = b"\n" + line
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free space and run it again") from error


def read_records(folder: Path) -> dict[str, dict]:
    """The last record of each cell and tokenizer, by id; a line that a kill left unfinished is passed over."""
    found: dict[str, dict] = {}
    path = folder / RESULTS
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            record = json.loads(line)
            found[record["id"]] = record
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def origin(device: str) -> dict:
    """Versions, git revision, machine and time."""
    return {
        **provenance.origin(),
        "device": device,
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
