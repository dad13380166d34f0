"""``tokenize`` and ``detokenize``: between files of samples and token files."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from next_scale.cli import Outputs, add_model_options, as_tokenizer, progress
from next_scale.commands.backend import Backend, Encoded
from next_scale.commands.reconstruct import add_scales, check_scales, written
from next_scale.errors import UserError


def add_tokenize(subparsers: argparse._SubParsersAction, backend: Backend, description: str, epilog: str) -> None:
    """Add ``tokenize`` for a backend."""
    parser = subparsers.add_parser("tokenize", description=description, epilog=epilog)
    parser.add_argument("input", metavar="IN", help=f"{backend.content} file: {', '.join(backend.typical)}, ...")
    parser.add_argument("output", metavar="OUT.nst", help="token file to write")
    backend.add_read_options(parser)
    add_model_options(parser, batched=backend.batched)
    parser.set_defaults(run=partial(tokenize, backend=backend))


def add_detokenize(subparsers: argparse._SubParsersAction, backend: Backend, description: str, epilog: str) -> None:
    """Add ``detokenize`` for a backend."""
    parser = subparsers.add_parser("detokenize", description=description, epilog=epilog)
    parser.add_argument("input", metavar="IN.nst", help="token file")
    parser.add_argument("output", metavar="OUT", help=f"{backend.content} file to write: {written(backend)}")
    add_scales(parser)
    add_model_options(parser, batched=backend.batched)
    parser.set_defaults(run=partial(detokenize, backend=backend))


def tokenize(args: argparse.Namespace, backend: Backend) -> None:
    """File to token file."""
    from next_scale.model import fingerprint
    from next_scale.token_file import TokenFile, write_token_file

    source, target = Path(args.input), Path(args.output)
    backend.check(source, args)
    if target.suffix.lower() in backend.suffixes():
        raise UserError(f"{target} would be a token file under the name of {backend.a_file}; end it in .nst")
    tokenizer = as_tokenizer(backend.open_model(args.checkpoint, args.device))
    with Outputs() as outputs:
        made = outputs.file(target)
        original = backend.read(source, tokenizer, args)
        with progress("tokenizing", 1) as advance:
            encoded = backend.encode(tokenizer, original, args.batch_size, advance)
        file = TokenFile(
            encoded.tokens,
            encoded.schedule,
            tokenizer.quantizer.codebook_size,
            fingerprint(tokenizer),
            encoded.details,
        )
        size = write_token_file(made, file)
    print(f"{target}: {backend.rate_text(file.details, file.bits, tokenizer)}; file of {size:,} bytes")


def detokenize(args: argparse.Namespace, backend: Backend) -> None:
    """Token file to file."""
    from next_scale.model import fingerprint
    from next_scale.token_file import check_fingerprint, read_token_file

    source, target = Path(args.input), Path(args.output)
    backend.check_name(target)
    file = read_token_file(source)
    tokenizer = as_tokenizer(backend.open_model(args.checkpoint, args.device))
    check_fingerprint(file, fingerprint(tokenizer), source)
    check_scales(tokenizer, args.scales)
    encoded = Encoded(file.tokens, file.schedule, file.details)
    try:
        fits = file.codebook_size == tokenizer.quantizer.codebook_size and backend.fits(encoded, tokenizer)
    except UserError:  # what it describes is beyond any schedule
        fits = False
    if not fits:
        raise UserError(
            f"{source} does not describe its {backend.content} as this program does; "
            f"make it again with {backend.program} tokenize"
        )
    with Outputs() as outputs:
        made = outputs.file(target)
        with progress("decoding", 1) as advance:
            sample = backend.decode(tokenizer, encoded, args.scales, args.batch_size, advance)
        backend.write(made, sample, tokenizer)
    print(f"{target}: {backend.rate_text(file.details, file.bits, tokenizer)}")
