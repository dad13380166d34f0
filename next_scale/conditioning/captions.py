"""Captions from condition fields: sentences drawn from templates and synonyms, with what is never trained on set aside.

Three things are held out, so that what a model made of words can be told from what it learned by heart: whole sentences
(templates), names of things (synonyms), and combinations of what is said.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.utils.data import Dataset

from next_scale.condition import ConditionSpec
from next_scale.conditioning.prompts import PROMPT, encode_prompt
from next_scale.errors import UserError

PHRASINGS = ("trained", "sentences", "synonyms")
"""trained: as in training. sentences: templates never trained on, with trained words. synonyms: words never trained on,
where a concept has such, in trained templates."""

FORMS = ("prompt", "labels")

_LETTERS = string.ascii_lowercase


@dataclass(frozen=True)
class Phrases:
    """How things are said.

    Attributes:
        words: slot -> concept -> names that training uses.
        templates: sentences with slots in braces, such as "a {loudness} {family}"; a slot may be left out.
        held_words: slot -> concept -> names that training never uses.
        held_templates: sentences that training never uses.
    """

    words: Mapping[str, Mapping[str, Sequence[str]]]
    templates: Sequence[str]
    held_words: Mapping[str, Mapping[str, Sequence[str]]]
    held_templates: Sequence[str]

    def __post_init__(self) -> None:
        for slot, concepts in self.words.items():
            names = [name for names in concepts.values() for name in names]
            names += [name for names in self.held_words.get(slot, {}).values() for name in names]
            if len(set(names)) != len(names):
                raise ValueError(f"two concepts of {slot} share a name, or a held-out name is trained on")
        if set(self.templates) & set(self.held_templates):
            raise ValueError("a held-out template is trained on")


class Captions(ABC):
    """Sentences about samples, from their condition fields.

    A backend says what a sample's fields mean (:meth:`concepts`) and how it is said (`phrases`).

    Args:
        form: what a model is trained on: ``prompt``, or ``labels``, the same concepts as condition fields, which is
            what prompts are compared with.
        typos: in training, each caption gets a share of typos drawn evenly from 0 to this.
        held_out: share of the combinations of concepts that training never sees.
        brief: nothing but the names, for drawings that have no room for sentences.

    Raises:
        UserError: no such form, or a share out of range.
    """

    phrases: ClassVar[Phrases]

    def __init__(self, form: str = "prompt", typos: float = 0.0, held_out: float = 0.0, brief: bool = False) -> None:
        if form not in FORMS:
            raise UserError(f"captions come as one of {', '.join(FORMS)}; got '{form}'")
        if not 0 <= typos <= 1 or not 0 <= held_out <= 0.5:
            raise UserError("typos are a share from 0 to 1, and held_out one from 0 to 0.5")
        self.form, self.typos, self.held_out, self.brief = form, typos, held_out, brief

    @abstractmethod
    def concepts(self, values: Mapping[str, str | int]) -> dict[str, str]:
        """What the values of a sample's fields mean: slot -> concept."""

    @property
    def spec(self) -> ConditionSpec:
        """Slots and their concepts, as condition fields."""
        return {slot: list(concepts) for slot, concepts in self.phrases.words.items()}

    # What is held out

    def combinations(self, held_out: bool) -> list[dict[str, str]]:
        """All combinations of concepts that training sees, or those that it never sees."""
        every = (dict(zip(self.spec, row, strict=True)) for row in itertools.product(*self.spec.values()))
        return [combination for combination in every if self.is_held_out(combination) == held_out]

    def is_held_out(self, concepts: Mapping[str, str]) -> bool:
        """Whether training never sees this combination: by a hash, so that it depends on nothing else."""
        text = "|".join(f"{slot}={concepts[slot]}" for slot in self.spec)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 < self.held_out

    # Sentences

    def caption(
        self,
        concepts: Mapping[str, str],
        phrasing: str = "trained",
        generator: torch.Generator | None = None,
        complete: bool = False,
    ) -> str:
        """A sentence about concepts; the same for the same state of `generator`, PyTorch's global one by default.

        Args:
            phrasing: one of `PHRASINGS`.
            complete: whether all concepts must be said; some templates leave a few out.
        """
        if phrasing not in PHRASINGS:
            raise UserError(f"phrasings are {', '.join(PHRASINGS)}; got '{phrasing}'")
        phrases = self.phrases
        templates = phrases.held_templates if phrasing == "sentences" else phrases.templates
        if self.brief:
            templates = [" ".join(f"{{{slot}}}" for slot in phrases.words)]
        elif complete:
            templates = [template for template in templates if len(_slots(template)) == len(phrases.words)]
        template = _one_of(templates, generator)
        said = {}
        for slot in _slots(template):
            names = phrases.words[slot][concepts[slot]]
            if phrasing == "synonyms":
                names = phrases.held_words.get(slot, {}).get(concepts[slot]) or names
            said[slot] = _one_of(names, generator)
        return template.format(**said)

    def look_up(self, text: str) -> dict[str, str]:
        """Concepts whose trained names a prompt holds, letter by letter: what a vocabulary makes of it."""
        text, found = f" {_plain(text)} ", {}
        for slot, concepts in self.phrases.words.items():
            names = [(_plain(name), concept) for concept, names in concepts.items() for name in names]
            held = [(len(name), concept) for name, concept in names if f" {name} " in text]
            if held:  # "pipe organ" rather than "pipe"
                found[slot] = max(held)[1]
        return found


def _slots(template: str) -> list[str]:
    return [slot for _, slot, _, _ in string.Formatter().parse(template) if slot is not None]


def _plain(text: str) -> str:
    """Its words in small letters, without what is between them."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _one_of(values: Sequence[str], generator: torch.Generator | None) -> str:
    return values[int(torch.randint(len(values), (), generator=generator))]


def misspell(text: str, share: float, generator: torch.Generator | None = None) -> str:
    """A text in which each letter, with this probability, is left out, followed by another, swapped, or replaced.

    >>> misspell("ankle boot", 0.3, torch.Generator().manual_seed(0))
    'anle boot'
    """
    letters, out, place = list(text), [], 0
    while place < len(letters):
        letter = letters[place]
        place += 1
        if letter == " " or float(torch.rand((), generator=generator)) >= share:
            out.append(letter)
            continue
        kind = int(torch.randint(4, (), generator=generator))
        other = _LETTERS[int(torch.randint(len(_LETTERS), (), generator=generator))]
        if kind == 0 and len(text) > 1:
            continue
        if kind == 1:
            out += [letter, other]
        elif kind == 2 and place < len(letters) and letters[place] != " ":
            out += [letters[place], letter]
            place += 1
        else:
            out.append(other)
    return "".join(out).strip() or text


class Captioned(Dataset):
    """Token sets with captions in place of their condition fields, or with the captions' concepts as fields.

    Captions of a training split come from PyTorch's global random state, which is the sample's own there (see
    :mod:`next_scale.exact`): so they are other ones every epoch. Those of other splits are the same at every call.

    Args:
        samples: items with ``condition``: field -> index in `spec`.
        spec: fields and values of `samples`.
        captions: how they are said.
        split: of "train" and "validation" combinations that are held out are left out, and only they.
    """

    def __init__(self, samples: Dataset, spec: ConditionSpec, captions: Captions, split: str) -> None:
        self.samples, self.spec, self.captions, self.split = samples, spec, captions, split
        self._kept = None
        if captions.held_out and split != "test":
            every = range(len(samples))
            self._kept = [i for i in every if not captions.is_held_out(self._concepts(samples[i]["condition"]))]
            if not self._kept:
                raise UserError(f"captions hold out all of the {split} split: lower captions.held_out")

    def __len__(self) -> int:
        return len(self.samples if self._kept is None else self._kept)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        item = self.samples[index if self._kept is None else self._kept[index]]
        concepts = self._concepts(item["condition"])
        if self.captions.form == "labels":
            own = self.captions.spec
            return {**item, "condition": {slot: own[slot].index(concept) for slot, concept in concepts.items()}}
        generator = None if self.split == "train" else torch.Generator().manual_seed(index)
        text = self.captions.caption(concepts, generator=generator)
        if self.captions.typos and self.split == "train":
            text = misspell(text, self.captions.typos * float(torch.rand(())))
        return {**item, "condition": {PROMPT: encode_prompt(text)}}

    def _concepts(self, condition: Mapping[str, int]) -> dict[str, str]:
        return self.captions.concepts({name: self.spec[name][index] for name, index in condition.items()})
