"""Training with weights, gradients and optimizer states split over all processes (FSDP2, arXiv 2304.11277).

Only what a process works on at the moment, a block of the transformer, is gathered there. Checkpoints are those of any
other training: one file with whole tensors, which any number of processes, sharded or not, can go on with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from next_scale.transformer import Transformer

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with all processes in one group; also on CPUs, over gloo.

    Args:
        process_group_backend: by default nccl on GPUs and gloo on CPUs.
        timeout_minutes: how long a process waits for the others.
    """

    def __init__(self, process_group_backend: str | None = None, timeout_minutes: int = 30):
        super().__init__(1, 1, False, process_group_backend, timedelta(minutes=timeout_minutes))

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As torch's optimizers give it, with whole tensors; empty in all processes but the first."""
        state = get_optimizer_state_dict(self.model, getattr(optimizer, "_optimizer", optimizer), options=_WHOLE)
        if self.global_rank != 0:
            return {}
        names = [name for group in state["param_groups"] for name in group["params"]]
        return _renamed(state, {name: i for i, name in enumerate(names)})

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Give model and optimizers their parts of a checkpoint; returns all of it."""
        checkpoint = torch.load(checkpoint_path, mmap=True, map_location="cpu", weights_only=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=StateDictOptions(full_state_dict=True))
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=True):
            own = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            saved = [index for group in state["param_groups"] for index in group["params"]]
            state = _renamed(state, dict(zip(saved, own, strict=True)))
            set_optimizer_state_dict(self.model, optimizer, state, options=StateDictOptions(full_state_dict=True))
        return checkpoint


def _renamed(state: Mapping[str, Any], names: Mapping) -> dict[str, Any]:
    """An optimizer's state whose parameters are called otherwise."""
    groups = [{**group, "params": [names[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[name]: values for name, values in state["state"].items()}, "param_groups": groups}


def units(predictor: nn.Module) -> list[nn.Module]:
    """What is gathered in one go: a block, or what the condition does to one. All else is gathered together."""
    found = [module for module in predictor.modules() if isinstance(module, Transformer)]
    return [unit for transformer in found for unit in (*transformer.blocks, *transformer.modulation)]


def shard(predictor: nn.Module, mesh: DeviceMesh) -> None:
    """Split a predictor's weights, equal in all processes, over them; :func:`units` are gathered one by one."""
    for unit in units(predictor):
        fully_shard(unit, mesh=mesh)
    fully_shard(predictor, mesh=mesh, reshard_after_forward=True)
    for method in ("loss", "log_prob"):
        register_fsdp_forward_method(predictor, method)
    if mesh.device_type == "cpu":  # gloo does not take means
        for part in _sharded(predictor):
            part.set_force_sum_reduction_for_comms(True)


def _sharded(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Every process has all weights meanwhile, for work that they do not do in step; all must enter and leave."""
    parts = _sharded(module)
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict with whole tensors; where weights are sharded all processes must call this."""
    state = model.state_dict()
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


class ShardedAveraging(WeightAveraging):
    """An average of weights that is sharded as they are, and on their device."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        mesh, pl_module._device_mesh = pl_module.device_mesh, None  # which cannot be copied
        try:
            self._average_model = AveragedModel(pl_module, use_buffers=self._use_buffers, **self._kwargs)
        finally:
            pl_module._device_mesh = mesh

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device_mesh is not None:
            shard(self._average_model.module.predictor, pl_module.device_mesh["data_parallel"])
        self._average_model.to(pl_module.device)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None and pl_module.device_mesh is not None:
            checkpoint["state_dict"] = get_model_state_dict(self._average_model.module, options=_WHOLE)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is None or pl_module.device_mesh is None or "averaging_state" not in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
            return
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self._average_model.module, checkpoint["state_dict"], options=whole)
        self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
        set_model_state_dict(pl_module, checkpoint["current_model_state"], options=whole)
