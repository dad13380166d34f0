"""`audio-var data`: make and inspect data sets."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from next_scale.cli import Outputs, whole_number
from next_scale.errors import UserError

_DESCRIPTION = """Data sets to train on: render the Notes set, take a small subset of it, or look at what a folder of
your own recordings would give."""

_EPILOG = """example:
  audio-var data inspect samples/demo_notes"""

_NOTES = """Render the Notes set: every pitched preset of the FluidR3 GM sound font (recorded instruments, MIT licence)
at 49 pitches and 3 velocities, 16 kHz, one clip of 1.024 s a note, in 12 instrument families. Test notes are pitches
that training never hears of that preset. It needs fluidsynth and the sound font:
apt-get install fluidsynth fluid-soundfont-gm"""

_NOTES_EPILOG = """examples:
  audio-var data notes --out data/notes
  audio-var data notes --out data/notes_small --limit 8"""

_DEMO = """Take a small subset of rendered notes, spread over families, presets, pitches and velocities, as FLAC files:
the set in samples/demo_notes was made so."""

_DEMO_EPILOG = """example:
  audio-var data demo --notes data/notes --out data/demo_notes"""

_INSPECT = """Read a data set as training would and tell what is in it: classes, splits, clips, and every file that
would be skipped, with the reason. FOLDER holds rendered notes (it has a manifest.json), or audio files of any format
and rate, one sub-folder a class."""

_INSPECT_EPILOG = """example:
  audio-var data inspect samples/demo_notes"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``data`` and its subcommands."""
    parser = subparsers.add_parser("data", description=_DESCRIPTION, epilog=_EPILOG)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    notes = actions.add_parser("notes", help="render the Notes set", description=_NOTES, epilog=_NOTES_EPILOG)
    notes.add_argument("--out", default="data/notes", metavar="FOLDER", help="default: %(default)s, about 560 MB")
    notes.add_argument("--soundfont", metavar="FILE.sf2", help="default: FluidR3_GM.sf2 where Debian installs it")
    notes.add_argument("--limit", type=whole_number(1), metavar="N", help="render the first N presets only")
    notes.set_defaults(run=run_notes)

    demo = actions.add_parser("demo", help="take a small subset of it", description=_DEMO, epilog=_DEMO_EPILOG)
    demo.add_argument("--notes", default="data/notes", metavar="FOLDER", help="rendered notes (default: %(default)s)")
    demo.add_argument("--out", required=True, metavar="FOLDER", help="a folder that does not exist yet")
    demo.set_defaults(run=run_demo)

    inspect = actions.add_parser("inspect", help="what a data set holds", description=_INSPECT, epilog=_INSPECT_EPILOG)
    inspect.add_argument("folder", metavar="FOLDER")
    inspect.add_argument("--sample-rate", type=whole_number(1000), default=16_000, metavar="HZ", help="default: 16000")
    inspect.add_argument(
        "--clip-samples", type=whole_number(1), default=16_384, metavar="T", help="samples a clip (default: 16384)"
    )
    inspect.set_defaults(run=run_inspect)


def run_notes(args: argparse.Namespace) -> None:
    """Render the Notes set."""
    from audio_var.data.notes import render_notes

    manifest = render_notes(args.out, soundfont=args.soundfont, limit=args.limit, progress=sys.stderr.isatty())
    splits = Counter(manifest["splits"][split] for split in manifest["notes"]["split"])
    counts = ", ".join(f"{splits[name]:,} {name}" for name in manifest["splits"])
    print(f"{splits.total():,} notes of {len(manifest['presets'])} presets in {args.out}: {counts}")


def run_demo(args: argparse.Namespace) -> None:
    """Write a subset of the notes."""
    from audio_var.data.demo import write_demo_notes

    out = Path(args.out)
    if out.exists():
        raise UserError(f"{out} exists; name a new folder")
    with Outputs() as outputs:
        outputs.folder(out.parent)
        count = len(write_demo_notes(args.notes, outputs.file(out))["sha256"])
    print(f"{count} notes in {out}")


def run_inspect(args: argparse.Namespace) -> None:
    """Read everything once and print what was found."""
    from next_scale.commands.inspect import print_contents

    folder = Path(args.folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; check the path")
    kind, counts, skipped = (_notes if (folder / "manifest.json").is_file() else _folder)(folder, args)
    print_contents(f"{folder}: {kind}", counts, skipped, "clips")


def _notes(folder: Path, args: argparse.Namespace) -> tuple[str, Counter, list[tuple[str, str]]]:
    """Kind, (class, split) -> clips, and skipped files of rendered notes; checksums are verified."""
    from audio_var.data.notes import Notes

    notes = Notes(folder, "all", verify=True)
    columns, splits = notes.manifest["notes"], notes.manifest["splits"]
    labels = notes.condition_spec["label"]
    counts = Counter(
        (labels[family], splits[split]) for family, split in zip(columns["family"], columns["split"], strict=True)
    )
    pitches = notes.condition_spec["pitch"]
    kind = f"notes of {len(notes.presets)} presets, pitch {min(pitches)} to {max(pitches)}, {notes.sample_rate:,} Hz"
    return kind, counts, []


def _folder(folder: Path, args: argparse.Namespace) -> tuple[str, Counter, list[tuple[str, str]]]:
    """Kind, (class, split) -> clips, and skipped files of a folder of audio files; every file is decoded."""
    from audio_var.data.folder import AudioFolder
    from next_scale.commands.inspect import read_all
    from next_scale.splits import split_of

    data = read_all(lambda: AudioFolder(folder, args.sample_rate, args.clip_samples, "all"), "audio_var.data.folder")
    bad = {path for path, _ in data.skipped}
    labels = data.condition_spec["label"]
    counts = Counter(
        (labels[label], split_of(path.relative_to(folder).as_posix()))
        for path, label in zip(data.files, data.labels, strict=True)
        if str(path) not in bad
    )
    return f"audio files, read at {args.sample_rate:,} Hz", counts, data.skipped
