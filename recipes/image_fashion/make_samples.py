"""The page of images: generated ones beside real test images of the same class, and the pyramid scale by scale.

    python -m recipes.image_fashion.make_samples --tokenizer-report reports/tokenizer/report.json \
        --generator-report reports/generator/report.json

writes samples/images.html and samples/images/. The images in a card are made by running the very command that stands
under them. Which real images are shown follows from --seed alone.
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

import torch

from image_var.cli import main as image_var
from image_var.cli.models import checkpoint_path, open_generator
from image_var.io import write_image
from image_var.reports.images import Images, image_shape
from next_scale.cli import Parser, condition_stem, run_program, sample_seed, whole_number
from next_scale.errors import UserError
from next_scale.model import Generator, fingerprint
from next_scale.report import shown_scales
from recipes.image_fashion.samples_page import Card, Page, Pyramid, Step, render
from recipes.page import link_to, megabytes_of, publish, read_report

PAGE, PICTURES = "images.html", "images"  # the page and the folder of its files
EACH = 8  # images of a class, generated and real
PYRAMIDS = 4  # of generated and of real images
STEPS = 10  # most stages of a pyramid
MOST_BYTES = 3_000_000
SOURCE = "Fashion-MNIST (Zalando SE, arXiv 1708.07747, MIT licence), 28 x 28 with a border of 2 pixels"


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recipes.image_fashion.make_samples", description=__doc__)
    parser.add_argument("--checkpoint", metavar="PATH", help="of a generator (default: the shipped one)")
    parser.add_argument("--data", default="fashion-mnist", metavar="DATA", help="default: %(default)s")
    parser.add_argument("--out", default="samples", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the images and of the choice of real ones")
    parser.add_argument("--tokenizer-report", metavar="JSON", help="report.json of image-var evaluate tokenizer")
    parser.add_argument("--generator-report", metavar="JSON", help="report.json of image-var evaluate generator")
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    model = open_generator(args.checkpoint, "cpu")
    images = Images(args.data, "test", image_shape(model.tokenizer))
    if {name: list(values) for name, values in model.condition_spec.items()} != images.condition_spec:
        raise UserError(f"the model was trained on other classes than {args.data} has; give its own --data")
    reports = {kind: read_report(getattr(args, f"{kind}_report"), model, "image-var")
               for kind in ("tokenizer", "generator")}  # fmt: skip
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as scratch:
        folder = Path(scratch, PICTURES)
        folder.mkdir()
        maker = Maker(model, images, folder, args.checkpoint, args.seed)
        labels = range(len(images.condition_spec["label"]))
        cards = [maker.card(label) for label in labels]
        # every other class shows how it is drawn, the others how they are decoded
        drawn = [maker.drawn(label) for label in labels[::2][:PYRAMIDS]]
        decoded = [maker.decoded(label) for label in labels[1::2][:PYRAMIDS]]
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > MOST_BYTES:
            raise UserError(f"the images take {size:,} bytes, more than {MOST_BYTES:,}: lower EACH or PYRAMIDS")
        page = Page(
            cards=cards,
            drawn=drawn,
            decoded=decoded,
            facts=_facts(model, args.checkpoint, args.data),
            seed=args.seed,
            tokenizer=reports["tokenizer"],
            generator=reports["generator"],
            commands=_commands(reports, argv),
            other=link_to(out, "index.html", "Sounds"),
        )
        Path(scratch, PAGE).write_text(render(page), encoding="utf-8")
        publish(Path(scratch), out, PAGE, PICTURES)
    print(f"{out / PAGE}: {len(cards)} classes, {len(drawn) + len(decoded)} pyramids, {size / 1e6:.2f} MB of images")


@dataclass
class Maker:
    """Makes the files of the page in `folder`, by the commands that the page shows."""

    model: Generator
    images: Images
    folder: Path
    checkpoint: str | None
    seed: int

    def card(self, label: int) -> Card:
        """Generated images of a class, and test images of it."""
        name, stem = self._names(label)
        command = ["generate", "--label", name, "--count", str(EACH), "--seed", str(self.seed), *self._model()]
        self._run([*command, "--out", str(self.folder)])
        made = [f"{PICTURES}/{stem}_s{self.seed}_{number:03}.png" for number in range(EACH)]
        real = []
        for index in self._chosen(label, EACH):
            real.append(f"{PICTURES}/{stem}_real_{index:05}.png")
            write_image(self.folder / Path(real[-1]).name, self.images.read([index])[0])
        return Card(name, made, real, shlex.join(["image-var", *command, "--out", PICTURES]))

    def drawn(self, label: int) -> Pyramid:
        """The first generated image of a card after each step, from its very tokens."""
        name, stem = self._names(label)
        condition = {"label": torch.tensor([label])}
        _, tokens = self.model.generate(condition, [sample_seed(self.seed, 0)])
        steps = []
        for k in self._shown():
            picture = f"{stem}_s{self.seed}_000_scales{k:02}.png"
            write_image(self.folder / picture, self.model.tokenizer.decode(tokens, k)[0])
            steps.append(self._step(k, picture))
        return Pyramid(name, None, steps)

    def decoded(self, label: int) -> Pyramid:
        """A test image that a card shows, decoded from its first scales only."""
        name, stem = self._names(label)
        real = f"{stem}_real_{self._chosen(label, 1)[0]:05}.png"
        steps = []
        for k in self._shown():
            picture = f"{Path(real).stem}_scales{k:02}.png"
            command = ["reconstruct", str(self.folder / real), str(self.folder / picture), "--scales", str(k)]
            self._run([*command, *self._model()])
            steps.append(self._step(k, picture))
        command = ["image-var", "reconstruct", f"{PICTURES}/{real}", "coarse.png", "--scales", "K", *self._model()]
        return Pyramid(name, f"{PICTURES}/{real}", steps, shlex.join(command))

    def _names(self, label: int) -> tuple[str, str]:
        """The name of a class, and the one that its files start with."""
        spec = self.images.condition_spec
        return str(spec["label"][label]), condition_stem(spec, {"label": label})

    def _chosen(self, label: int, count: int) -> list[int]:
        """The first test images of a class in a shuffled order. Raises UserError where there are too few."""
        members = (self.images.label == label).nonzero()[:, 0]
        if len(members) < count:
            raise UserError(f"class {self._names(label)[0]} has {len(members)} test images; {count} are needed")
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(self.seed))
        return members[order[:count]].tolist()

    def _shown(self) -> list[int]:
        return shown_scales(self.model.tokenizer.quantizer.scales, STEPS)

    def _step(self, k: int, picture: str) -> Step:
        quantizer = self.model.tokenizer.quantizer
        tokens = sum(quantizer.schedule.counts[:k])
        return Step(k, tokens, round(tokens * math.log2(quantizer.codebook_size)), f"{PICTURES}/{picture}")

    def _model(self) -> list[str]:
        return [] if self.checkpoint is None else ["--checkpoint", self.checkpoint]

    def _run(self, command: list[str]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            code = image_var(command)
        if code:
            raise UserError(f"image-var {shlex.join(command)} failed; see the line above")


def _facts(model: Generator, checkpoint: str | None, data: str) -> dict:
    quantizer, (channels, height, width) = model.tokenizer.quantizer, image_shape(model.tokenizer)
    schedule = quantizer.schedule
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "megabytes": megabytes_of(checkpoint_path(checkpoint)),
        "schedule": str(schedule),
        "scales": schedule.scales,
        "tokens": schedule.length,
        "codes": quantizer.codebook_size,
        "channels": channels,
        "height": height,
        "width": width,
        "bits": schedule.bits(quantizer.codebook_size) / (height * width),
        "fingerprint": fingerprint(model.tokenizer),
        "source": SOURCE if data == "fashion-mnist" else data,
    }


def _commands(reports: dict[str, dict | None], argv: list[str]) -> list[str]:
    """How the reports and this page are made."""
    own = shlex.join(["python", "-m", "recipes.image_fashion.make_samples", *argv])
    return [*(report["command"] for report in reports.values() if report and "command" in report), own]


if __name__ == "__main__":
    sys.exit(run_program("make_samples", main))
