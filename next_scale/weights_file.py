"""Files of weights from strangers: read without running anything in them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from next_scale.errors import UserError


def read_weights_file(path: str | Path) -> object:
    """What a ``.safetensors`` file holds, or one that ``torch.save`` wrote; the first bytes tell which it is.

    The latter is unpickled by PyTorch's restricted reader, which makes tensors, numbers, texts and containers and runs
    nothing.

    Raises:
        UserError: no such file, truncated, damaged, or holding code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
        zipped = start[:2] == b"PK"  # as torch.save writes, or, until 2020, a pickle
        if zipped or (start[:1] == b"\x80" and start[8:] != b"{"):  # safetensors has a length, then JSON
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a .pth or .safetensors file") from None
    except SafetensorError as error:
        raise UserError(f"{path} is neither a torch file nor a whole safetensors file: {_reason(error)}") from error
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)|call (\S+)", str(error))
        if code:
            raise UserError(f"{path} holds code ({code[1] or code[2]}), not weights only; it was not run") from error
        raise UserError(f"{path} is damaged: {_reason(error)}") from error
    except Exception as error:  # a reader meets arbitrary bytes here: it raises almost anything
        raise UserError(f"{path} is truncated or damaged: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first sentence of an error's text."""
    return re.split(r"\n|\. ", str(error))[0][:200] or type(error).__name__
