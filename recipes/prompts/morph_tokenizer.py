"""A tokenizer for the morph: a trained autoencoder with new codebooks, for images and for images that begin as words.

    python -m recipes.prompts.morph_tokenizer --out runs/prompts/morph_tokenizer

Codebooks of fine scales, as training leaves them, hold the little that is missing there. A pyramid that begins as words
lacks more: the codes cannot take the words away again. Here k-means places all codebooks on pyramids of both kinds. The
table it prints says how well images come out of pyramids that begin with so many scales of words.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from image_var.cli.models import open_tokenizer
from image_var.data.captions import FashionCaptions
from image_var.data.datamodule import FASHION, ImageDataModule
from image_var.metrics import psnr, squared_error
from next_scale.checkpoint import save_pretrained
from next_scale.cli import Parser, progress, run_program, whole_number
from next_scale.morph import default_scales, draw_samples, morph_tokens, place_codebooks
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer

SCHEDULE = "1x1 2x2 4x4 8x8 8x8 8x8 8x8 8x8"
_BATCH = 128


@torch.inference_mode()
def read(tokenizer: Tokenizer, data: Dataset, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random images (N, C, H, W), their latents, and those of words that name them, (N, C, *grid) each."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data), generator=generator)[:count].tolist()
    captions, names = FashionCaptions(brief=True), data.condition_spec["label"]
    images, texts = [], []
    for index in chosen:
        item = data[index]
        images.append(item["sample"])
        texts.append(captions.caption({"label": names[item["condition"]["label"]]}, generator=generator))
    encode = tokenizer.autoencoder.encode
    known = sorted(set(texts))
    drawn = dict(zip(known, encode(draw_samples(tokenizer, known)).cpu(), strict=True))
    latents, samples = [], torch.stack(images)
    with progress("encoding", len(samples)) as advance:
        for part in samples.split(_BATCH):
            latents.append(encode(part.to(tokenizer.device)).cpu())
            advance(len(part))
    return samples, torch.cat(latents), torch.stack([drawn[text] for text in texts])


@torch.inference_mode()
def quality(tokenizer: Tokenizer, images: Tensor, latents: Tensor, words: Tensor) -> list[float]:
    """PSNR in dB of images from pyramids that begin with 0, 1, ... scales of words."""
    quantizer, found = tokenizer.quantizer, []
    words = quantizer.encode(words)
    for count in range(default_scales(quantizer.schedule) + 1):
        tokens = morph_tokens(quantizer, words, latents, torch.full((len(latents),), count))
        found.append(float(psnr(squared_error(images, tokenizer.decode(tokens)).mean())))
    return found


def run(args: argparse.Namespace) -> None:
    """Place the codebooks, save, and print the table."""
    torch.manual_seed(args.seed)
    own = open_tokenizer(args.tokenizer, "cpu")
    schedule = Schedule.parse(args.schedule)
    module = ImageDataModule(args.data, channels=own.autoencoder.channels_in)
    quantizer = MultiScaleQuantizer(schedule, own.autoencoder.latent_channels, args.codes, phis=0).eval()
    tokenizer = Tokenizer(own.autoencoder, quantizer).eval()
    _, latents, words = read(tokenizer, module.dataset("train"), args.samples, args.seed)
    place_codebooks(quantizer, latents, words)
    save_pretrained(tokenizer, args.out)
    found = quality(tokenizer, *read(tokenizer, module.dataset("validation"), 256, args.seed))
    print("| scales of words | PSNR of the image, dB |\n|---|---|")
    for count, value in enumerate(found):
        print(f"| {count} | {value:.2f} |")
    print(f"tokenizer of {schedule.length} tokens in {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 2 after a mistake, told in one line."""

    def parse(argv: list[str]) -> None:
        parser = Parser(prog="python -m recipes.prompts.morph_tokenizer", description=__doc__)
        parser.add_argument("--tokenizer", metavar="PATH", help="whose autoencoder is kept (default: the shipped one)")
        parser.add_argument("--data", default=FASHION, help="as of the recipes' data.source (default: %(default)s)")
        parser.add_argument("--out", default="runs/prompts/morph_tokenizer", metavar="FOLDER")
        parser.add_argument("--schedule", default=SCHEDULE, help="default: %(default)s")
        parser.add_argument("--codes", type=whole_number(2), default=512, help="of each codebook (default: 512)")
        parser.add_argument("--samples", type=whole_number(2), default=8000, help="images for k-means (default: 8000)")
        parser.add_argument("--seed", type=whole_number(0), default=0)
        run(parser.parse_args(argv))

    return run_program("morph_tokenizer", parse, argv)


if __name__ == "__main__":
    sys.exit(main())
