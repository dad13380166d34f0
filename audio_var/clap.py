"""What shall be heard as one vector: CLAP's joint embedding of text and audio (arXiv 2211.06687)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audio_var.codecs.weights import need
from audio_var.io import read_audio
from next_scale.errors import UserError, first_line

MODEL = "laion/larger_clap_general"  # AAR's
RATE = 48000  # Hz


class Clap:
    """A CLAP model of the `transformers` library.

    Args:
        source: a folder as the hub has it, or a hub id.

    Raises:
        UserError: the library is absent, or the weights are not there or not whole.

    Shape notation: S numbers of an embedding, 512 in the published models.
    """

    def __init__(self, source: str = MODEL) -> None:
        transformers = need("transformers", "transformers")
        transformers.utils.logging.disable_progress_bar()
        self.source = source
        try:
            self.model = transformers.ClapModel.from_pretrained(source).eval()
        except Exception as error:  # whatever the network and the library raise
            raise self._missing(error) from error

    def _missing(self, error: Exception) -> UserError:
        return UserError(
            f"no CLAP model at {self.source} ({first_line(error)[:120]}): download {MODEL} elsewhere and name its "
            "folder with --clap-model"
        )

    @cached_property
    def _tokenizer(self):
        return self._part("AutoTokenizer")

    @cached_property
    def _features(self):
        return self._part("AutoFeatureExtractor")

    def _part(self, kind: str):
        try:
            return getattr(need("transformers", "transformers"), kind).from_pretrained(self.source)
        except Exception as error:
            raise self._missing(error) from error

    @torch.inference_mode()
    def of_text(self, text: str) -> Tensor:
        """Embedding of a description: (S,) float32 of unit length."""
        inputs = self._tokenizer([text], padding=True, truncation=True, return_tensors="pt")
        return _vector(self.model.get_text_features(**inputs))

    @torch.inference_mode()
    def of_audio(self, path: str | Path) -> Tensor:
        """Embedding of a recording, of its first ten seconds where it is longer: (S,) float32 of unit length.

        Raises:
            UserError: it cannot be read.
        """
        samples = read_audio(path, RATE)[: self._features.nb_max_samples]  # of more the library would draw a part
        inputs = self._features(samples, sampling_rate=RATE, return_tensors="pt")
        return _vector(self.model.get_audio_features(**inputs))


def _vector(features: object) -> Tensor:
    """(S,) of what the library returns: a tensor (1, S), or, in its newer versions, an object that holds one."""
    return (features if isinstance(features, Tensor) else features.pooler_output)[0].float().clone()


def read_embeddings(path: str | Path, size: int) -> Tensor:
    """Embeddings of a file: ``.npy`` of (S,) or (N, S), or ``.safetensors`` with one such tensor, to (N, S) float32.

    Raises:
        UserError: not there, not such a file, of another size, or not finite.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = list(load_file(path).values())
            if len(tensors) != 1:
                raise UserError(f"{path} holds {len(tensors)} tensors, not one: save the embedding alone")
            values = tensors[0].float()
        else:
            values = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: check the path") from None
    except UserError:
        raise
    except Exception as error:  # a reader meets arbitrary bytes here: it raises almost anything
        raise UserError(f"{path} is no .npy or .safetensors file of numbers ({first_line(error)[:120]})") from error
    if values.dim() not in (1, 2) or values.shape[-1] != size or not values.numel():
        raise UserError(
            f"{path} has shape {tuple(values.shape)}; the model takes embeddings of ({size},) or (N, {size})"
        )
    if not values.isfinite().all():
        raise UserError(f"{path} has values that are not finite: compute the embedding again")
    return values.reshape(-1, size)
