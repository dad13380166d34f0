"""`image-var import` and `image-var verify`: VAR's published weights, and whether they compute what VAR's code does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from next_scale.cli import progress
from next_scale.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from next_scale.model import Generator
    from next_scale.tokenizer import Tokenizer

LIMIT = 1e-3

_IMPORT = """Turn VAR's published weights into a checkpoint of this program. All sizes are read off the files: every
released depth works, with adaptive norms a block or shared, at 256 or 512 pixels. Nothing in the files is executed.
Without --var the result is a tokenizer only, which `reconstruct`, `tokenize` and `fit` use."""

_IMPORT_EPILOG = """example:
  image-var import --vae vae_ch160v4096z32.pth --var var_d16.pth --out var-d16/
  image-var generate --checkpoint var-d16/ --label 207 --count 4 --out retrievers"""

_VERIFY = f"""Compare this program with what the published VAR code computed. A case is a safetensors file that holds
inputs, expected outputs, and the names and shapes of the weights, whose values follow from the names. Prints the
largest difference of each quantity; exits with code 1 where any token differs, or any value by more than {LIMIT:g}."""

_VERIFY_EPILOG = """example:
  image-var verify tests/goldens/var_tiny.safetensors"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``import`` and ``verify``."""
    parser = subparsers.add_parser("import", description=_IMPORT, epilog=_IMPORT_EPILOG)
    parser.add_argument("--vae", required=True, metavar="FILE", help="the autoencoder: .pth or .safetensors")
    parser.add_argument("--var", metavar="FILE", help="the transformer (default: import the tokenizer alone)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="checkpoint to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the weights on disk; they load as float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        type=int,
        metavar="SIDE",
        help="sides of the token maps, such as 1 2 3 4 5 6 8 10 13 16 (default: those that --var tells; for a "
        "tokenizer alone, these)",
    )
    parser.set_defaults(run=import_weights)

    parser = subparsers.add_parser("verify", description=_VERIFY, epilog=_VERIFY_EPILOG)
    parser.add_argument("cases", nargs="+", metavar="CASE.safetensors", help="cases to compare with")
    parser.set_defaults(run=verify)


def import_weights(args: argparse.Namespace) -> None:
    """Published files to a checkpoint."""
    import torch

    from image_var.published import SIDES_256, VAE, VAR, build_generator, build_tokenizer, read_weights, square_schedule
    from next_scale.checkpoint import save_pretrained

    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder to write the checkpoint into")
    with progress("importing", 4) as advance:
        vae = read_weights(args.vae, VAE)
        advance(1)
        var = read_weights(args.var, VAR) if args.var else None
        advance(1)
        if var is None:
            model = build_tokenizer(vae, square_schedule(args.scales or SIDES_256))
        else:
            model = build_generator(vae, var, args.scales)
        advance(1)
        save_pretrained(model, out, torch.float16 if args.dtype == "float16" else None)
        advance(1)
    print(f"{out}: {_summary(model)}")


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
        f"autoencoder {_millions(tokenizer)}",
    ]
    if tokenizer is not model:
        transformer = model.predictor.transformer
        classes = len(model.condition_spec["label"])
        shared = ", shared adaptive norms" if transformer.shared_modulation else ""
        parts.append(
            f"transformer {_millions(model.predictor)}: depth {transformer.depth}, width {transformer.width}, "
            f"{transformer.heads} heads{shared}; {classes:,} classes"
        )
    return ", ".join(parts)


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} M"


def verify(args: argparse.Namespace) -> int:
    """Print the differences; 1 where one is too large."""
    from image_var.verify import compare
    from next_scale.parity import read_case, report

    failed = False
    for path in args.cases:
        differences, others = compare(read_case(path))
        if len(args.cases) > 1:
            print(path)
        print(report(differences, LIMIT))
        if others:
            print(f"not compared: {', '.join(others)}")
        failed |= not all(item.passes(LIMIT) for item in differences)
    return int(failed)
