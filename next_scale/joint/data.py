"""Sequences for training: token sets of several kinds, what is said of them, and pairs through values they share."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from next_scale.conditioning.captions import misspell
from next_scale.errors import UserError
from next_scale.exact import TrainingLoader
from next_scale.joint.parts import TEXT, parse_layout
from next_scale.shards.index import INDEX
from next_scale.shards.reader import TokenSet
from next_scale.tokens import TokenDataModule


@dataclass
class JointBatch:
    """B sequences of one layout.

    stream: its name in the recipe. layout: names of the parts. contents: B texts, or tokens (B, L) int64, of each part.
    """

    stream: str
    layout: tuple[str, ...]
    contents: list[list[str] | Tensor]

    @property
    def size(self) -> int:
        """B."""
        return len(self.contents[0])


class SpokenSet:
    """One split of a token set with its condition values and, where there are captions, what is said of each.

    Combinations that captions hold out are left out of "train" and "validation".
    """

    def __init__(self, tokens: TokenDataModule, split: str) -> None:
        folder = tokens.split_folder(split)
        if not (folder / INDEX).is_file():
            raise UserError(f"the set {tokens.source.name} has no {split} split: take a larger one")
        self.set, self.captions, self.split = TokenSet(folder), tokens.captions, split
        spec = tokens.source.condition_spec
        columns = self.set.batch(range(len(self.set)))["condition"]  # field -> (N,)
        every = zip(*(columns[name].tolist() for name in self.set.fields), strict=True)
        self.values = [
            {name: spec[name][i] for name, i in zip(self.set.fields, row, strict=True) if i >= 0} for row in every
        ]
        self.rows = list(range(len(self.values)))
        if self.captions is not None and self.captions.held_out and split != "test":
            self.rows = [row for row in self.rows if not self.captions.is_held_out(self.concepts(row))]
        if not self.rows:
            raise UserError(f"captions hold out all of the {split} split: lower held_out")

    def concepts(self, row: int) -> dict[str, str]:
        """What the captions say of a row: slot -> concept."""
        return self.captions.concepts(self.values[row])

    def tokens(self, rows: Sequence[int]) -> Tensor:
        """(B, L) int64."""
        return self.set.batch(rows)["tokens"]

    def say(self, row: int, generator: torch.Generator | None = None) -> str:
        """A caption of a row; the same for the same state of `generator`, PyTorch's global one by default."""
        text = self.captions.caption(self.concepts(row), generator=generator)
        if self.captions.typos and self.split == "train":
            text = misspell(text, self.captions.typos * float(torch.rand((), generator=generator)), generator)
        return text


class Stream:
    """Sequences of one layout, from one set or from pairs of sets.

    Samples of several sets belong together where all fields that they share have the same values. Text is said of the
    first set that has captions.

    Args:
        name: of the stream.
        layout: names of the parts; each but the text takes its samples from the set in its turn.
        sets: one a pyramid of the layout.

    Raises:
        UserError: the sets do not fit the layout, share no field, or have no captions for a text.
    """

    def __init__(self, name: str, layout: tuple[str, ...], sets: Sequence[SpokenSet]) -> None:
        self.name, self.layout, self.sets = name, layout, list(sets)
        pyramids = [part for part in layout if part != TEXT]
        if not sets or len(pyramids) not in (len(sets), 0):
            raise UserError(f"the stream '{name}' has {len(pyramids)} pyramids and names {len(sets)} sets")
        self.spoken = next((each for each in self.sets if each.captions is not None), None)
        if TEXT in layout and self.spoken is None:
            raise UserError(f"the stream '{name}' has text and no set with captions: set captions of one")
        self.shared = [set(each.set.fields) & set(self.sets[0].set.fields) for each in self.sets]
        self._partners: list[dict[tuple, list[int]]] = []
        for each, shared in zip(self.sets[1:], self.shared[1:], strict=True):
            if not shared:
                raise UserError(f"the stream '{name}' pairs sets that share no condition field")
            partners: dict[tuple, list[int]] = {}
            for row in each.rows:
                partners.setdefault(self._key(each, row, shared), []).append(row)
            self._partners.append(partners)
        self.rows = [
            row
            for row in self.sets[0].rows
            if all(
                self._key(self.sets[0], row, shared) in partners
                for shared, partners in zip(self.shared[1:], self._partners, strict=True)
            )
        ]
        if not self.rows:
            raise UserError(f"the stream '{name}' pairs sets without a value in common")

    @staticmethod
    def _key(each: SpokenSet, row: int, shared: set[str]) -> tuple:
        return tuple(each.values[row][field] for field in sorted(shared))

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> JointBatch:
        """Sequences of rows of the first set; partners and captions are drawn."""
        chosen = [list(rows)]
        for shared, partners in zip(self.shared[1:], self._partners, strict=True):
            found = [partners[self._key(self.sets[0], row, shared)] for row in rows]
            chosen.append([some[_below(len(some), generator)] for some in found])
        contents: list[list[str] | Tensor] = []
        sets = iter(zip(self.sets, chosen, strict=True))
        for part in self.layout:
            if part == TEXT:
                own = chosen[self.sets.index(self.spoken)]
                contents.append([self.spoken.say(row, generator) for row in own])
            else:
                each, own = next(sets)
                contents.append(each.tokens(own))
        return JointBatch(self.name, self.layout, contents)


def _below(count: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(count, (), generator=generator))


class _Batches(Dataset):
    """Whole batches as items, the streams in turn: item i is of stream i mod S.

    In training, samples are drawn with PyTorch's global generator, which each item has for itself (see
    :mod:`next_scale.exact`); elsewhere they are the same at every call.
    """

    def __init__(self, streams: Sequence[Stream], count: int, batch_size: int, train: bool) -> None:
        self.streams, self.count, self.batch_size, self.train = list(streams), count, batch_size, train

    def __len__(self) -> int:
        return self.count * len(self.streams)

    def __getitem__(self, index: int) -> JointBatch:
        stream = self.streams[index % len(self.streams)]
        generator = None if self.train else torch.Generator().manual_seed(index // len(self.streams))
        rows = torch.randint(len(stream.rows), (self.batch_size,), generator=generator)
        return stream.batch([stream.rows[row] for row in rows.tolist()], generator)


class JointDataModule(L.LightningDataModule):
    """Batches (:class:`JointBatch`) of the streams in turn, each of a single layout.

    Args:
        sets: name -> tokens of a data set, with captions where something is said of them.
        streams: layout, such as ``"text shape"`` -> names of sets, one a pyramid of the layout; of a layout of text
            alone the set that it is said of. A layout may end in ``/`` and a name, to have several streams of it.
        batch_size: B.
        batches: of each stream in an epoch.
        validation_batches: of each stream in a validation.
        seed: of the order of the batches and of all that is drawn.

    Raises:
        UserError: a stream names a set that is not there.
    """

    def __init__(
        self,
        sets: dict[str, TokenDataModule],
        streams: dict[str, str],
        batch_size: int = 16,
        batches: int = 500,
        validation_batches: int = 4,
        seed: int = 0,
    ):
        super().__init__()
        self.sets, self.batch_size, self.batches = sets, batch_size, batches
        self.validation_batches, self.seed = validation_batches, seed
        self._prepared = False
        self.streams = {name: names.split() for name, names in streams.items()}
        for name, names in self.streams.items():
            if missing := [each for each in names if each not in sets]:
                known = ", ".join(sets) or "none"
                raise UserError(f"the stream '{name}' names the set '{missing[0]}'; sets: {known}")

    @property
    def layouts(self) -> list[str]:
        """Orders of parts that the streams have."""
        return list(dict.fromkeys(" ".join(_layout(name)) for name in self.streams))

    def prepare_data(self) -> None:
        if not self._prepared:  # several trainings may have the same data
            for tokens in self.sets.values():
                tokens.prepare_data()
        self._prepared = True

    def setup(self, stage: str) -> None:
        for tokens in self.sets.values():
            tokens.setup(stage)

    def only(self, streams: Mapping[str, str], seed: int) -> JointDataModule:
        """The same sets in other streams and another order."""
        other = copy.copy(self)
        other.streams, other.seed = {name: names.split() for name, names in streams.items()}, seed
        return other

    def stream(self, name: str, split: str) -> Stream:
        """A stream of "train", "validation" or "test"."""
        sets = {each: SpokenSet(self.sets[each], split) for each in self.streams[name]}
        return Stream(name, _layout(name), [sets[each] for each in self.streams[name]])

    def train_dataloader(self) -> TrainingLoader:
        streams = [self.stream(name, "train") for name in self.streams]
        return TrainingLoader(_Batches(streams, self.batches, self.batch_size, True), 1, self.seed, collate=_only_one)

    def _held_out(self, split: str) -> DataLoader:
        streams = [self.stream(name, split) for name in self.streams]
        batches = _Batches(streams, self.validation_batches, self.batch_size, False)
        return DataLoader(batches, 1, collate_fn=_only_one, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader:
        return self._held_out("validation")

    def test_dataloader(self) -> DataLoader:
        return self._held_out("test")


def _layout(stream: str) -> tuple[str, ...]:
    return parse_layout(stream.partition("/")[0])


def _only_one(batches: Sequence[JointBatch]) -> JointBatch:
    return batches[0]
