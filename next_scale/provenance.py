"""Where a checkpoint or a result comes from: versions, git revision, recipe, data and seed. Never the time of day.

So identical trainings write identical files. Checkpoints of a training and what it exports keep it under the key
``provenance``, which loading ignores.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it takes seconds to import, and `info` needs none of it
    from lightning import Trainer

KEY = "provenance"
_PACKAGES = ("next-scale", "torch", "lightning", "numpy")
# of a recipe, what says where files are read and written but not what is learned; a resumed training ends the same
_PLACES = (
    "config", "ckpt_path", "weights_only", "trainer.logger", "trainer.default_root_dir", "trainer.enable_progress_bar",
    "export.folder", "checkpoint.dirpath", "preview",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what comes out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def revision() -> str | None:
    """Git revision of this code, with a plus where files were changed; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if git("ls-files", Path(__file__).name) == "":  # installed into somebody else's checkout
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def origin() -> dict[str, Any]:
    """Versions and git revision of what runs now."""
    return {"versions": versions(), "git": revision()}


def listing_hash(folder: str | os.PathLike) -> str:
    """SHA-256 of the names and sizes of a folder's files, and of the contents of its ``manifest.json``, if it has one.

    Of a single file, of its name and size. Hidden files do not count.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    digest = hashlib.sha256()
    for path in paths:
        name = path.relative_to(folder).as_posix() if path != folder else path.name
        if not any(part.startswith(".") for part in name.split("/")):
            digest.update(f"{name}\0{path.stat().st_size}\n".encode())
    if (folder / "manifest.json").is_file():
        digest.update((folder / "manifest.json").read_bytes())
    return digest.hexdigest()


def recipe_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as it was run, without the places of files."""
    recipe = json.loads(json.dumps(config))
    for place in _PLACES:
        *outer, last = place.split(".")
        part = recipe
        for name in outer:
            part = part.get(name) or {}
        part.pop(last, None)
    return recipe


def training_provenance(trainer: Trainer, recipe: dict[str, Any] | None = None) -> dict[str, Any]:
    """``versions``, ``git``, ``seed``, ``data`` and ``recipe`` of a training.

    What is not known is None: the data of bare loaders, the recipe of a trainer that no command has made.

    Args:
        recipe: as :func:`recipe_of` gives it.
    """
    seed = (recipe or {}).get("seed_everything", os.environ.get("PL_GLOBAL_SEED"))
    tell = getattr(trainer.datamodule, KEY, None)
    return {
        **origin(),
        "seed": None if seed is None else int(seed),
        "data": None if tell is None else tell(),
        "recipe": recipe,
    }
