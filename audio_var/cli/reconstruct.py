"""`audio-var reconstruct`: what a tokenizer makes of a recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from audio_var.cli.models import DEFAULT, open_tokenizer
from next_scale.cli import Outputs, add_model_options, progress, whole_number
from next_scale.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from next_scale.tokenizer import Tokenizer

_DESCRIPTION = """Encode audio into tokens and decode them again, to hear what a tokenizer keeps and what it loses.

Any length works: a recording is resampled to the codec's rate, mixed to mono, cut into windows of the model's length,
and joined again with short cross-fades. --scales K decodes the K coarsest scales only: what the first K steps of
generation decide. A folder is reconstructed file by file into another folder; files that cannot be read are named
and skipped."""

_EPILOG = """examples:
  audio-var reconstruct samples/demo_notes/flute flute_again --plot flute.png
  audio-var reconstruct song.mp3 song_coarse.wav --scales 8"""

_PLOTTED = 8  # pairs on the sheet


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``reconstruct``."""
    parser = subparsers.add_parser("reconstruct", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("input", metavar="IN", help="audio file (wav, flac, ogg, mp3, ...) or folder of such")
    parser.add_argument("output", metavar="OUT", help="file to write (.wav, .flac or .ogg), or folder where IN is one")
    parser.add_argument("--scales", type=whole_number(1), metavar="K", help="use the K coarsest scales (default: all)")
    parser.add_argument("--plot", metavar="FILE.png", help="spectrograms of originals and reconstructions")
    add_max_seconds(parser)
    add_model_options(parser, DEFAULT)
    parser.set_defaults(run=run)


def add_max_seconds(parser: argparse.ArgumentParser) -> None:
    """``--max-seconds``."""
    parser.add_argument(
        "--max-seconds", type=whole_number(1), default=600, metavar="N", help="refuse longer files (default: 600)"
    )


def run(args: argparse.Namespace) -> None:
    """Reconstruct a file or a folder."""
    from audio_var.cli.clips import check_scales
    from audio_var.io import check_audio, read_audio, write_audio
    from audio_var.plots import check_plot, spectrogram_sheet

    check_plot(args.plot)
    source, target = Path(args.input), Path(args.output)
    several = source.is_dir()
    if several:
        pairs = _pairs(source, target)
    else:
        check_audio(source, args.max_seconds)
        check_name(target)
        pairs = [(source, target)]
    if any(_same(old, new) for old, new in pairs):
        raise UserError(f"{target} would overwrite what is read; write elsewhere")
    tokenizer = open_tokenizer(args.checkpoint, args.device)
    check_scales(tokenizer, args.scales)
    rate = tokenizer.autoencoder.sample_rate
    sheet: list[tuple[str, np.ndarray]] = []
    lines, skipped = [], []
    with Outputs() as outputs:
        plot = None
        for old, new in pairs:
            try:
                audio = read_audio(old, rate, max_seconds=args.max_seconds)
            except UserError as error:
                if not several:
                    raise
                skipped.append(str(error))
                continue
            again, text = _reconstruct(tokenizer, audio, args.scales, args.batch_size)
            if several:
                outputs.folder(new.parent)
            write_audio(outputs.file(new), again, rate)
            lines.append(f"{new}: {text}")
            if len(sheet) < 2 * _PLOTTED:
                sheet += [(old.name, audio), (f"{old.name}, reconstructed", again)]
        if not lines:
            raise UserError(f"{source} holds no audio file that can be read; first: {skipped[0]}")
        if args.plot:
            plot = outputs.file(args.plot)
            spectrogram_sheet(plot, sheet, rate, columns=2)
    for line in lines:
        print(line)
    for reason in skipped:
        print(f"audio-var: skipped: {reason}", file=sys.stderr)
    if several:
        print(f"{len(lines)} of {len(pairs)} files reconstructed in {target}")
    if plot:
        print(f"spectrograms in {args.plot}")


def _reconstruct(
    tokenizer: Tokenizer, audio: np.ndarray, scales: int | None, batch_size: int
) -> tuple[np.ndarray, str]:
    """(T,) -> (T,), and what the tokens of the scales used take."""
    from audio_var.cli.clips import decode_audio, encode_audio, rate_text, schedule_of, windows_for
    from next_scale.token_file import code_bits

    count = windows_for(tokenizer, len(audio)).count
    with progress("reconstructing", 2 * count) as advance:
        tokens, windows = encode_audio(tokenizer, audio, batch_size, advance)
        again = decode_audio(tokenizer, tokens, windows, scales, batch_size, advance)
    counts = schedule_of(tokenizer, len(audio)).counts[:scales]
    bits = count * sum(counts) * code_bits(tokenizer.quantizer.codebook_size)
    return again, rate_text(windows, bits, tokenizer.autoencoder.sample_rate)


def _pairs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Every audio file of a folder, and where its reconstruction goes: the same place, as wav."""
    from audio_var.data.folder import SUFFIXES

    if target.suffix and not target.is_dir():
        raise UserError(f"{source} is a folder, so OUT must be one too, not {target}")
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"{source} holds no audio file; give a folder with wav, flac, ogg or mp3 files")
    pairs: dict[Path, Path] = {}
    for path in found:
        place = target / path.relative_to(source)
        new = place.with_suffix(".wav")
        pairs[place.with_name(f"{place.name}.wav") if new in pairs else new] = path
    return [(old, new) for new, old in pairs.items()]


def check_name(target: Path) -> None:
    """Raise UserError where no audio file can be written under this name."""
    from audio_var.io import FORMATS

    if target.suffix.lower() not in FORMATS:
        raise UserError(f"cannot write {target}: end the name in {', '.join(FORMATS)}")


def _same(old: Path, new: Path) -> bool:
    return new.exists() and new.samefile(old)
