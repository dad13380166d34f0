"""`audio-var tokenize` and `audio-var detokenize`: between audio files and token files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from audio_var.cli.models import DEFAULT, open_tokenizer
from audio_var.cli.reconstruct import add_max_seconds, check_name
from next_scale.cli import Outputs, add_model_options, progress, whole_number
from next_scale.errors import UserError

if TYPE_CHECKING:
    from audio_var.cli.clips import Windows
    from next_scale.token_file import TokenFile
    from next_scale.tokenizer import Tokenizer

_TOKENIZE = """Encode an audio file into a compact file of tokens: bit-packed codes, with the schedule of scales and the
fingerprint of the tokenizer in the header, and a checksum at the end. Only the tokenizer that made it can decode it."""

_TOKENIZE_EPILOG = """example:
  audio-var tokenize samples/demo_notes/flute/000-072-p66-v080.flac note.nst
  audio-var detokenize note.nst note.wav"""

_DETOKENIZE = """Decode a file of tokens, made by `audio-var tokenize` with the same checkpoint, into audio. The result
is that of `audio-var reconstruct`. --scales K uses the K coarsest scales only."""

_DETOKENIZE_EPILOG = """example:
  audio-var tokenize song.mp3 song.nst
  audio-var detokenize song.nst song.wav"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``tokenize`` and ``detokenize``."""
    parser = subparsers.add_parser("tokenize", description=_TOKENIZE, epilog=_TOKENIZE_EPILOG)
    parser.add_argument("input", metavar="IN", help="audio file: wav, flac, ogg, mp3, ...")
    parser.add_argument("output", metavar="OUT.nst", help="token file to write")
    add_max_seconds(parser)
    add_model_options(parser, DEFAULT)
    parser.set_defaults(run=tokenize)

    parser = subparsers.add_parser("detokenize", description=_DETOKENIZE, epilog=_DETOKENIZE_EPILOG)
    parser.add_argument("input", metavar="IN.nst", help="token file")
    parser.add_argument("output", metavar="OUT", help="audio file to write: .wav, .flac or .ogg")
    parser.add_argument("--scales", type=whole_number(1), metavar="K", help="use the K coarsest scales (default: all)")
    add_model_options(parser, DEFAULT)
    parser.set_defaults(run=detokenize)


def tokenize(args: argparse.Namespace) -> None:
    """Audio file to token file."""
    from audio_var.cli.clips import encode_audio, rate_text, schedule_of, windows_for
    from audio_var.io import FORMATS, check_audio, read_audio
    from next_scale.model import fingerprint
    from next_scale.token_file import TokenFile, write_token_file

    source, target = Path(args.input), Path(args.output)
    check_audio(source, args.max_seconds)
    if target.suffix.lower() in FORMATS:
        raise UserError(f"{target} would be a token file under the name of an audio file; end it in .nst")
    tokenizer = open_tokenizer(args.checkpoint, args.device)
    rate = tokenizer.autoencoder.sample_rate
    with Outputs() as outputs:
        partial = outputs.file(target)
        audio = read_audio(source, rate, max_seconds=args.max_seconds)
        with progress("tokenizing", windows_for(tokenizer, len(audio)).count) as advance:
            tokens, windows = encode_audio(tokenizer, audio, args.batch_size, advance)
        file = TokenFile(
            tokens,
            schedule_of(tokenizer, len(audio)),
            tokenizer.quantizer.codebook_size,
            fingerprint(tokenizer),
            {"sample_rate": rate, "samples": windows.samples, "fade": windows.fade},
        )
        size = write_token_file(partial, file)
    print(f"{target}: {rate_text(windows, file.bits, rate)}; file of {size:,} bytes")


def detokenize(args: argparse.Namespace) -> None:
    """Token file to audio file."""
    from audio_var.cli.clips import check_scales, decode_audio, rate_text
    from audio_var.io import write_audio
    from next_scale.model import fingerprint
    from next_scale.token_file import check_fingerprint, read_token_file

    source, target = Path(args.input), Path(args.output)
    check_name(target)
    file = read_token_file(source)
    tokenizer = open_tokenizer(args.checkpoint, args.device)
    check_fingerprint(file, fingerprint(tokenizer), source)
    check_scales(tokenizer, args.scales)
    windows = _windows(file, tokenizer, source)
    rate = tokenizer.autoencoder.sample_rate
    with Outputs() as outputs:
        partial = outputs.file(target)
        with progress("decoding", windows.count) as advance:
            audio = decode_audio(tokenizer, file.tokens, windows, args.scales, args.batch_size, advance)
        write_audio(partial, audio, rate)
    print(f"{target}: {rate_text(windows, file.bits, rate)}")


def _windows(file: TokenFile, tokenizer: Tokenizer, path: Path) -> Windows:
    """How the recording was cut. Raises UserError where the file's details do not fit its tokens."""
    from audio_var.cli.clips import schedule_of, windows_for

    samples = file.details.get("samples")
    if type(samples) is int and samples > 0:
        windows = windows_for(tokenizer, samples)
        schedule, rate = schedule_of(tokenizer, samples), tokenizer.autoencoder.sample_rate
        described = file.schedule, file.codebook_size, file.details.get("sample_rate"), file.details.get("fade")
        expected = schedule, tokenizer.quantizer.codebook_size, rate, windows.fade
        if described == expected and windows.count == len(file.tokens):
            return windows
    raise UserError(f"{path} does not describe its audio as this program does; make it again with audio-var tokenize")
