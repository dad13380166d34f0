"""``reconstruct``: what a tokenizer makes of samples in files."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from next_scale.cli import Outputs, add_model_options, as_tokenizer, progress, whole_number
from next_scale.commands.backend import Advance, Backend, Pair, Source
from next_scale.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from next_scale.tokenizer import Tokenizer

_PAIRS = 8  # on the sheet


def add_parser(subparsers: argparse._SubParsersAction, backend: Backend, description: str, epilog: str) -> None:
    """Add ``reconstruct`` for a backend."""
    parser = subparsers.add_parser("reconstruct", description=description, epilog=epilog)
    parser.add_argument(
        "input", metavar="IN", help=f"{backend.content} file ({', '.join(backend.typical)}, ...) or folder of such"
    )
    parser.add_argument("output", metavar="OUT", help=f"file to write ({written(backend)}), or folder where IN is one")
    add_scales(parser)
    parser.add_argument(
        f"--{backend.sheet_option}",
        dest="sheet",
        metavar="FILE.png",
        help=f"{backend.sheet} of originals and reconstructions",
    )
    backend.add_read_options(parser)
    add_model_options(parser, batched=backend.batched)
    parser.set_defaults(run=partial(run, backend=backend))


def written(backend: Backend) -> str:
    """``.wav, .flac or .ogg``: the suffixes of files that can be written."""
    *others, last = (f".{name}" for name in backend.formats)
    return f"{', '.join(others)} or {last}"


def add_scales(parser: argparse.ArgumentParser) -> None:
    """``--scales``."""
    parser.add_argument("--scales", type=whole_number(1), metavar="K", help="use the K coarsest scales (default: all)")


def check_scales(tokenizer: Tokenizer, scales: int | None) -> None:
    """Raise UserError where a tokenizer has not so many scales."""
    most = tokenizer.quantizer.scales
    if scales is not None and scales > most:
        raise UserError(f"--scales must be from 1 to {most}, the scales of this tokenizer, got {scales}")


def run(args: argparse.Namespace, backend: Backend) -> None:
    """Reconstruct a file or a folder."""
    if args.sheet:
        backend.check_sheet(Path(args.sheet))
    source, target = Path(args.input), Path(args.output)
    several = source.is_dir()
    if several:
        pairs = _pairs(source, target, backend)
    else:
        backend.check(source, args)
        backend.check_name(target)
        pairs = [(source, target)]
    if any(_same(old, new) for old, new in pairs):
        raise UserError(f"{target} would overwrite what is read; write elsewhere")
    tokenizer = as_tokenizer(backend.open_model(args.checkpoint, args.device))
    check_scales(tokenizer, args.scales)
    drawn: list[Pair] = []
    lines, skipped = [], []
    with Outputs() as outputs, progress("reconstructing", len(pairs)) as advance:
        if several:
            outputs.folder(target)
        sheet = outputs.file(args.sheet) if args.sheet else None
        for old, new in pairs:
            try:
                original = backend.read(old, tokenizer, args)
            except UserError as error:
                if not several:
                    raise
                skipped.append(str(error))
                advance(1)
                continue
            again, text = _reconstruct(tokenizer, original, args, backend, advance)
            if several:
                outputs.folder(new.parent)
            backend.write(outputs.file(new), again, tokenizer)
            lines.append(f"{new}: {text}")
            if len(drawn) < _PAIRS:
                drawn.append(Pair(old.name, original.sample, again))
        if not lines:
            raise UserError(f"{source} holds no {backend.content} file that can be read; first: {skipped[0]}")
        if sheet:
            backend.draw_pairs(sheet, drawn, tokenizer)
    for line in lines:
        print(line)
    for reason in skipped:
        print(f"{backend.program}: skipped: {reason}", file=sys.stderr)
    if several:
        print(f"{len(lines)} of {len(pairs)} files reconstructed in {target}")
    if sheet:
        print(f"{backend.sheet} in {args.sheet}")


def _reconstruct(
    tokenizer: Tokenizer, source: Source, args: argparse.Namespace, backend: Backend, advance: Advance
) -> tuple[Tensor, str]:
    """The sample decoded from the scales used, and what their tokens take."""
    from next_scale.token_file import code_bits

    def half(share: float) -> None:
        advance(share / 2)

    encoded = backend.encode(tokenizer, source, args.batch_size, half)
    again = backend.decode(tokenizer, encoded, args.scales, args.batch_size, half)
    tokens = len(encoded.tokens) * sum(encoded.schedule.counts[: args.scales])
    text = backend.rate_text(encoded.details, tokens * code_bits(tokenizer.quantizer.codebook_size), tokenizer)
    compared = backend.compare_text(source.sample, again)
    return again, f"{text}, {compared}" if compared else text


def _pairs(source: Path, target: Path, backend: Backend) -> list[tuple[Path, Path]]:
    """Every file of a folder that may hold a sample, and where its reconstruction goes: the same place within OUT."""
    suffix = f".{backend.formats[0]}"
    if target.suffix and not target.is_dir():
        raise UserError(f"{source} is a folder, so OUT must be one too, not {target}")
    suffixes = backend.suffixes()
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        some = f"{', '.join(backend.typical[:-1])} or {backend.typical[-1]}"
        raise UserError(f"{source} holds no {backend.content} file; give a folder with {some} files")
    pairs: dict[Path, Path] = {}
    for path in found:
        place = target / path.relative_to(source)
        new = place.with_suffix(suffix)
        pairs[place.with_name(f"{place.name}{suffix}") if new in pairs else new] = path
    return [(old, new) for new, old in pairs.items()]


def _same(old: Path, new: Path) -> bool:
    return new.exists() and new.samefile(old)
