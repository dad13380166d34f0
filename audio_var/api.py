"""The Python interface: a model as a function from conditions to clips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from audio_var.cli.models import open_generator
from audio_var.editing import Editor
from audio_var.long import sound_long
from audio_var.perform import perform
from audio_var.score import read_score
from next_scale.pipeline import Pipeline


class AudioModel(Pipeline):
    """A loaded generator of clips (B, 1, N) float32 in [-1, 1].

    Shape notation: B clips, N samples.
    """

    @property
    def sample_rate(self) -> int:
        """Of the clips, in Hz."""
        return self.generator.tokenizer.autoencoder.sample_rate

    def editor(self, seed: int = 0, sampling: dict | None = None, **condition: str | int | Tensor | None) -> Editor:
        """What edits recordings (T,) float32 at :attr:`sample_rate`; the same as the command ``edit``.

        >>> from audio_var import load
        >>> model = load()
        >>> note = model(label="flute", pitch=60)[0, 0]  # or audio_var.io.read_audio(...), as a tensor
        >>> editor = model.editor(label="flute", pitch=60)
        >>> editor.inpaint(note, 0.3, 0.6).shape, editor.continued(note, 0.5).shape
        (torch.Size([16384]), torch.Size([24384]))
        >>> editor.vary(note, 0.4).shape, editor.interpolate(note, note.flip(0), 0.3).shape
        (torch.Size([16384]), torch.Size([16384]))
        >>> editor.denoise(note + 0.01 * torch.randn(16384)).shape, editor.upsample(note, cutoff=4000).shape
        (torch.Size([16384]), torch.Size([16384]))
        >>> brass = model.editor(label="brass", pitch=60).vary(note, 0.8)  # --relabel brass

        Args:
            seed, sampling, condition: see :meth:`next_scale.pipeline.Pipeline.__call__`; the condition is that of the
                results.

        Raises:
            UserError: an unknown condition, or a sampling option out of range.
        """
        _, (seed,), options = self._asked(1, seed, sampling, dict(condition))
        return Editor(self.generator, self._condition(condition), seed, options)

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
        batch, seeds, options = self._asked(1, seed, sampling, condition)
        for sound in sound_long(self.generator, batch, seeds, samples, options):
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
