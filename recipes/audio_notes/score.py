"""The demo score, a French folk song of the 18th century in the public domain, and a check of how it was played.

    python -m recipes.audio_notes.score make samples/long/au_clair_de_la_lune.mid
    python -m recipes.audio_notes.score make samples/long/tune.mid --tune
    python -m recipes.audio_notes.score check samples/long/tune.mid song.wav

"Au clair de la lune": the tune (channel 1, flute) over a bass of one note a bar (channel 2, cello), 120 beats a minute.
The check measures the pitch of every note of a score of one voice, where it should sound, by `audio_var.pitch`, which
knows nothing of the score: its table has, for every pitch asked for, how many notes were found within 20 cents of it.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import mido
import torch

from audio_var.io import read_audio
from audio_var.perform import frequency_of
from audio_var.pitch import cents_between, estimate_pitch
from audio_var.score import read_score
from next_scale.cli import Parser, run_program
from next_scale.report import markdown_table

BEAT = 480  # ticks
_VERSE = [(72, 1), (72, 1), (72, 1), (74, 1), (76, 2), (74, 2), (72, 1), (76, 1), (74, 1), (74, 1), (72, 4)]
_MIDDLE = [(74, 1), (74, 1), (74, 1), (74, 1), (69, 2), (69, 2), (74, 1), (72, 1), (71, 1), (69, 1), (67, 4)]
TUNE = [*_VERSE, *_VERSE, *_MIDDLE, *_VERSE]  # MIDI pitch and beats
_BASS_VERSE = [(48, 4), (43, 4), (43, 4), (48, 4)]
_BASS_MIDDLE = [(50, 4), (50, 4), (50, 4), (43, 4)]
BASS = [*_BASS_VERSE, *_BASS_VERSE, *_BASS_MIDDLE, *_BASS_VERSE]


def track(notes: list[tuple[int, int]], channel: int, program: int, velocity: int) -> mido.MidiTrack:
    """A voice without rests; the first note of a bar a little louder."""
    made = mido.MidiTrack([mido.Message("program_change", channel=channel, program=program)])
    place = 0
    for pitch, beats in notes:
        loud = velocity + (10 if place % 4 == 0 else 0)
        made.append(mido.Message("note_on", channel=channel, note=pitch, velocity=loud))
        made.append(mido.Message("note_off", channel=channel, note=pitch, time=beats * BEAT))
        place += beats
    return made


def song(bass: bool) -> mido.MidiFile:
    """The demo score, or its tune alone."""
    midi = mido.MidiFile(ticks_per_beat=BEAT)
    midi.tracks.append(mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(120))]))
    midi.tracks.append(track(TUNE, 0, 73, 90))
    if bass:
        midi.tracks.append(track(BASS, 1, 42, 70))
    return midi


def check(score: str, sound: str) -> str:
    """A table of the pitches found in a file of sound, for every pitch of a score."""
    rate = 16_000
    samples = torch.from_numpy(read_audio(sound, rate))
    found: dict[int, list[float]] = defaultdict(list)
    for note in read_score(score).notes:
        part = samples[round(note.start * rate) : round((note.start + note.duration) * rate)]
        frequency, _ = estimate_pitch(part[None], rate)
        found[note.pitch].append(float(cents_between(frequency, torch.tensor([frequency_of(note.pitch)]))))
    rows = [
        [pitch, len(cents), sum(abs(c) < 20 for c in cents), f"{max(cents, key=abs):+.1f}"]
        for pitch, cents in sorted(found.items())
    ]
    total = [
        "all",
        *(sum(row[i] for row in rows) for i in (1, 2)),
        max((row[3] for row in rows), key=lambda c: abs(float(c))),
    ]
    return markdown_table(["MIDI pitch", "notes", "within 20 cents", "furthest, cents"], [*rows, total])


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m recipes.audio_notes.score", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="make|check")
    make = commands.add_parser("make", description="Write the demo score.")
    make.add_argument("score")
    make.add_argument("--tune", action="store_true", help="without the bass")
    checks = commands.add_parser("check", description="Measure the pitches of a score of one voice.")
    checks.add_argument("score")
    checks.add_argument("sound")
    args = parser.parse_args(argv)
    if args.command == "make":
        song(not args.tune).save(args.score)
    else:
        print(check(args.score, args.sound))


if __name__ == "__main__":
    sys.exit(run_program("score", main))
