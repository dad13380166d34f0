"""Lightning trainers of a comparison: quiet, and resumed where they were cut off."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from next_scale.exact import RandomState
from next_scale.training import ExponentialAverage
from next_scale.whole_checkpoint import WholeCheckpointIO, is_whole

_KEPT_EVERY = 100  # steps


def trainer_for(
    folder: Path, steps: int, average: float, accelerator: str, callbacks: Sequence[L.Callback] = (),
    validations: int = 0, precision: str = "32-true",
) -> tuple[L.Trainer, str | None]:  # fmt: skip
    """A trainer, and the checkpoint to go on from, if there is one.

    Args:
        folder: keeps checkpoints while it trains.
        average: decay of the average of the weights.
        validations: how often to validate on the way.
        precision: as Lightning names it.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (".*does not have many workers.*", ".*LeafSpec.*", ".*eval mode.*", ".*exists and is not empty.*",
                    ".*not resumable.*", ".*deprecated in favor.*", ".*shuffling enabled.*"):  # fmt: skip
        warnings.filterwarnings("ignore", message)
    checkpoints = folder / "checkpoints"
    keep = ModelCheckpoint(
        dirpath=checkpoints, save_last=True, save_top_k=0, every_n_train_steps=_KEPT_EVERY, save_on_exception=True
    )
    trainer = L.Trainer(
        max_steps=steps,
        accelerator=accelerator,
        devices=1,
        gradient_clip_val=1.0,
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=max(1, steps // (validations or 1)),
        limit_val_batches=8 if validations else 0,
        plugins=[WholeCheckpointIO()],
        callbacks=[*callbacks, RandomState(), ExponentialAverage(average), keep],
    )
    last = checkpoints / "last.ckpt"
    return trainer, str(last) if is_whole(last) else None  # a damaged one is the only one: begin again
