"""The model that commands use where none is named, and how they load one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from next_scale.cli import DEFAULT, as_generator, as_tokenizer, load_model, shipped_or

if TYPE_CHECKING:
    from next_scale.model import Generator
    from next_scale.tokenizer import Tokenizer

SHIPPED = Path(__file__).parent.parent / "models" / "notes"
PROMPTED = SHIPPED.with_name("prompts")  # reads prompts instead of labels
_ELSEWHERE = dict.fromkeys(("vqgan", "line"), "image-var")  # autoencoders of another program's checkpoints


def checkpoint_path(given: str | None) -> str:
    """The checkpoint that was given, or the shipped one. Raises UserError where neither is there."""
    return shipped_or(given, SHIPPED, "recipes/audio_notes/README.md")


def prompted_checkpoint() -> str:
    """The shipped model that reads prompts. Raises UserError where it is not there."""
    return shipped_or(None, PROMPTED, "recipes/prompts/README.md")


def open_model(given: str | None, device: str) -> Tokenizer | Generator:
    """Load a checkpoint of either kind. Raises UserError where it cannot."""
    import audio_var.codecs  # noqa: F401 - registers the codecs that checkpoints name

    return load_model(checkpoint_path(given), device, _ELSEWHERE)


def open_generator(given: str | None, device: str) -> Generator:
    """Load the model to generate with. Raises UserError where the checkpoint holds none."""
    return as_generator(open_model(given, device), given or DEFAULT)


def open_tokenizer(given: str | None, device: str) -> Tokenizer:
    """Load the tokenizer of a checkpoint of either kind. Raises UserError where there is none."""
    return as_tokenizer(open_model(given, device))
