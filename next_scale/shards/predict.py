"""Making shards with Lightning's ``Trainer.predict``, on any number of processes and nodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta

import lightning as L
import numpy as np
import torch
import torch.distributed
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset

from next_scale.errors import UserError, first_line
from next_scale.quiet import quiet_lightning
from next_scale.shards.index import ShardIndex
from next_scale.shards.writer import ShardWriter, encode
from next_scale.tokenizer import Tokenizer

_PATIENCE = timedelta(days=1)  # that one process waits for the others: shards take as long as they take

Piece = tuple[int, int, range]
"""A batch of the work: writer, shard, samples."""


class _Batches(Dataset):
    """The batches of one process, each a piece of the work and what was read for it."""

    def __init__(self, writers: Sequence[ShardWriter], pieces: Sequence[Piece]):
        self.writers, self.pieces = writers, pieces

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> dict:
        writer, shard, samples = self.pieces[number]
        last = samples == self.writers[writer].batches(shard)[-1]
        return {"place": (writer, shard, last), **self.writers[writer].read(samples)}


class _Tokenizing(L.LightningModule):
    """Encodes batches, and writes a shard when its last batch has been encoded."""

    def __init__(
        self, tokenizer: Tokenizer, writers: Sequence[ShardWriter], missing: list[tuple[int, int]], workers: int
    ):
        super().__init__()
        self.tokenizer, self.writers, self.missing, self.workers = tokenizer, writers, missing, workers
        self.parts: list[dict[str, np.ndarray]] = []
        self.advance: Callable[[int], None] = lambda count: None

    def predict_dataloader(self) -> DataLoader:
        trainer = self.trainer
        missing = trainer.strategy.broadcast(self.missing)  # one process looked, before any wrote
        mine = missing[trainer.global_rank :: trainer.world_size]
        pieces = [(writer, shard, part) for writer, shard in mine for part in self.writers[writer].batches(shard)]
        options = {"num_workers": self.workers, "pin_memory": self.device.type == "cuda"}
        return DataLoader(_Batches(self.writers, pieces), batch_size=None, generator=torch.Generator(), **options)

    def predict_step(self, batch: dict, batch_idx: int) -> None:
        writer, shard, last = batch["place"]
        self.parts.append(encode(self.tokenizer, batch, self.writers[writer].plan))
        if last:
            self.writers[writer].write(shard, self.parts)
            self.parts = []
        self.advance(len(batch["sample"]) * self.trainer.world_size)


def predict_shards(
    writers: Sequence[ShardWriter],
    tokenizer: Tokenizer,
    *,
    devices: int | None = None,
    nodes: int | None = None,
    accelerator: str = "auto",
    workers: int = 0,
    advance: Callable[[int], None] | None = None,
) -> list[ShardIndex] | None:
    """Make all shards that are missing, and then the indices.

    With several devices Lightning starts a process for each, which runs the program anew up to here; under torchrun and
    SLURM they are there already, and tell how many there are. The shards are dealt to the processes one by one.

    Args:
        devices: a process each on this node; None: as many as were started, else all GPUs, else one.
        nodes: machines that take part; None: as many as were started.
        accelerator: of Lightning: "cpu", "gpu", "auto", ...
        workers: processes that read samples, for each.
        advance: is told about how many more samples are done.

    Returns:
        The indices of all writers, in the first process; None in the others.

    Raises:
        UserError: the folders hold other shards or cannot be written, or such devices do not work here.
    """
    quiet_lightning("predict returned None", ".*does not have many workers", ".*rank has zero length")
    devices, nodes = _started(devices, nodes, accelerator)
    missing: list[tuple[int, int]] = []
    if first_process():
        missing = [(i, number) for i, writer in enumerate(writers) for number in writer.begin()]
        if advance is not None:
            advance(sum(w.plan.samples for w in writers) - sum(writers[i].plan.shard_sizes[n] for i, n in missing))
    if missing or not _alone():
        module = _Tokenizing(tokenizer, writers, missing, workers)
        if first_process() and advance is not None:
            module.advance = advance
        try:
            trainer = L.Trainer(
                accelerator=accelerator,
                devices=devices,
                num_nodes=nodes,
                strategy=DDPStrategy(timeout=_PATIENCE) if nodes > 1 or devices > 1 else "auto",
                use_distributed_sampler=False,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        except (ValueError, RuntimeError, L.fabric.utilities.exceptions.MisconfigurationException) as error:
            raise UserError(f"these devices do not work here ({first_line(error)})") from error
        trainer.predict(module, return_predictions=False)
        _share(writers)
    return [writer.finish() for writer in writers] if first_process() else None


def first_process() -> bool:
    """Whether this is the process that decides, writes the indices and talks."""
    return (rank_zero_only.rank or 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def _alone() -> bool:
    """Whether no launcher has started other processes beside this one."""
    return not (TorchElasticEnvironment.detect() or SLURMEnvironment.detect() or "LOCAL_RANK" in os.environ)


def _started(devices: int | None, nodes: int | None, accelerator: str) -> tuple[int, int]:
    """Devices a node and nodes, as the launcher that started this process has them, or as there are."""
    if TorchElasticEnvironment.detect():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return devices or local, world // local if nodes is None else nodes
    if SLURMEnvironment.detect():
        count = int(os.environ.get("SLURM_NNODES", "1"))
        tasks = int(os.environ["SLURM_NTASKS"]) // count
        return devices or tasks, count if nodes is None else nodes
    gpus = torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0
    return devices or gpus or 1, nodes or 1


def _share(writers: Sequence[ShardWriter]) -> None:
    """Tell every process of the shards that the others made."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, [writer.made for writer in writers])
    for others in gathered:
        for writer, made in zip(writers, others, strict=True):
            writer.made |= made
