"""`image-var data`: make and inspect data sets."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from next_scale.cli import Outputs, progress, whole_number
from next_scale.errors import UserError

_DESCRIPTION = """Data sets to train on: write Fashion-MNIST or a small part of it as PNG files, or look at what a
folder of your own images would give."""

_EPILOG = """example:
  image-var data inspect samples/demo_images"""

_FASHION = """Write Fashion-MNIST, 70,000 gray images in ten classes (MIT licence), as PNG files of 32 x 32 with one
folder a split and in it one a class. Training does not need them: the recipes read the published files themselves. The
published files come from Debian (apt-get install dataset-fashion-mnist) or from torchvision
(torchvision.datasets.FashionMNIST('data', download=True))."""

_FASHION_EPILOG = """examples:
  image-var data fashion --out data/fashion
  image-var data fashion --source data/FashionMNIST/raw --out data/fashion"""

_DEMO = """Write a few test images of every class of Fashion-MNIST: the set in samples/demo_images was made so."""

_DEMO_EPILOG = """example:
  image-var data demo --out data/demo_images"""

_INSPECT = """Read a data set as training would and tell what is in it: classes, splits, images, and every file that
would be skipped, with the reason. FOLDER holds image files, one sub-folder a class (or train, validation and test with
the classes in them), or the published files of Fashion-MNIST; 'fashion-mnist' finds those by itself."""

_INSPECT_EPILOG = """examples:
  image-var data inspect samples/demo_images
  image-var data inspect fashion-mnist"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``data`` and its subcommands."""
    parser = subparsers.add_parser("data", description=_DESCRIPTION, epilog=_EPILOG)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    source = {"metavar": "FOLDER", "help": "of the published idx files (default: wherever they are found)"}

    fashion = actions.add_parser(
        "fashion", help="write Fashion-MNIST as PNG files", description=_FASHION, epilog=_FASHION_EPILOG
    )
    fashion.add_argument("--out", required=True, metavar="FOLDER", help="a folder that does not exist yet")
    fashion.add_argument("--source", **source)
    fashion.set_defaults(run=run_fashion)

    demo = actions.add_parser("demo", help="a small part of it", description=_DEMO, epilog=_DEMO_EPILOG)
    demo.add_argument("--out", required=True, metavar="FOLDER", help="a folder that does not exist yet")
    demo.add_argument("--source", **source)
    demo.add_argument("--count", type=whole_number(1), default=30, metavar="N", help="of each class (default: 30)")
    demo.set_defaults(run=run_demo)

    inspect = actions.add_parser("inspect", help="what a data set holds", description=_INSPECT, epilog=_INSPECT_EPILOG)
    inspect.add_argument("folder", metavar="FOLDER")
    inspect.set_defaults(run=run_inspect)


def run_fashion(args: argparse.Namespace) -> None:
    """Write the whole set."""
    from image_var.data.export import write_fashion

    out = _new(args.out)
    with Outputs() as outputs, progress("writing", 70_000) as advance:
        outputs.folder(out.parent)
        counts = write_fashion(outputs.file(out), args.source, advance)
    print(f"{counts.total():,} images in {out}: {', '.join(f'{n:,} {split}' for split, n in counts.items())}")


def run_demo(args: argparse.Namespace) -> None:
    """Write a few images of every class."""
    from image_var.data.export import write_demo

    out = _new(args.out)
    with Outputs() as outputs:
        outputs.folder(out.parent)
        count = write_demo(outputs.file(out), args.source, args.count)
    print(f"{count} images in {out}")


def _new(out: str) -> Path:
    path = Path(out)
    if path.exists():
        raise UserError(f"{path} exists; name a new folder")
    return path


def run_inspect(args: argparse.Namespace) -> None:
    """Read everything once and print what was found."""
    from image_var.data.datamodule import FASHION
    from image_var.data.fashion import holds_fashion
    from next_scale.commands.inspect import print_contents

    if args.folder == FASHION or holds_fashion(args.folder):
        kind, counts, skipped = _fashion(None if args.folder == FASHION else args.folder)
    else:
        kind, counts, skipped = _folder(Path(args.folder))
    print_contents(f"{args.folder}: {kind}", counts, skipped, "images")


def _fashion(folder: str | None) -> tuple[str, Counter, list[tuple[str, str]]]:
    """Kind, (class, split) -> images, and skipped files of the published files."""
    from image_var.data.fashion import LABELS, FashionMNIST
    from next_scale.splits import SPLITS

    parts = {split: FashionMNIST(folder, split) for split in SPLITS}
    counts = Counter({(LABELS[i], s): int((part.labels == i).sum()) for s, part in parts.items() for i in range(10)})
    return f"Fashion-MNIST in {parts['train'].folder}, 28 x 28 gray with a border of 2", counts, []


def _folder(folder: Path) -> tuple[str, Counter, list[tuple[str, str]]]:
    """Kind, (class, split) -> images, and skipped files of a folder of image files; every file is decoded."""
    from image_var.data.folder import ImageFolder
    from next_scale.commands.inspect import read_all

    data = read_all(lambda: ImageFolder(folder, 32, 3, "all"), "image_var.data.folder")
    bad = {path for path, _ in data.skipped}
    labels = data.condition_spec["label"]
    counts = Counter(
        (labels[label], split)
        for path, label, split in zip(data.files, data.labels, data.splits, strict=True)
        if str(path) not in bad
    )
    sizes = [(height, width) for height, width in data.sizes]
    low, high = min(sizes), max(sizes)
    sides = f"{low[1]} x {low[0]}" + ("" if low == high else f" to {high[1]} x {high[0]}")
    return f"image files, {sides}", counts, data.skipped
