"""Clips of any length for `audio-var generate`: written piece by piece, to files or to standard output."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from next_scale.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from next_scale.commands.generate import Asked
    from next_scale.model import Generator
    from next_scale.sampling import SamplingOptions


def in_pieces(
    model: Generator, args: argparse.Namespace
) -> Callable[[Asked, SamplingOptions, Path | None], None] | None:
    """See :meth:`next_scale.commands.backend.Backend.in_pieces`."""
    from next_scale.schedule import Schedule

    if args.out == "-" and not args.stream:
        raise UserError("--out - is standard output, which needs --stream; to write into a folder of that name, ./-")
    if args.out == "-" and args.sheet:
        raise UserError("--plot draws files, and --out - writes none: name a folder")
    fixed = isinstance(model.tokenizer.quantizer.schedule, Schedule)
    if args.stream or (fixed and args.seconds is not None):
        return partial(generate_long, model, args)
    return None


def generate_long(
    model: Generator, args: argparse.Namespace, asked: Asked, options: SamplingOptions, sheet: Path | None
) -> None:
    """Generate, write as it comes, and say where; clips of a batch in step, streams one after the other."""
    from audio_var.cli.backend import BACKEND
    from audio_var.cli.clips import schedule_of
    from next_scale.cli import Outputs, progress
    from next_scale.commands.backend import Tile
    from next_scale.commands.generate import describe, print_listed, summary

    pipe = args.out == "-"
    if pipe and (len(asked.jobs) > 1 or args.format != "wav"):
        raise UserError("--out - takes one clip, as wav: give one condition, --count 1 and no other --format")
    codec = model.tokenizer.autoencoder
    own = schedule_of(model.tokenizer).grid[0] * codec.hop
    samples = own if args.seconds is None else max(1, round(args.seconds * codec.sample_rate))
    targets = ["-"] if pipe else [Path(args.out, f"{name}.{args.format}") for name in asked.names]
    tiles: list[Tile] = []
    clock = Clock(samples * len(targets) / codec.sample_rate)
    with Outputs() as outputs, progress("generating", samples * len(targets)) as advance:
        if not pipe:
            outputs.folder(args.out)
        drawn = outputs.file(sheet) if sheet else None

        def made(sound: Tensor) -> None:
            clock.heard()
            advance(sound.shape[-1] * len(sound))

        size = 1 if args.stream else args.batch_size
        for start in range(0, len(targets), size):
            batch = range(len(targets))[start : start + size]
            places = [targets[i] if args.stream else outputs.file(targets[i]) for i in batch]
            _write_batch(model, [asked.wanted[i] for i in batch], args.seed, options, samples, places, made)
            if drawn:
                for i, place in list(zip(batch, places, strict=True))[: 64 - len(tiles)]:
                    sample = BACKEND.read(place, model.tokenizer, argparse.Namespace(max_seconds=None)).sample
                    tiles.append(Tile(asked.names[i], describe(asked.spec, asked.jobs[i][0]), sample))
        if drawn:
            BACKEND.draw(drawn, tiles, args.count, model.tokenizer)
    if not pipe:
        print_listed(targets)
        print(summary(args, BACKEND, asked, f"{samples / codec.sample_rate:.2f} s"))
    if sheet:
        print(f"{BACKEND.sheet} of {len(tiles)} in {sheet}")
    if args.stream:
        print(clock, file=sys.stderr if pipe else sys.stdout)


def _write_batch(
    model: Generator,
    jobs: Sequence[tuple[dict, int]],
    seed: int,
    options: SamplingOptions,
    samples: int,
    places: Sequence[Path | str],
    made: Callable[[Tensor], None],
) -> None:
    """Clips of so many samples, one a job, written to their places as they come; `made` is told of every piece."""
    from audio_var.io import AudioWriter
    from audio_var.long import sound_long
    from next_scale.cli import sample_seed
    from next_scale.condition import collate_conditions

    condition = collate_conditions([values for values, _ in jobs], model.condition_spec, model.vectors)
    seeds = [sample_seed(seed, number) for _, number in jobs]
    rate = model.tokenizer.autoencoder.sample_rate
    with ExitStack() as stack:
        writers = [stack.enter_context(AudioWriter(place, rate, samples)) for place in places]
        for sound in sound_long(model, condition, seeds, samples, options):
            for writer, row in zip(writers, sound[:, 0].cpu().numpy(), strict=True):
                writer.write(row)
            made(sound)


class Clock:
    """How soon and how fast sound comes, from when the model is ready.

    Args:
        seconds: of sound there will be.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._began, self.first = seconds, time.perf_counter(), None

    def heard(self) -> None:
        """A piece is there."""
        self.first = self.first or time.perf_counter() - self._began

    def __str__(self) -> str:
        factor = self.seconds / (time.perf_counter() - self._began)
        return f"first sound {self.first:.2f} s after the model was loaded; {factor:.1f} times as fast as real time"
