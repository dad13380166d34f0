"""`image-var edit`: an image with a part painted anew, varied, mixed, or repaired."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from image_var.cli.backend import BACKEND
from next_scale.cli import sample_seed
from next_scale.commands import edit
from next_scale.commands.backend import Advance
from next_scale.commands.edit import Edit, Job
from next_scale.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from image_var.editing import Editor
    from next_scale.model import Generator
    from next_scale.sampling import SamplingOptions

_DESCRIPTION = """Change an image with a trained model, without training for the task: tokens that stand for what is
known stay, scale by scale, and the model draws the others so that they fit.

The image is first cropped and resized to the size that the model makes, which is also the size of the output.
Without --label the model is not told what to paint, and completes what it sees; with --label it paints that class into
the part. One verb a call. Several labels, or --count, give several images: OUT_shirt_000.png, OUT_shirt_001.png and so
on."""

_EPILOG = """examples:
  image-var edit in.png out.png --mask 0.5,0,1,1 --seed 1
  image-var edit in.png out.png --mask 8,8,24,24 --mode out-paint --count 8 --grid grid.png
  image-var edit dog.png cat.png --mask-file where.png --label 281 --checkpoint var-d16 --cfg 4 --smooth
  image-var edit shirt.png others.png --variation 0.5 --count 4
  image-var edit shirt.png coat.png --relabel coat
  image-var edit shirt.png between.png --interpolate bag.png --amount 0.3
  image-var edit noisy.png clean.png --denoise --label shirt
  image-var edit 14x14.png 32x32.png --upsample --label shirt"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``edit``."""
    parser, verbs = edit.add_parser(subparsers, BACKEND, _DESCRIPTION, _EPILOG)
    verbs.add_argument(
        "--denoise", action="store_true", help="re-encode the whole image as something that the model holds likely"
    )
    verbs.add_argument(
        "--upsample",
        action="store_true",
        help="add detail to an image smaller than those of the model: reduced again, the result is IN",
    )
    verbs.add_argument(
        "--mask",
        metavar="X0,Y0,X1,Y1",
        help="paint a part anew: left, top, right and bottom edge, in pixels of IN, or as shares of its sides "
        "where any of them has a decimal point",
    )
    verbs.add_argument("--mask-file", metavar="MASK", help="the part: white in an image of the same size as IN")
    parser.add_argument(
        "--mode",
        choices=("in-paint", "out-paint"),
        default="in-paint",
        help="paint the part, or keep the part and paint all around it (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put the pixels that were not to be painted back as they were. Without, the whole image is the model's, "
        "with no seam at the edge of the part, but all fine detail as its tokenizer has it (default: --keep)",
    )
    edit.add_drawing_options(parser, "a part")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Edit, write, and say where."""
    from image_var.io import check_image

    source = Path(args.input)
    masked = args.mask is not None or args.mask_file is not None
    edit.check_drawing_options(args, masked, "a part")
    size = check_image(source)
    args.box = None if args.mask is None else parse_box(args.mask, size)
    if args.mask_file is not None and check_image(args.mask_file) != size:
        raise UserError(f"{args.mask_file} must have the size of {source}, {size[1]} x {size[0]} pixels")
    edit.run(args, BACKEND, _edit_of)


def _edit_of(args: argparse.Namespace, model: Generator, options: SamplingOptions, original: Tensor) -> Edit:
    from image_var.editing import Editor
    from image_var.io import check_image
    from next_scale.condition import collate_conditions

    size, resized = check_image(args.input), tuple(original.shape[1:])
    painted = other = None
    if args.mask is not None or args.mask_file is not None:
        part = _part(args, args.box, size, resized)
        painted = ~part if args.mode == "out-paint" else part
        if not painted.any():
            raise UserError("nothing is left to paint: the part is the whole image; make it smaller or leave out-paint")
        if painted.all():
            raise UserError("nothing is left of the image: the part is all of it; make it smaller, or use generate")
        text = f"{painted.float().mean():.0%} of the pixels painted"
    elif args.interpolate is not None:
        other = BACKEND.read(Path(args.interpolate), model.tokenizer, args).sample
        text = f"{edit.amount(args):.0%} of the way to {args.interpolate}"
    elif args.upsample:
        if size[0] >= resized[0] or size[1] >= resized[1]:
            raise UserError(
                f"{args.input} has {size[1]} x {size[0]} pixels, and the model makes {resized[1]} x {resized[0]}: "
                "--upsample takes a smaller image"
            )
        text = f"detail for {size[1]} x {size[0]} pixels"
    elif args.denoise:
        text = "noise taken off"
    else:
        text = edit.varied_text(args, model.tokenizer.quantizer.scales)

    def edited(editor: Editor) -> Tensor:
        if painted is not None:
            return editor.paint(painted, args.keep, args.candidates, args.passes)
        if other is not None:
            return editor.interpolate(other, edit.amount(args))
        if args.upsample:
            factor = min(size[0] / resized[0], size[1] / resized[1])  # only the middle is left of other shapes
            return editor.upsample([max(1, round(factor * side)) for side in resized])
        if args.denoise:
            return editor.denoise()
        return editor.vary(edit.strength(args), args.keep_scales or "coarse")

    def samples(jobs: Sequence[Job], advance: Advance) -> Iterator[Tensor]:
        for start in range(0, len(jobs), args.batch_size):
            batch = jobs[start : start + args.batch_size]
            condition = collate_conditions([one for one, _ in batch], model.condition_spec, model.vectors)
            seeds = [sample_seed(args.seed, number) for _, number in batch]
            yield from edited(Editor(model, original, condition, seeds, options))
            advance(len(batch))

    return Edit(samples, text)


def parse_box(text: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom in pixels of an image of size (H, W), from pixels or shares.

    Raises:
        UserError: not four such numbers, an empty box, or one that reaches beyond the image.
    """
    height, width = size
    parts = text.split(",")
    try:
        edges = [float(part) for part in parts]
    except ValueError:
        edges = []
    if len(edges) != 4 or not all(map(math.isfinite, edges)):
        raise UserError(f"--mask takes four numbers X0,Y0,X1,Y1, such as 0.5,0,1,1 or 8,8,24,24, got '{text}'")
    if any("." in part for part in parts):
        if max(edges) > 1 or min(edges) < 0:
            raise UserError(f"--mask {text} has a decimal point, so that all must be shares from 0 to 1")
        edges = [edge * side for edge, side in zip(edges, (width, height, width, height), strict=True)]
    left, top, right, bottom = edges
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UserError(
            f"--mask {text} is no part of an image of {width} x {height}; give X0 < X1 up to {width} and Y0 < Y1 up "
            f"to {height}"
        )
    return left, top, right, bottom


def _part(
    args: argparse.Namespace, box: tuple[float, float, float, float] | None, size: tuple[int, int],
    resized: tuple[int, int],
) -> Tensor:  # fmt: skip
    """The part of an image of this size once it is cropped and resized: (H, W) bool, with every pixel it touches."""
    import torch

    from image_var.io import read_image

    if box is None:
        part = read_image(args.mask_file, resized, channels=1)[0] > 0  # more white than black
    else:
        factor = min(size[0] / resized[0], size[1] / resized[1])  # the largest middle part of that shape is kept
        before = [(old - factor * new) / 2 for old, new in zip(size, resized, strict=True)]
        left, right = ((x - before[1]) / factor for x in box[::2])
        top, bottom = ((y - before[0]) / factor for y in box[1::2])
        part = torch.zeros(resized, dtype=torch.bool)
        rows = slice(max(0, math.floor(top + 1e-6)), max(0, math.ceil(bottom - 1e-6)))
        columns = slice(max(0, math.floor(left + 1e-6)), max(0, math.ceil(right - 1e-6)))
        part[rows, columns] = True
    if not part.any():
        source = f"--mask {args.mask}" if box is not None else f"{args.mask_file} (white is the part)"
        raise UserError(f"{source} has nothing in the middle part of the image that is left when it is cropped")
    return part
