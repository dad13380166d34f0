"""The Python interface: a model as a function from conditions to clips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from audio_var.cli.models import open_generator
from audio_var.long import sound_long
from audio_var.perform import perform
from audio_var.score import read_score
from next_scale.cli import sample_seed
from next_scale.pipeline import Pipeline


class AudioModel(Pipeline):
    """A loaded generator of clips (B, 1, N) float32 in [-1, 1].

    Shape notation: B clips, N samples.
    """

    @property
    def sample_rate(self) -> int:
        """Of the clips, in Hz."""
        return self.generator.tokenizer.autoencoder.sample_rate

    def stream(
        self, seconds: float, seed: int = 0, sampling: dict | None = None, **condition: str | int | Tensor | None
    ) -> Iterator[Tensor]:
        """A clip of any length piece by piece, in memory that does not grow; as ``generate --seconds S`` makes it.

        >>> model = load()
        >>> pieces = list(model.stream(2.5, label="string", pitch=55))
        >>> torch.cat(pieces).shape
        torch.Size([40000])

        Args:
            seconds: its length.
            seed, sampling, condition: as of a call of the model.

        Yields:
            (n,) float32 in [-1, 1].
        """
        samples = max(1, round(seconds * self.sample_rate))
        options = replace(self.generator.sampling, **(sampling or {}))
        batch = self._conditions(1, condition)
        for sound in sound_long(self.generator, batch, [sample_seed(seed, 0)], samples, options):
            yield sound[0, 0]

    def play(
        self, score: str | os.PathLike, label: str | None = None, seed: int = 0, sampling: dict | None = None,
        candidates: int = 4,
    ) -> Tensor:  # fmt: skip
        """A MIDI file as sound, as ``audio-var play`` makes it: (N,) float32 in [-1, 1].

        Args:
            score: the file.
            label: of all notes; by default they are those of the file's programs.
            seed, sampling: as of a call of the model.
            candidates: drawn of every kind of note, for the best one.

        Raises:
            UserError: no MIDI file, no notes in it, or no such label.
        """
        options = replace(self.generator.sampling, **(sampling or {}))
        return perform(self.generator, read_score(score), label, seed, options, candidates).sound


def load(checkpoint: str | None = None, device: str | torch.device = "auto") -> AudioModel:
    """Load a generator: the shipped one, or that of a folder, a ``.safetensors`` file or a hub id.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    return AudioModel(open_generator(checkpoint, str(device)))
