"""The index of a set of shards: what its tokens are, where they come from, and every shard with its checksum."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from next_scale.condition import ConditionSpec, validate_spec
from next_scale.errors import UserError
from next_scale.schedule import Schedule

INDEX = "index.json"
FORMAT, VERSION = "next-scale shards", 1
MOST_INDEX = 1 << 25  # bytes of an index that is read
MOST_HEADER = 1 << 16  # bytes of a shard beside its tensors
MOST_SHARD = 1 << 33  # bytes of one shard
FILE = re.compile(r"[0-9]{6,12}-[0-9a-f]{16}\.safetensors")  # no path can look so
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[\w.+-]{1,100}")


@dataclass(frozen=True)
class Shard:
    """One file: its name, which ends in the beginning of its checksum, samples in it, bytes, SHA-256."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """What an index says. All but `shards`, `versions` and `git` decides what the shards hold, bit for bit.

    Attributes:
        split: "train", "validation" or "test".
        samples: N, of all shards.
        shard_samples: of every shard but the last, which has the rest.
        schedule: of every sample's pyramid.
        codebook_size: V.
        fingerprint: of the tokenizer that made the tokens, see :func:`next_scale.model.fingerprint`.
        condition: field -> values.
        latent: (C, *grid) of the latents that are kept beside the tokens; None where none are.
        data, manifest: name of the data, and a hash of what was in it and how it was read, where known.
        passes: how often the data were tokenized, which counts where samples are random crops.
        seed: of what is random in the samples.
        batch_size: samples that were computed at once, for rounding depends on it.
        shards: in order.
        versions: package -> version. git: revision of the code, where known.

    Shape notation: N samples, V codes, C latent channels.
    """

    split: str
    samples: int
    shard_samples: int
    schedule: Schedule
    codebook_size: int
    fingerprint: str
    condition: ConditionSpec
    latent: tuple[int, ...] | None = None
    data: str | None = None
    manifest: str | None = None
    passes: int = 1
    seed: int = 0
    batch_size: int = 64
    shards: tuple[Shard, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    git: str | None = None

    @property
    def plan(self) -> ShardIndex:
        """The same without shards and without what made them."""
        return replace(self, shards=(), versions={}, git=None)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token: 2, or 4 where the codebook is too large for that."""
        return 2 if self.codebook_size <= 1 << 16 else 4

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample in a shard."""
        latent = 2 * prod(self.latent) if self.latent else 0
        return self.schedule.length * self.token_bytes + 4 * len(self.condition) + latent

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of every shard that the set has when it is whole."""
        full, rest = divmod(self.samples, self.shard_samples)
        return [self.shard_samples] * full + [rest] * (rest > 0)

    def to_json(self) -> str:
        """The text of ``index.json``; :func:`parse_index` reads it."""
        values = {"format": FORMAT, "version": VERSION, **vars(self)}
        values["schedule"] = self.schedule.to_config()
        values["latent"] = None if self.latent is None else list(self.latent)
        del values["shards"]
        lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
        shards = ",".join("\n  " + json.dumps(vars(shard)) for shard in self.shards)
        return "{\n" + ",\n".join([*lines, f' "shards": [{shards}\n ]']) + "\n}\n"


def parse_index(text: bytes, source: str, planned: bool = False) -> ShardIndex:
    """Read and check an index that anybody may have written. Nothing of the size that it claims is allocated.

    Args:
        source: where it is from, for the message.
        planned: it is a plan, which lists no shards.

    Raises:
        UserError: not an index, of another version, or one whose names, sizes or checksums make no sense.
    """
    if len(text) > MOST_INDEX:
        raise UserError(f"{source} has {len(text):,} bytes, more than any index: it is not one of a set of shards")
    try:
        values = json.loads(text)
        known = values.get("format") == FORMAT
    except (AttributeError, ValueError, RecursionError):
        known = False
    if not known:
        raise UserError(f"{source} is not the index of a set of shards; tokenize-dataset writes one")
    if values.get("version") != VERSION:
        raise UserError(f"{source} has version {values.get('version')!r}; this program reads version {VERSION}")
    try:
        return _checked(values, planned)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, UserError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0][:200]
        raise UserError(
            f"{source} makes no sense ({reason}): copy it again, or delete the folder and tokenize the data again"
        ) from error


def _checked(values: dict, planned: bool) -> ShardIndex:
    """The index; any of the errors that `parse_index` catches where it cannot be."""
    latent = values["latent"]
    index = ShardIndex(
        split=_text(values["split"], "split"),
        samples=_count(values["samples"], "samples", 1 << 48),
        shard_samples=_count(values["shard_samples"], "shard_samples", 1 << 32),
        schedule=_schedule(values["schedule"]),
        codebook_size=_count(values["codebook_size"], "codebook_size", 1 << 31),
        fingerprint=_text(values["fingerprint"], "fingerprint"),
        condition=_condition(values["condition"]),
        latent=None if latent is None else tuple(_count(size, "latent", 1 << 24) for size in latent),
        data=_text(values["data"], "data", None) if values["data"] is not None else None,
        manifest=_text(values["manifest"], "manifest") if values["manifest"] is not None else None,
        passes=_count(values["passes"], "passes", 1 << 32),
        seed=_count(values["seed"], "seed", 1 << 64, 0),
        batch_size=_count(values["batch_size"], "batch_size", 1 << 32),
        versions={str(name): str(version) for name, version in values["versions"].items()},
        git=_text(values["git"], "git") if values["git"] is not None else None,
    )
    if index.latent is not None and not 2 <= len(index.latent) <= 4:
        raise ValueError(f"latents of shape {list(index.latent)}")
    if index.shard_samples * index.sample_bytes > MOST_SHARD and index.samples * index.sample_bytes > MOST_SHARD:
        raise ValueError(f"shards of {index.shard_samples * index.sample_bytes:,} bytes")
    if planned:
        return index
    count = -(-index.samples // index.shard_samples)
    if not isinstance(values["shards"], list) or len(values["shards"]) != count:  # before a list of so many is made
        raise ValueError(f"{index.samples} samples are {count} shards of {index.shard_samples}, but it lists others")
    shards = tuple(_shard(entry, size, index) for entry, size in zip(values["shards"], index.shard_sizes, strict=True))
    return replace(index, shards=shards)


def _shard(entry: dict, samples: int, index: ShardIndex) -> Shard:
    file, digest = entry["file"], entry["sha256"]
    if not isinstance(file, str) or not FILE.fullmatch(file):
        raise ValueError(f"{str(file)[:100]!r} is not the name of a shard")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or digest[:16] != file[-28:-12]:
        raise ValueError(f"{file} has a checksum that is not the one in its name")
    if entry["samples"] != samples:
        raise ValueError(f"{file} holds {samples} samples, not {str(entry['samples'])[:20]}")
    size, least = _count(entry["bytes"], "bytes", MOST_SHARD + MOST_HEADER), samples * index.sample_bytes
    if not least <= size <= least + MOST_HEADER:
        raise ValueError(f"{file} would have {size:,} bytes for {samples} samples of {index.sample_bytes}")
    return Shard(file, samples, size, digest)


def _count(value: object, name: str, most: int, least: int = 1) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]}")
    return value


def _text(value: object, name: str, pattern: re.Pattern | None = _WORD) -> str:
    if not isinstance(value, str) or len(value) > 1000 or (pattern and not pattern.fullmatch(value)):
        raise ValueError(f"{name} is {str(value)[:40]!r}")
    return value


def _schedule(config: Sequence[Sequence[int]]) -> Schedule:
    if not isinstance(config, list) or len(config) > 1000:
        raise ValueError("its schedule is no list of sizes")
    for size in config:
        for side in size:
            _count(side, "schedule", 1 << 20)
    schedule = Schedule.from_config(config)
    if schedule.length > 1 << 24:
        raise ValueError(f"samples of {schedule.length:,} tokens")
    return schedule


def _condition(spec: dict) -> ConditionSpec:
    if not isinstance(spec, dict) or not all(isinstance(values, list) for values in spec.values()):
        raise ValueError("its conditions are no lists of values")
    return validate_spec(spec)
