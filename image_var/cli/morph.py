"""`image-var morph`: a picture of words that becomes, scale by scale, a picture of what they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from image_var.cli.backend import BACKEND
from image_var.cli.models import morph_checkpoint
from next_scale.cli import (
    MOST_SAMPLES,
    Outputs,
    add_condition_options,
    add_model_options,
    add_prompt_options,
    add_sampling_options,
    as_generator,
    condition_stem,
    progress,
    requested_conditions,
    requested_prompts,
    sample_seed,
    sampling_options,
    whole_number,
)
from next_scale.commands.generate import list_jobs, print_listed, words_vectors
from next_scale.errors import UserError, printable

if TYPE_CHECKING:
    from PIL import Image

_DESCRIPTION = """Draw the prompt, one word a line, as large as an image, and let the model turn the drawing into what
it says. The coarse scales of the drawing's own token pyramid are where generation starts; from the next scale on the
model draws every token, and each scale adds what it thinks is missing.

The shipped model learned this by recipes/prompts/fashion_morph.yaml. Any other model goes on from the coarse words as
from any other coarse image: it makes a shape like that of the words, not what they name. A model of labels is told what
to make by --label.

With --frames each image also comes as a strip, the drawing first and then the sum after every scale, and as a GIF."""

_EPILOG = """examples:
  image-var morph --prompt sneaker --frames
  image-var morph --prompt "ankle boot" bag --count 4 --scales 2
  image-var morph --prompt sneaker --label sneaker --frames --checkpoint image_var/models/fashion

a file name tells prompt, seed and number: morphs/sneaker_s0_000.png, ..._000_strip.png, ..._000.gif"""

_FRAME, _LAST = 400, 1600  # milliseconds that the GIF shows a frame, and the last one


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``morph``."""
    parser = subparsers.add_parser("morph", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--out", default="morphs", metavar="FOLDER", help="created if missing (default: %(default)s)")
    parser.add_argument("--frames", action="store_true", help="also save every scale, as a strip and as a GIF")
    parser.add_argument(
        "--scales",
        type=whole_number(0),
        metavar="N",
        help="scales of the drawing to start from (default: all but the last three)",
    )
    parser.add_argument(
        "--count", type=whole_number(1, MOST_SAMPLES), default=1, metavar="N", help="images a prompt (default: 1)"
    )
    parser.add_argument(
        "--enlarge",
        type=whole_number(1, 32),
        default=4,
        metavar="N",
        help="repeat every pixel N times in both directions (default: 4)",
    )
    add_prompt_options(parser)
    add_condition_options(parser, BACKEND.fields)
    add_sampling_options(parser)
    add_model_options(parser, batched=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Morph, write, and say where."""
    import torch

    from image_var.io import to_picture, write_picture
    from next_scale.condition import collate_conditions
    from next_scale.conditioning import PROMPT, clean_prompt
    from next_scale.morph import draw_samples, frames, morph

    checkpoint = morph_checkpoint() if args.checkpoint is None else args.checkpoint
    model = as_generator(BACKEND.open_model(checkpoint, args.device), checkpoint)
    options = sampling_options(args, model.sampling)
    prompts = requested_prompts(args)
    if not prompts:
        raise UserError("there is nothing to morph: give words, such as --prompt sneaker")
    texts = list(dict.fromkeys(clean_prompt(text) for text in prompts))
    draw_samples(model.tokenizer, texts)  # raises before anything is written
    codes = words_vectors(model, prompts, BACKEND.program)[PROMPT].values if model.words is not None else None
    spec = {PROMPT: [printable(text) for text in texts], **model.condition_spec}
    listed = requested_conditions(args, model.condition_spec)
    conditions = [{PROMPT: number, **labels} for number in range(len(texts)) for labels in listed]
    jobs = list_jobs(conditions, args.count, BACKEND)
    out, written = Path(args.out), []
    with Outputs() as outputs, progress("morphing", len(jobs)) as advance:
        outputs.folder(out)
        for condition, number in jobs:
            row = {name: index for name, index in condition.items() if name != PROMPT}
            if codes is not None:
                row[PROMPT] = codes[condition[PROMPT]]
            text = texts[condition[PROMPT]]
            given = collate_conditions([row], model.condition_spec, model.vectors)
            tokens = morph(model, [text], given, [sample_seed(args.seed, number)], args.scales, options)
            with torch.inference_mode():
                shown = [draw_samples(model.tokenizer, [text]), *frames(model.tokenizer, tokens)]
            pictures = [_enlarged(to_picture(sample[0].cpu()), args.enlarge) for sample in shown]
            stem = f"{condition_stem(spec, condition)}_s{args.seed}_{number:03}"
            names = [out / f"{stem}.png"]
            write_picture(outputs.file(names[0]), pictures[-1])
            if args.frames:
                names += [out / f"{stem}_strip.png", out / f"{stem}.gif"]
                write_picture(outputs.file(names[1]), _strip(pictures))
                times = [_FRAME] * (len(pictures) - 1) + [_LAST]
                pictures[0].save(
                    outputs.file(names[2]), save_all=True, append_images=pictures[1:], duration=times, loop=0
                )
            written += names
            advance(1)
    print_listed(written)
    made = "1 image" if len(jobs) == 1 else f"{len(jobs)} images"
    print(f"{made} in {out}: prompt {', '.join(spec[PROMPT])} (seed {args.seed})")


def _enlarged(picture: Image.Image, factor: int) -> Image.Image:
    return picture.resize((picture.width * factor, picture.height * factor), 0)


def _strip(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side."""
    from PIL import Image

    gap = 2
    width = sum(picture.width + gap for picture in pictures) - gap
    strip = Image.new(pictures[0].mode, (width, pictures[0].height), 255 if pictures[0].mode == "L" else "white")
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * (picture.width + gap), 0))
    return strip
