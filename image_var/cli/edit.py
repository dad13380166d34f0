"""`image-var edit`: paint a part of an image anew, or everything around a part, or as another class."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from image_var.cli.backend import BACKEND
from image_var.cli.models import open_generator
from next_scale.cli import (
    MOST_SAMPLES,
    Outputs,
    add_condition_options,
    add_int8_option,
    add_model_options,
    add_sampling_options,
    condition_stem,
    condition_values,
    progress,
    requested_conditions,
    sampling_options,
    whole_number,
)
from next_scale.commands.backend import Tile
from next_scale.commands.generate import draw_samples, print_listed
from next_scale.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from next_scale.model import Generator

_DESCRIPTION = """Paint a part of an image anew. The image is turned into tokens; those outside the part keep what they
are while the model draws the others, scale by scale, so that they fit. No training for the task is needed.

The image is first cropped and resized to the size that the model makes, which is also the size of the output.
Without --label the model is not told what to paint, and completes what it sees; with --label it paints that class into
the part. Several values of it, or --count, give several images: OUT_shirt_000.png, OUT_shirt_001.png and so on."""

_EPILOG = """examples:
  image-var edit in.png out.png --mask 0.5,0,1,1 --seed 1
  image-var edit in.png out.png --mask 8,8,24,24 --mode out-paint --count 8 --grid grid.png
  image-var edit dog.png cat.png --mask-file where.png --label 281 --checkpoint var-d16 --cfg 4 --smooth"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``edit``."""
    parser = subparsers.add_parser("edit", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("input", metavar="IN", help="image file")
    parser.add_argument("output", metavar="OUT", help="image file to write: .png, .jpg or .webp")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--mask",
        metavar="X0,Y0,X1,Y1",
        help="the part: left, top, right and bottom edge, in pixels of IN, or as shares of its width and height where "
        "any of them has a decimal point",
    )
    where.add_argument("--mask-file", metavar="MASK", help="the part: white in an image of the same size as IN")
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
    parser.add_argument(
        "--count", type=whole_number(1, MOST_SAMPLES), default=1, metavar="N", help="images a condition (default: 1)"
    )
    parser.add_argument("--grid", metavar="FILE.png", help="also draw the original and all images on one")
    add_condition_options(parser, BACKEND.fields)
    add_sampling_options(parser)
    add_int8_option(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Edit, write, and say where."""
    from image_var.io import check_image

    source, target = Path(args.input), Path(args.output)
    BACKEND.check_name(target)
    if args.grid:
        BACKEND.check_sheet(Path(args.grid))
    size = check_image(source)
    box = None if args.mask is None else parse_box(args.mask, size)
    if args.mask_file is not None and check_image(args.mask_file) != size:
        raise UserError(f"{args.mask_file} must have the size of {source}, {size[1]} x {size[0]} pixels")
    model = open_generator(args.checkpoint, args.device).pack(args.int8)
    spec, tokenizer = model.condition_spec, model.tokenizer
    options = sampling_options(args, model.sampling)
    conditions = requested_conditions(args, spec)
    if len(conditions) * args.count > MOST_SAMPLES:
        raise UserError(f"more than {MOST_SAMPLES:,} images asked for; give fewer conditions or a lower --count")
    jobs = [(condition, number) for condition in conditions for number in range(args.count)]
    targets = [
        target if len(jobs) == 1 else target.with_stem(f"{target.stem}_{condition_stem(spec, condition)}_{number:03}")
        for condition, number in jobs
    ]
    original = BACKEND.read(source, tokenizer, args).sample
    part = _part(args, box, size, tuple(original.shape[1:]))
    painted = ~part if args.mode == "out-paint" else part
    if not painted.any():
        raise UserError("nothing is left to paint: the part is the whole image; make it smaller or leave out-paint")
    tokens, forced = keep_tokens(model, original, painted)
    tiles = [Tile(source.name, "original", original)]
    with Outputs() as outputs, progress("painting", len(jobs)) as advance:
        drawn = outputs.file(args.grid) if args.grid else None
        images = draw_samples(model, jobs, args.seed, options, args.batch_size, tokens, forced)
        for path, (condition, _), image in zip(targets, jobs, images, strict=True):
            if args.keep:
                image = image.where(painted, original)
            BACKEND.write(outputs.file(path), image, tokenizer)
            if drawn and len(tiles) <= BACKEND.most_tiles(image):
                values = condition_values(spec, condition).values()
                tiles.append(Tile(path.name, ", ".join(map(str, values)) or "edited", image))
            advance(1)
        if drawn:
            BACKEND.draw(drawn, tiles, args.count, tokenizer)
    print_listed(targets)
    noun = "image" if len(jobs) == 1 else "images"
    print(
        f"{len(jobs)} {noun} of {BACKEND.size_text(image, tokenizer)}: {painted.float().mean():.0%} of the pixels "
        f"painted, {int(forced.sum())} of {forced.numel()} tokens kept (seed {args.seed})"
    )
    if args.grid:
        print(f"grid of {len(tiles)} in {args.grid}")


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


def keep_tokens(model: Generator, image: Tensor, painted: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of an image, and which of them stay while others are drawn.

    On the full grid a cell stays where none of its pixels is painted; a coarser token where most of its cells do.

    Args:
        image: (C, H, W) in [-1, 1].
        painted: (H, W) bool.

    Returns:
        (1, L) int64 and (1, L) bool.
    """
    import torch.nn.functional as F

    tokenizer, schedule = model.tokenizer, model.predictor.schedule
    touched = F.adaptive_max_pool2d(painted[None].float(), schedule.grid) > 0  # (1, H, W) -> (1, h, w)
    return tokenizer.encode(image[None].to(tokenizer.device)), schedule.shrink_mask(~touched).to(tokenizer.device)
