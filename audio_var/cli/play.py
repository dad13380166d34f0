"""`audio-var play`: a MIDI file, note by note through a model, as one audio file."""

from __future__ import annotations

import argparse
from pathlib import Path

from next_scale.cli import add_int8_option, add_model_options, add_sampling_options, whole_number

_DESCRIPTION = """Play a MIDI file. Every kind of note in it (label, pitch, velocity) is drawn by the model, in batches,
tuned, and mixed where it belongs.

Without --label the instruments are those of the file: every General MIDI program stands for the family that it belongs
to, and programs of no family (timpani, effects) for the keyboard. Channel 10, the drums, is left out. Notes out of the
model's range (the shipped one's is MIDI pitch 36 to 84) are moved by octaves into it; how many is said. Pedals and
bends are not played.

Pitch: of --candidates drawn of every kind of note, one that is in tune and sounds like the others of its instrument is
taken, and what it is still off is taken away by resampling. A model that is not told pitches is retuned all the way, by
two octaves at most, which moves formants too. Velocity: the nearest that the model knows is asked for, and loudness
goes with its square. Duration: a note is cut, with a fade of 80 ms; one longer than the model's (0.77 s) is held as
`audio-var generate --seconds` holds it. The same kind of note sounds the same each time."""

_EPILOG = """examples:
  audio-var play samples/long/au_clair_de_la_lune.mid --label flute --out song.wav
  audio-var play samples/long/au_clair_de_la_lune.mid --out song.flac --plot song.png --candidates 8 --seed 1"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``play``."""
    parser = subparsers.add_parser("play", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("score", metavar="SCORE.mid", help="Standard MIDI File of type 0 or 1, up to half an hour")
    parser.add_argument("--out", required=True, metavar="FILE", help="audio file to write: .wav, .flac or .ogg")
    parser.add_argument("--label", metavar="LABEL", help="class that plays all notes (default: by the file's programs)")
    parser.add_argument(
        "--candidates",
        type=whole_number(1, 64),
        default=4,
        metavar="N",
        help="drawn of every kind of note, for the best one (default: %(default)s)",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="also draw a spectrogram")
    add_sampling_options(parser)
    add_int8_option(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Play, write, and say what was made of it."""
    from audio_var.cli.backend import BACKEND
    from audio_var.cli.models import open_generator
    from audio_var.score import read_score
    from next_scale.cli import Outputs, progress, sampling_options
    from next_scale.commands.backend import Tile

    out = Path(args.out)
    BACKEND.check_name(out)
    if args.plot:
        BACKEND.check_sheet(Path(args.plot))
    score = read_score(args.score)
    model = open_generator(args.checkpoint, args.device).pack(args.int8)
    options = sampling_options(args, model.sampling)
    from audio_var.perform import perform

    with Outputs() as outputs, progress("playing", 1) as advance:
        target = outputs.file(out)
        drawn = outputs.file(args.plot) if args.plot else None
        played = perform(model, score, args.label, args.seed, options, args.candidates, args.batch_size, advance)
        BACKEND.write(target, played.sound[None], model.tokenizer)
        if drawn:
            BACKEND.draw(drawn, [Tile(out.name, "", played.sound[None])], 1, model.tokenizer)
    size = BACKEND.size_text(played.sound, model.tokenizer)
    off = played.cents.abs()
    print(f"{out}: {size}, {_count(len(score.notes), 'note')} of {_count(played.kinds, 'kind')} (seed {args.seed})")
    print(f"retuned by {off.median():.0f} cents in the median, {off.max():.0f} at most")
    if played.moved:
        print(f"{_count(played.moved, 'note')} out of the model's range, moved by octaves into it")
    if score.drums:
        print(f"{_count(score.drums, 'note')} of channel 10, drums, left out")
    if args.plot:
        print(f"spectrogram in {args.plot}")


def _count(number: int, noun: str) -> str:
    """``1 note``, ``2 notes``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
