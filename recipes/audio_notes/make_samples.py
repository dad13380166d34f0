"""The page of samples: generated clips beside real held-out notes, and the pyramid scale by scale.

    python -m recipes.audio_notes.make_samples --tokenizer-report reports/tokenizer/report.json \
        --generator-report reports/generator/report.json

writes samples/index.html and samples/clips/. Every clip is made by running the very command that stands under it.
Which notes are shown follows from --seed alone: of each family the first two held-out notes in a shuffled order.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from audio_var.cli import main as audio_var
from audio_var.cli.models import checkpoint_path, open_generator
from audio_var.data.notes import Notes
from audio_var.io import read_audio, write_audio
from audio_var.plots import log_spectrogram
from next_scale.cli import Parser, condition_stem, run_program, whole_number
from next_scale.errors import UserError
from next_scale.model import Generator, fingerprint
from recipes.audio_notes.samples_page import Clip, Page, Pair, Pyramid, Step, render
from recipes.page import link_to, megabytes_of, publish, read_report

PAIRS, PYRAMIDS = 24, 3
CLIPS = "clips"  # folder of the page's files
RANGE = 80.0  # dB, from the brightest to the darkest colour of a spectrogram
COLOURS, ROWS = 64, 128  # of a spectrogram's palette and picture
MOST_BYTES = 3_000_000


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recipes.audio_notes.make_samples", description=__doc__)
    parser.add_argument("--checkpoint", metavar="PATH", help="of a generator (default: the shipped one)")
    parser.add_argument("--data", default="data/notes", metavar="FOLDER", help="the Notes set (default: %(default)s)")
    parser.add_argument("--out", default="samples", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the clips and of the choice of notes")
    parser.add_argument("--tokenizer-report", metavar="JSON", help="report.json of audio-var evaluate tokenizer")
    parser.add_argument("--generator-report", metavar="JSON", help="report.json of audio-var evaluate generator")
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    model = open_generator(args.checkpoint, "cpu")
    notes = Notes(args.data, "test")
    reports = {
        kind: read_report(getattr(args, f"{kind}_report"), model, "audio-var") for kind in ("tokenizer", "generator")
    }
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as scratch:
        folder = Path(scratch, CLIPS)
        folder.mkdir()
        maker = Maker(model, notes, folder, args.checkpoint, args.seed)
        chosen = choose(notes, PAIRS, args.seed)
        pairs = [maker.pair(index) for index in chosen]
        apart = [chosen[(2 * i + 1) * len(chosen) // (2 * PYRAMIDS)] for i in range(PYRAMIDS)]
        pyramids = [maker.pyramid(index) for index in dict.fromkeys(apart)]
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > MOST_BYTES:
            raise UserError(f"the clips take {size:,} bytes, more than {MOST_BYTES:,}: lower PAIRS or PYRAMIDS")
        page = Page(
            pairs=pairs,
            pyramids=pyramids,
            facts=_facts(model, args.checkpoint),
            seed=args.seed,
            decibels=RANGE,
            colours=_palette()[:: COLOURS // 8].tolist(),
            attribution=notes.manifest["attribution"],
            tokenizer=reports["tokenizer"],
            generator=reports["generator"],
            other=link_to(out, "images.html", "Images"),
        )
        Path(scratch, "index.html").write_text(render(page), encoding="utf-8")
        publish(Path(scratch), out, "index.html", CLIPS)
    print(f"{out / 'index.html'}: {len(pairs)} pairs, {len(pyramids)} pyramids, {size / 1e6:.2f} MB of clips")


def choose(notes: Notes, count: int, seed: int) -> list[int]:
    """`count` notes of different conditions, spread evenly over families: sorted by family and pitch.

    Within a family the order is shuffled; a note of an instrument that is shown already waits until none is left.

    Raises:
        UserError: too few held-out notes.
    """
    order = torch.randperm(len(notes), generator=torch.Generator().manual_seed(seed)).tolist()
    condition = {name: values.tolist() for name, values in notes.condition_batch(range(len(notes))).items()}
    asked = [tuple(values[i] for values in condition.values()) for i in range(len(notes))]
    chosen: list[int] = []
    rounds = math.ceil(count / len(notes.condition_spec["label"]))
    for most in [*range(1, rounds + 1), len(notes)]:  # at last without regard to families: one may have too few notes
        for fresh in (True, False):
            for i in order:
                mine = [j for j in chosen if condition["label"][j] == condition["label"][i]]
                heard = {notes.preset[j] for j in mine}
                full = len(chosen) == count or len(mine) >= most or (fresh and notes.preset[i] in heard)
                if not full and asked[i] not in {asked[j] for j in chosen}:
                    chosen.append(i)
    if len(chosen) < count:
        raise UserError(f"{notes.folder} has {len(chosen)} held-out notes of different conditions; {count} are needed")
    return sorted(chosen, key=lambda i: asked[i])


@dataclass
class Maker:
    """Makes the files of the page in `folder`, each by the command that the page shows."""

    model: Generator
    notes: Notes
    folder: Path
    checkpoint: str | None
    seed: int

    def pair(self, index: int) -> Pair:
        """A generated clip and the real note of the same condition."""
        values = self._values(index)
        asked = [text for name, value in values.items() for text in (f"--{name}", str(value))]
        command = ["generate", *asked, "--seed", str(self.seed), "--format", "flac", *self._model()]
        stem = self._stem(index)
        made, real = f"{stem}_s{self.seed}_000", f"{stem}_real"
        self._run([*command, "--out", str(self.folder)])
        write_audio(self.folder / f"{real}.flac", self.notes.audio_batch([index])[0, 0].numpy(), self.notes.sample_rate)
        clips = self._clips([made, real])
        shown = shlex.join(["audio-var", *command, "--out", CLIPS])
        return Pair(values, self.notes.presets[self.notes.preset[index]].name, *clips, shown)

    def pyramid(self, index: int) -> Pyramid:
        """A real note that a pair shows already, decoded from its first scales only."""
        quantizer = self.model.tokenizer.quantizer
        schedule, stem = quantizer.schedule, self._stem(index)
        real = f"{stem}_real"
        shown = sorted({*range(1, schedule.scales, 2), schedule.scales})
        names = [f"{stem}_scales{k:02}" for k in shown]
        for k, name in zip(shown, names, strict=True):
            command = ["reconstruct", str(self.folder / f"{real}.flac"), str(self.folder / f"{name}.flac")]
            self._run([*command, "--scales", str(k), *self._model()])
        first, *clips = self._clips([real, *names])
        bits = math.log2(quantizer.codebook_size)
        steps = [
            Step(k, sum(schedule.counts[:k]), round(sum(schedule.counts[:k]) * bits), clip)
            for k, clip in zip(shown, clips, strict=True)
        ]
        command = ["audio-var", "reconstruct", f"{CLIPS}/{real}.flac", "coarse.flac", "--scales", "K", *self._model()]
        return Pyramid(
            self._values(index), self.notes.presets[self.notes.preset[index]].name, first, steps, shlex.join(command)
        )

    def _values(self, index: int) -> dict[str, str | int]:
        condition = self.notes.condition_batch([index])
        return {name: known[condition[name].item()] for name, known in self.notes.condition_spec.items()}

    def _stem(self, index: int) -> str:
        condition = {name: values.item() for name, values in self.notes.condition_batch([index]).items()}
        return condition_stem(self.notes.condition_spec, condition)

    def _model(self) -> list[str]:
        return [] if self.checkpoint is None else ["--checkpoint", self.checkpoint]

    def _run(self, command: list[str]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            code = audio_var(command)
        if code:
            raise UserError(f"audio-var {shlex.join(command)} failed; see the line above")

    def _clips(self, names: list[str]) -> list[Clip]:
        """Draw the spectrograms of audio files, the loudest point of them all being the brightest colour."""
        rate = self.notes.sample_rate
        pictures = [log_spectrogram(read_audio(self.folder / f"{name}.flac", rate), rate, ROWS) for name in names]
        top = max(float(picture.max()) for picture in pictures)
        for name, picture in zip(names, pictures, strict=True):
            write_picture(self.folder / f"{name}.png", (picture - top) / RANGE + 1)
        return [Clip(f"{CLIPS}/{name}.flac", f"{CLIPS}/{name}.png", p.shape[1], p.shape[0])
                for name, p in zip(names, pictures, strict=True)]  # fmt: skip


def write_picture(path: Path, brightness: np.ndarray) -> None:
    """Write brightness (R, W), row 0 at the bottom, clipped to 0 .. 1, as a PNG of few colours."""
    levels = (brightness.clip(0, 1) * (COLOURS - 1)).round().astype(np.uint8)
    image = Image.fromarray(levels[::-1].copy(), mode="P")
    image.putpalette(_palette().flatten().tolist())
    image.save(path, optimize=True)


def _palette() -> np.ndarray:
    """(COLOURS, 3) uint8, dark to bright."""
    from matplotlib import colormaps

    return (colormaps["magma"](np.linspace(0, 1, COLOURS))[:, :3] * 255).round().astype(np.uint8)


def _facts(model: Generator, checkpoint: str | None) -> dict:
    quantizer, codec = model.tokenizer.quantizer, model.tokenizer.autoencoder
    schedule = quantizer.schedule
    seconds = schedule.grid[0] * codec.hop / codec.sample_rate
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "megabytes": megabytes_of(checkpoint_path(checkpoint)),
        "schedule": str(schedule),
        "scales": schedule.scales,
        "last": schedule.counts[-1],
        "tokens": schedule.length,
        "codes": quantizer.codebook_size,
        "seconds": seconds,
        "kbits": schedule.bits(quantizer.codebook_size) / seconds / 1000,
        "rate": codec.sample_rate,
        "fingerprint": fingerprint(model.tokenizer),
    }


if __name__ == "__main__":
    sys.exit(run_program("make_samples", main))
