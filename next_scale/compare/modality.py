"""What a comparison must be told about a modality; packages bring theirs as entry points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from next_scale.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import, and a command's help asks for names only
    from torch import Tensor, nn

    from next_scale.commands.backend import Backend
    from next_scale.data import SampleDataModule

GROUP = "next_scale.modalities"
"""Group of entry points in which a package names a modality that it brings: ``name = "package.module:Class"``."""


class Modality(ABC):
    """A kind of samples, with the autoencoders that make latents of one and of two dimensions of them.

    Attributes:
        name: in plans and results.
        features_name: of the network behind :meth:`features`, for people.
        seconds: that a sample lasts; None where it does not.
        dims: numbers that a sample has.

    Shape notation: N samples, E features.
    """

    name: ClassVar[str]
    features_name: str
    seconds: float | None = None
    dims: int

    @abstractmethod
    def data(self, **options) -> SampleDataModule:
        """The data set. Raises UserError where it is not there."""

    @abstractmethod
    def autoencoder(self, dimension: str, **options) -> nn.Module:
        """A new autoencoder whose latent has one dimension, ``1d``, or two, ``2d``. Raises UserError for others."""

    @abstractmethod
    def objective(self, dimension: str, **options) -> nn.Module:
        """What it is trained with, see :class:`next_scale.training.TokenizerModule`."""

    @abstractmethod
    def features(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, E) and classes found (N,) int64 of samples (N, ...), by a fixed network."""

    @abstractmethod
    def distortion(self, samples: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        """Name -> distortion (N,) of each sample; the first is the one that profiles show. Lower is better."""

    @abstractmethod
    def write(self, folder: Path, names: Sequence[str], samples: Tensor) -> list[dict]:
        """Write samples (N, ...) for people.

        Returns:
            One entry a sample: ``file`` and ``picture``, names in the folder, and ``kind``, ``sound`` or ``picture``.
        """

    @classmethod
    def backend(cls) -> Backend:
        """How its samples are read from files and written, for commands. Raises UserError where they are not."""
        raise UserError(f"'{cls.name}' has no files that commands read or write")


def modality_names() -> list[str]:
    """Names of the modalities that installed packages bring."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def modality_packages() -> list[str]:
    """The packages that bring them."""
    return sorted({entry.value.partition(":")[0].partition(".")[0] for entry in entry_points(group=GROUP)})


def find_modality(name: str) -> Modality:
    """The modality of that name; errors as of :func:`modality_class`."""
    return modality_class(name)()


def modality_class(name: str) -> type[Modality]:
    """The class of the modality of that name.

    Raises:
        UserError: no installed package brings it, or what brings it does not import.
    """
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none: install this project, so that its entry points are known"
        raise UserError(f"no modality is called '{name}'; known: {known}")
    try:
        return entries[name].load()
    except ImportError as error:
        raise UserError(f"the modality '{name}' ({entries[name].value}) does not import: {error}") from error
