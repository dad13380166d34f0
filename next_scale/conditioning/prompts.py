"""Prompts as data: what is taken from a user, and how it travels in a condition batch.

In a batch a prompt is its code points, whatever the model makes of them, so that it is sliced, stacked and moved like
any other condition.
"""

from __future__ import annotations

import unicodedata

import torch
from torch import Tensor

from next_scale.errors import UserError, printable

PROMPT = "prompt"
"""Field of a condition batch: (B, LENGTH) int32, code points and -1 after them; all -1 where there is none."""

LENGTH = 256  # most characters of a prompt

_END = -1


def clean_prompt(text: str) -> str:
    """The prompt in composed form (NFC), its words one space apart, without characters that nobody sees.

    Those are format characters (joiners, marks of direction) and variation selectors.

    Raises:
        UserError: nothing is left, too much is, or there are control characters or halves of characters.
    """
    if len(text) > 16 * LENGTH:  # before anything that takes time
        raise _too_long(len(text))
    shown = "".join(letter for letter in text if not _unseen(letter))
    words = unicodedata.normalize("NFC", " ".join(shown.split()))
    for letter in words:
        if unicodedata.category(letter) in ("Cc", "Cs"):
            raise UserError(f"the prompt has a control character, {printable(letter)}: leave it out")
    if not words:
        raise UserError("the prompt is empty: say in words what to make")
    if len(words) > LENGTH:
        raise _too_long(len(words))
    return words


def _too_long(count: int) -> UserError:
    return UserError(f"the prompt has {count:,} characters, and {LENGTH} fit: shorten it")


def _unseen(letter: str) -> bool:
    selector = "\ufe00" <= letter <= "\ufe0f" or "\U000e0100" <= letter <= "\U000e01ef"
    return selector or unicodedata.category(letter) == "Cf"


def encode_prompt(text: str) -> Tensor:
    """A prompt to its code points, (LENGTH,) int32, -1 after its end. Raises UserError as :func:`clean_prompt`."""
    codes = [ord(letter) for letter in clean_prompt(text)]
    return torch.tensor(codes + [_END] * (LENGTH - len(codes)), dtype=torch.int32)


def decode_prompts(codes: Tensor) -> list[str | None]:
    """Inverse of :func:`encode_prompt` for (B, N) int32, None where there is no prompt."""
    rows = ("".join(chr(code) for code in row if code != _END) for row in codes.tolist())
    return [text or None for text in rows]
