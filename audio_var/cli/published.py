"""`audio-var import` and `verify`: the published weights of SAT and AAR, and whether they compute the same."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from next_scale.cli import whole_number
from next_scale.commands.published import add_import, add_verify, millions, write_imported

if TYPE_CHECKING:
    from next_scale.model import Generator
    from next_scale.tokenizer import Tokenizer

_IMPORT = """Turn the published weights of AAR and its tokenizer SAT (arXiv 2408.09027) into a checkpoint of this
program. All sizes are read off the files: every released variant works, whichever way its weight norm is written.
Nothing in the files is executed. Without --aar the result is a tokenizer only, which `reconstruct`, `tokenize` and
`fit` use."""

_IMPORT_EPILOG = """example:
  audio-var import --sat SAT.pth --aar AAR.pth --out aar/
  audio-var generate --checkpoint aar/ --prompt "dog barking" --count 4 --out dogs"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``import`` and ``verify``."""
    parser = add_import(subparsers, _IMPORT, _IMPORT_EPILOG)
    parser.add_argument("--sat", required=True, metavar="FILE", help="the tokenizer: .pth or .safetensors")
    parser.add_argument("--aar", metavar="FILE", help="the transformer (default: import the tokenizer alone)")
    parser.add_argument(
        "--scales",
        nargs="+",
        type=whole_number(1),
        metavar="LENGTH",
        help="lengths of the token maps (default: those that --aar tells, else the published 1 2 4 6 ... 66 75)",
    )
    parser.add_argument(
        "--sample-rate", type=whole_number(1000, 192_000), default=24000, metavar="HZ", help="default: %(default)s"
    )
    parser.add_argument("--causal", action="store_true", help="the codec pads only the past (the released ones do not)")
    parser.set_defaults(run=import_weights)
    add_verify(subparsers, "audio-var verify tests/goldens/aar_tiny.safetensors", _compare)


def _compare() -> Callable:
    from audio_var.verify import compare

    return compare


def import_weights(args: argparse.Namespace) -> None:
    """Published files to a checkpoint."""
    from audio_var.published import AAR, SAT, build_generator, build_tokenizer, schedule_of
    from next_scale.published import read_weights

    def build(advance: Callable[[int], None]) -> Tokenizer | Generator:
        sat = read_weights(args.sat, SAT, [AAR])
        advance(1)
        aar = read_weights(args.aar, AAR, [SAT]) if args.aar else None
        advance(1)
        options = {"sample_rate": args.sample_rate, "causal": args.causal}
        if aar is None:
            model = build_tokenizer(sat, schedule_of(sat, None, args.scales), **options)
        else:
            model = build_generator(sat, aar, args.scales, **options)
        advance(1)
        return model

    write_imported(args, build, _summary)


def _summary(model: Tokenizer | Generator) -> str:
    """What was imported, in one line."""
    from next_scale.model import tokenizer_of

    tokenizer = tokenizer_of(model)
    codec, quantizer = tokenizer.autoencoder, tokenizer.quantizer
    seconds = quantizer.schedule.grid[0] * codec.hop / codec.sample_rate
    parts = [
        f"clips of {seconds:.2f} s at {codec.sample_rate:,} Hz",
        f"{quantizer.scales} scales ({quantizer.schedule}), {quantizer.schedule.length} tokens",
        f"codebooks of {quantizer.codebook_size:,}",
        f"codec {millions(tokenizer)}",
    ]
    if tokenizer is not model:
        transformer = model.predictor.transformer
        size = next(iter(model.vectors.values()))
        parts.append(
            f"transformer {millions(model.predictor)}: depth {transformer.depth}, width {transformer.width}, "
            f"{transformer.heads} heads; embeddings of {size}"
        )
    return ", ".join(parts)
