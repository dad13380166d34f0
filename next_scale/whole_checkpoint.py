"""Checkpoints of trainings that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol

from next_scale.errors import UserError


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, under a hidden name, and moves it there once the disk has all of it.

    Lightning's own writes into the system's temporary folder and moves from there, which is a copy where that folder is
    on another disk: a power cut, or a full disk, leaves half of a checkpoint in the place of a whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a local file; what is elsewhere is left to Lightning.

        Raises:
            UserError: a full disk, or anything else that stops it; what was there stays.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        part = target.with_name(f".{target.name}.part")  # always the same, so that a kill leaves one at most
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(part, target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides what stopped it
            if not isinstance(cause, OSError):
                raise
            raise UserError(
                f"cannot write the checkpoint {target}: {cause.strerror or cause}; free space, then go on from the "
                "last one"
            ) from error


def keep_whole(trainer: L.Trainer) -> None:
    """Let a trainer write its checkpoints so, unless it was given another way."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


def is_whole(path: str | Path) -> bool:
    """Whether a file is a checkpoint as ``torch.save`` writes them, with all of its checksums right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, ValueError):
        return False


def newest_whole(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a folder, those called ``last`` before all others."""
    found = [path for path in Path(folder).glob("*.ckpt") if path.is_file()]
    found.sort(key=lambda path: (path.name.startswith("last"), path.stat().st_mtime), reverse=True)
    return next(filter(is_whole, found), None)


def resumable(path: str | None, folder: str | None) -> str | None:
    """What to go on from where ``--ckpt_path`` is `path` and checkpoints are kept in `folder`.

    ``last`` is the newest whole checkpoint in the folder. Where nothing is there it stays ``last``: Lightning then
    starts from the beginning.

    Raises:
        UserError: `path` is no whole checkpoint; the message names one that is. Or none of those in the folder is.
    """
    if path is None or path in ("best", "hpc") or path.startswith("registry") or Path(path).is_dir():
        return path
    if path == "last":
        if folder is None or not any(Path(folder).glob("*.ckpt")):
            return path
        if (whole := newest_whole(folder)) is None:
            raise UserError(f"no checkpoint in {folder} is whole: leave out --ckpt_path, to start from the beginning")
        return str(whole)
    if not is_whole(path):
        there = Path(path).exists()
        cause = "is not a whole checkpoint of a training" if there else "does not exist"
        other = newest_whole(Path(path).parent) if Path(path).parent.is_dir() else None
        raise UserError(f"--ckpt_path {path} {cause}; give a .ckpt file such as {other or 'checkpoints/last.ckpt'}")
    return path
