"""What Lightning tells that is of no use here."""

from __future__ import annotations

import logging
import warnings

_MESSAGES = (
    "LightningCLI's args parameter",  # a command's own arguments are given, not the process's
    ".*LeafSpec",  # Lightning on a newer torch
    "Found .* eval mode",  # the frozen tokenizer, on purpose
)


def quiet_lightning(*messages: str) -> None:
    """Leave out its notes about devices, and warnings that match these patterns, beside the usual ones."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (*_MESSAGES, *messages):
        warnings.filterwarnings("ignore", message)
