"""`image-var import` and `image-var verify`: VAR's published weights, and whether they compute what VAR's code does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from next_scale.commands.published import add_import, add_verify, millions, write_imported

if TYPE_CHECKING:
    from next_scale.model import Generator
    from next_scale.tokenizer import Tokenizer

_IMPORT = """Turn VAR's published weights into a checkpoint of this program. All sizes are read off the files: every
released depth works, with adaptive norms a block or shared, at 256 or 512 pixels. Nothing in the files is executed.
Without --var the result is a tokenizer only, which `reconstruct`, `tokenize` and `fit` use."""

_IMPORT_EPILOG = """example:
  image-var import --vae vae_ch160v4096z32.pth --var var_d16.pth --out var-d16/
  image-var generate --checkpoint var-d16/ --label 207 --count 4 --out retrievers"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``import`` and ``verify``."""
    parser = add_import(subparsers, _IMPORT, _IMPORT_EPILOG)
    parser.add_argument("--vae", required=True, metavar="FILE", help="the autoencoder: .pth or .safetensors")
    parser.add_argument("--var", metavar="FILE", help="the transformer (default: import the tokenizer alone)")
    parser.add_argument(
        "--scales",
        nargs="+",
        type=int,
        metavar="SIDE",
        help="sides of the token maps, such as 1 2 3 4 5 6 8 10 13 16 (default: those that --var tells; for a "
        "tokenizer alone, these)",
    )
    parser.set_defaults(run=import_weights)

    add_verify(subparsers, "image-var verify tests/goldens/var_tiny.safetensors", _compare)


def _compare() -> Callable:
    from image_var.verify import compare

    return compare


def import_weights(args: argparse.Namespace) -> None:
    """Published files to a checkpoint."""
    from image_var.published import SIDES_256, VAE, VAR, build_generator, build_tokenizer, square_schedule
    from next_scale.published import read_weights

    def build(advance: Callable[[int], None]) -> Tokenizer | Generator:
        vae = read_weights(args.vae, VAE, [VAR])
        advance(1)
        var = read_weights(args.var, VAR, [VAE]) if args.var else None
        advance(1)
        if var is None:
            model = build_tokenizer(vae, square_schedule(args.scales or SIDES_256))
        else:
            model = build_generator(vae, var, args.scales)
        advance(1)
        return model

    write_imported(args, build, _summary)


def _summary(model: Tokenizer | Generator) -> str:
    """What was imported, in one line."""
    from next_scale.model import tokenizer_of

    tokenizer = tokenizer_of(model)
    autoencoder, quantizer = tokenizer.autoencoder, tokenizer.quantizer
    sides = [side * autoencoder.downsampling for side in reversed(quantizer.schedule.grid)]
    parts = [
        f"{'x'.join(map(str, sides))} pixels",
        f"{quantizer.scales} scales ({', '.join(str(size[0]) for size in quantizer.schedule.sizes)})",
        f"{quantizer.codebook_size:,} codes",
        f"autoencoder {millions(tokenizer)}",
    ]
    if tokenizer is not model:
        transformer = model.predictor.transformer
        classes = len(model.condition_spec["label"])
        shared = ", shared adaptive norms" if transformer.shared_modulation else ""
        parts.append(
            f"transformer {millions(model.predictor)}: depth {transformer.depth}, width {transformer.width}, "
            f"{transformer.heads} heads{shared}; {classes:,} classes"
        )
    return ", ".join(parts)
