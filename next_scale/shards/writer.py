"""Writing a set of shards: in any number of processes, in any order, with interruptions, and always the same bytes.

A shard is the unit of work. Its samples are computed in batches that begin with it, and what is random in a sample
depends on the seed, the pass and the sample alone, so that no bit depends on who makes which shard, or when.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from next_scale.condition import ConditionSpec
from next_scale.errors import UserError
from next_scale.exact import drawn
from next_scale.files import PARTIAL, write_whole
from next_scale.model import fingerprint
from next_scale.provenance import origin
from next_scale.schedule import Schedule
from next_scale.shards.index import INDEX, Shard, ShardIndex, parse_index
from next_scale.shards.shard import (
    CONDITION,
    LATENT,
    TOKENS,
    check_size,
    expected,
    shard_files,
    whole_shards,
    write_shard,
)
from next_scale.tokenizer import Tokenizer

PLAN = ".plan.json"  # the index that is being worked towards; gone when that is there
SHARD_SAMPLES = 4096


def plan_shards(
    dataset: Dataset,
    condition_spec: ConditionSpec,
    tokenizer: Tokenizer,
    split: str,
    *,
    name: str | None = None,
    passes: int = 1,
    latents: bool = False,
    shard_samples: int = SHARD_SAMPLES,
    batch_size: int = 64,
    seed: int = 0,
) -> ShardIndex:
    """All that decides what the shards of a data set hold; its first sample is encoded to know their shapes.

    Args:
        dataset: of items ``{"sample": (...), "condition": {field: int}}``, all of one shape. It may have a
            ``manifest_sha256``, a hash of what is in it and how it is read.
        passes: times that it is tokenized, which counts where samples are random crops.
        latents: keep also the latents before quantization, as float16, for predictors of latents.
        shard_samples: of every shard. batch_size: computed at once.

    Raises:
        UserError: the data set is empty, or the tokenizer does not take its samples.
    """
    if not len(dataset):
        raise UserError("there is nothing to tokenize: the data set is empty")
    sample = drawn(dataset, 0, (seed, 0))["sample"][None].to(tokenizer.device)
    try:
        with torch.no_grad():
            latent = tokenizer.autoencoder.encode(sample)
        schedule = tokenizer.quantizer.schedule
        if not isinstance(schedule, Schedule):
            schedule = schedule.at(latent.shape[2:])
        length = tokenizer.quantizer.encode(latent).shape[1]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the tokenizer does not take samples of shape {tuple(sample.shape[1:])}: {error}") from error
    if length != schedule.length:
        raise UserError(f"samples of shape {tuple(sample.shape[1:])} give {length} tokens, not {schedule.length}")
    return ShardIndex(
        split=split,
        samples=passes * len(dataset),
        shard_samples=shard_samples,
        schedule=schedule,
        codebook_size=tokenizer.quantizer.codebook_size,
        fingerprint=fingerprint(tokenizer),
        condition={field: list(values) for field, values in condition_spec.items()},
        latent=tuple(latent.shape[1:]) if latents else None,
        data=name,
        manifest=getattr(dataset, "manifest_sha256", None),
        passes=passes,
        seed=seed,
        batch_size=batch_size,
    )


class ShardWriter:
    """The shards of one split while they are made.

    Args:
        folder: of the split.
        plan: of :func:`plan_shards`.
        dataset: what the plan was made for.
    """

    def __init__(self, folder: str | Path, plan: ShardIndex, dataset: Dataset):
        self.folder, self.plan, self.dataset = Path(folder), plan, dataset
        self.made: dict[int, Shard] = {}

    def begin(self) -> list[int]:
        """Create the folder, or look at what an interrupted run left there; one process does it.

        Returns:
            Numbers of the shards to make: those that are missing or not whole. What is damaged is removed.

        Raises:
            UserError: the folder holds other shards than these, or cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write the tokens to {self.folder}: {error.strerror or error}") from error
        for name in (INDEX, PLAN):
            if (self.folder / name).is_file():
                self._compare(name)
        begun = any((self.folder / name).is_file() for name in (INDEX, PLAN))
        if not begun and (files := shard_files(self.folder)):
            raise UserError(f"{self.folder} holds {files[0].name}, but nothing says of what: name another folder")
        if not (self.folder / INDEX).is_file():
            write_whole(self.folder / PLAN, self.plan.to_json().encode())
        sizes, whole = self.plan.shard_sizes, whole_shards(self.folder)
        self.made = {number: replace(whole[number], samples=sizes[number]) for number in whole if number < len(sizes)}
        kept = {shard.file for shard in self.made.values()}
        for path in (*shard_files(self.folder), *self.folder.glob(PARTIAL)):
            if path.name not in kept:
                path.unlink(missing_ok=True)
        return [number for number in range(len(sizes)) if number not in self.made]

    def _compare(self, name: str) -> None:
        """Raise UserError where an index or plan that is there is for other shards."""
        path = self.folder / name
        try:
            text = path.read_bytes()
            found = parse_index(text, str(path), planned=name == PLAN).plan
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        for field, wanted in vars(self.plan).items():
            if (value := getattr(found, field)) != wanted:
                told = (str(value)[:60], str(wanted)[:60]) if field != "condition" else ("others", "these")
                raise UserError(
                    f"{self.folder} holds shards of another tokenization ({field}: {told[0]} there, {told[1]} asked "
                    "for): name another folder, or delete it"
                )

    def batches(self, number: int) -> list[range]:
        """The samples of a shard, in batches, as numbers among all samples of all passes."""
        start = number * self.plan.shard_samples
        end = start + self.plan.shard_sizes[number]
        return [range(i, min(i + self.plan.batch_size, end)) for i in range(start, end, self.plan.batch_size)]

    def read(self, samples: Iterable[int]) -> dict:
        """Read these samples: ``{"sample": (B, ...), "condition": {field: (B,)}}``."""
        size, seed = len(self.dataset), self.plan.seed
        return default_collate([drawn(self.dataset, i % size, (seed, i // size)) for i in samples])

    def write(self, number: int, parts: Sequence[dict[str, np.ndarray]]) -> None:
        """Write a shard of the arrays of its batches, see :func:`encode`.

        Raises:
            UserError: samples of different shapes, or the shard cannot be written.
        """
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        wanted = expected(self.plan, self.plan.shard_sizes[number])
        for name, (dtype, shape) in wanted.items():
            if arrays[name].shape != shape:
                raise UserError(f"shard {number} has {name} of shape {arrays[name].shape} instead of {shape}")
            arrays[name] = arrays[name].astype(dtype)
        self.made[number] = write_shard(self.folder, number, {name: arrays[name] for name in wanted})

    def finish(self) -> ShardIndex:
        """Write the index, once all shards are there; one process does it, which knows of all of them.

        Raises:
            UserError: shards are missing, or the index cannot be written.
        """
        sizes = self.plan.shard_sizes
        if missing := [number for number in range(len(sizes)) if number not in self.made]:
            raise UserError(f"{len(missing)} shards are missing in {self.folder}, the first is {missing[0]}: run again")
        shards = tuple(self.made[number] for number in range(len(sizes)))
        for shard in shards:
            check_size(self.folder / shard.file, shard)
        made = origin()
        index = replace(self.plan, shards=shards, versions=made["versions"], git=made["git"])
        if not (self.folder / INDEX).is_file() or self._others(shards):
            write_whole(self.folder / INDEX, index.to_json().encode())
        (self.folder / PLAN).unlink(missing_ok=True)
        return index

    def _others(self, shards: tuple[Shard, ...]) -> bool:
        """Whether the index that is there lists other shards than these."""
        return parse_index((self.folder / INDEX).read_bytes(), str(self.folder / INDEX)).shards != shards


@torch.no_grad()
def encode(tokenizer: Tokenizer, batch: dict, plan: ShardIndex) -> dict[str, np.ndarray]:
    """What a shard keeps of a batch ``{"sample": (B, ...), "condition": {field: (B,)}}`` on the tokenizer's device."""
    latent = tokenizer.autoencoder.encode(batch["sample"])
    tokens: Tensor = tokenizer.quantizer.encode(latent)
    columns = [batch["condition"][field].cpu().numpy() for field in plan.condition]
    condition = np.stack(columns, 1) if columns else np.zeros((len(tokens), 0))
    arrays = {TOKENS: tokens.cpu().numpy(), CONDITION: condition}
    return arrays | ({LATENT: latent.float().cpu().numpy()} if plan.latent is not None else {})


def write_shards(folder: str | Path, dataset: Dataset, tokenizer: Tokenizer, plan: ShardIndex) -> Iterator[int]:
    """Make a whole set in this process, or go on with it; yields the number of samples after each batch.

    Raises:
        UserError: the folder holds other shards, or cannot be written.
    """
    writer = ShardWriter(folder, plan, dataset)
    missing = writer.begin()
    yield plan.samples - sum(plan.shard_sizes[number] for number in missing)
    for number in missing:
        parts = []
        for samples in writer.batches(number):
            batch = writer.read(samples)
            parts.append(encode(tokenizer, batch | {"sample": batch["sample"].to(tokenizer.device)}, plan))
            yield len(samples)
        writer.write(number, parts)
    writer.finish()
