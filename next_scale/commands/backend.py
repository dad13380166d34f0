"""What the commands must be told about a backend: what a sample is, and how samples are read, shown and written."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # torch takes seconds to import: only what computes imports it
    from torch import Tensor

    from next_scale.commands.generate import Asked
    from next_scale.data import SampleDataModule
    from next_scale.model import Generator
    from next_scale.sampling import SamplingOptions
    from next_scale.schedule import Schedule
    from next_scale.tokenizer import Tokenizer

Advance = Callable[[float], None]
"""Is told the share of the work, of 1, that has just been done."""


class Source(NamedTuple):
    """What was read from a file: a sample (C, ...) float32, and JSON values to remember about the file."""

    sample: Tensor
    details: dict


@dataclass(frozen=True)
class Encoded:
    """A sample as token pyramids, one or several.

    Attributes:
        tokens: (P, L) int64.
        schedule: of every pyramid.
        details: JSON values that decoding needs.

    Shape notation: P pyramids, L tokens each.
    """

    tokens: Tensor
    schedule: Schedule
    details: dict = field(default_factory=dict)


class Vectors(NamedTuple):
    """Values of a condition that is a vector: what each is called in file names, and all of them (N, S) float32.

    Of prompts their code points, int32.
    """

    names: list[str]
    values: Tensor


class Tile(NamedTuple):
    """A generated sample on a sheet: its file's name, what it was made of, and the sample (C, ...)."""

    name: str
    condition: str
    sample: Tensor


class Pair(NamedTuple):
    """A sample on a sheet beside its reconstruction, both (C, ...)."""

    name: str
    original: Tensor
    again: Tensor


class Backend(ABC):
    """The description of a backend. A sample is a tensor (C, ...) on the CPU, as the autoencoder sees it, unbatched.

    Options of the backend's own are added by `add_read_options` and `add_generate_options`, and reach the methods that
    need them as the parsed arguments `args`.

    Attributes:
        program: name of the command line program.
        sample, samples, a_sample: what a sample is called: alone, several, and with its article.
        content, a_file: what files hold, and what such a file is called, with its article.
        autoencoder: what the autoencoder is called.
        folder: default folder of generated samples.
        fields: condition -> help, for the conditions that have an option of their own.
        formats: names of the formats that can be written, which are their suffixes too; the first is the default.
        typical: suffixes of files that can be read, for people; :meth:`suffixes` has all.
        sheet, sheet_option, sheet_help: what a picture of many samples shows, the option for one, and its help.
        sheet_file: its name within the folder of generated samples where the option names none; None where it must.
        batched: whether a file may be several pyramids, to be computed at once.

    Shape notation: C channels, P pyramids, L tokens each.
    """

    program: str
    sample: str
    samples: str
    a_sample: str
    content: str
    a_file: str
    autoencoder: str
    folder: str
    fields: dict[str, str]
    formats: tuple[str, ...]
    typical: tuple[str, ...]
    sheet: str
    sheet_option: str
    sheet_help: str
    sheet_file: str | None = None
    batched: bool = False

    # Models

    @abstractmethod
    def checkpoint_path(self, given: str | None) -> str:
        """The checkpoint that was given, or the shipped one. Raises UserError where neither is there."""

    @abstractmethod
    def prompted_checkpoint(self) -> str:
        """The shipped model that reads prompts. Raises UserError where it is not there."""

    @abstractmethod
    def open_model(self, given: str | None, device: str) -> Tokenizer | Generator:
        """Load that checkpoint. Raises UserError where it cannot, or where it is for another program."""

    @abstractmethod
    def schedule_of(self, tokenizer: Tokenizer) -> Schedule:
        """The scales of one sample, of the size that the model makes where it is free to choose."""

    # Files

    @abstractmethod
    def suffixes(self) -> Collection[str]:
        """Suffixes, with their dots, of the files that are looked for in a folder."""

    @abstractmethod
    def add_read_options(self, parser: argparse.ArgumentParser) -> None:
        """Add what `check` and `read` may be asked for."""

    @abstractmethod
    def add_generate_options(self, parser: argparse.ArgumentParser) -> None:
        """Add what `vectors`, `grid` and `finish` may be asked for."""

    def vectors(self, model: Generator, args: argparse.Namespace) -> dict[str, Vectors]:
        """Values asked for of the model's conditions that are vectors: field -> values; fields left out are left out.

        What it takes from ``args.condition`` it removes there.

        Raises:
            UserError: the model has no such condition, or a value cannot be had.
        """
        return {}

    def grid(self, tokenizer: Tokenizer, args: argparse.Namespace) -> tuple[int, ...] | None:
        """Size of the full grid that was asked for; None for the model's own.

        Raises:
            UserError: the model cannot make it.
        """
        return None

    def in_pieces(
        self, model: Generator, args: argparse.Namespace
    ) -> Callable[[Asked, SamplingOptions, Path | None], None] | None:
        """What makes the samples asked for piece by piece, draws a sheet of them, and says where all is.

        None where they are made whole, as they are of the model's own size.

        Raises:
            UserError: what is asked for cannot be.
        """
        return None

    def finish(self, sample: Tensor, tokenizer: Tokenizer, args: argparse.Namespace) -> Tensor:
        """A generated sample as it shall be written and drawn."""
        return sample

    @abstractmethod
    def check(self, path: Path, args: argparse.Namespace) -> None:
        """Raise UserError where a file cannot be read, as far as its header tells."""

    @abstractmethod
    def read(self, path: Path, tokenizer: Tokenizer, args: argparse.Namespace) -> Source:
        """Read a file as the tokenizer takes it. Raises UserError where it cannot."""

    @abstractmethod
    def check_name(self, path: Path) -> None:
        """Raise UserError where no sample can be written under this name."""

    @abstractmethod
    def write(self, path: Path, sample: Tensor, tokenizer: Tokenizer) -> None:
        """Write a sample, in the format that the suffix names. Raises UserError where it cannot."""

    # Data sets

    @abstractmethod
    def add_data_options(self, parser: argparse.ArgumentParser) -> None:
        """Add what `data` may be asked for."""

    @abstractmethod
    def data(self, data: str, tokenizer: Tokenizer, args: argparse.Namespace) -> SampleDataModule:
        """A data set, by its name or folder, in samples that the tokenizer takes.

        Raises:
            UserError: there is none, or it has other samples.
        """

    # Sheets

    @abstractmethod
    def check_sheet(self, path: Path) -> None:
        """Raise UserError where no sheet can be drawn under this name."""

    @abstractmethod
    def most_tiles(self, sample: Tensor) -> int:
        """How many samples such as this one fit on a sheet."""

    @abstractmethod
    def draw(self, path: Path, tiles: Sequence[Tile], columns: int, tokenizer: Tokenizer) -> None:
        """Draw generated samples, `columns` of each condition."""

    @abstractmethod
    def draw_pairs(self, path: Path, pairs: Sequence[Pair], tokenizer: Tokenizer) -> None:
        """Draw samples beside their reconstructions."""

    # Tokens

    @abstractmethod
    def encode(self, tokenizer: Tokenizer, source: Source, batch_size: int, advance: Advance) -> Encoded:
        """Tokens of what was read."""

    @abstractmethod
    def decode(
        self, tokenizer: Tokenizer, encoded: Encoded, scales: int | None, batch_size: int, advance: Advance
    ) -> Tensor:
        """The sample (C, ...) of these tokens, from the first `scales` scales only where given."""

    @abstractmethod
    def fits(self, encoded: Encoded, tokenizer: Tokenizer) -> bool:
        """Whether tokens and details, which a stranger may have written, are such as `encode` gives."""

    # Words

    @abstractmethod
    def size_text(self, sample: Tensor, tokenizer: Tokenizer) -> str:
        """Size of a generated sample, for people."""

    @abstractmethod
    def rate_text(self, details: dict, bits: int, tokenizer: Tokenizer) -> str:
        """Size of what has been encoded, and what its tokens take, for people."""

    def compare_text(self, original: Tensor, again: Tensor) -> str:
        """How close a reconstruction came, for people; empty where that is not measured."""
        return ""

    @abstractmethod
    def facts(self, tokenizer: Tokenizer, schedule: Schedule) -> dict:
        """What `info` tells of the autoencoder and of a sample, as JSON values."""

    @abstractmethod
    def lines(self, facts: dict) -> list[tuple[str, str]]:
        """The same for people: names and texts of lines."""

    @abstractmethod
    def rate_line(self, facts: dict) -> str:
        """Bit rate in the unit of this backend, for people."""
