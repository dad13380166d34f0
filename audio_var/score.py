"""Scores: the notes of a Standard MIDI File, in seconds."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from next_scale.errors import UserError
from next_scale.files import check_readable

DRUMS = 9  # channel 10, counted from 0: its note numbers are drums, not pitches (General MIDI)
_MOST_BYTES = 10_000_000
_MOST_NOTES = 20_000
_MOST_SECONDS = 1800.0
_NO_PROGRAM = 0  # General MIDI's piano, until a program change


@dataclass(frozen=True)
class Note:
    """A note: `start` and `duration` in seconds, `pitch` and `velocity` (1 to 127) as in MIDI, `program` from 0."""

    start: float
    duration: float
    pitch: int
    velocity: int
    program: int = _NO_PROGRAM


@dataclass(frozen=True)
class Score:
    """Notes by their start, and how many there were on the channel of drums, which are left out."""

    notes: tuple[Note, ...]
    drums: int = 0

    @property
    def seconds(self) -> float:
        """When the last note ends."""
        return max(note.start + note.duration for note in self.notes)


def read_score(path: str | os.PathLike) -> Score:
    """Read a Standard MIDI File of type 0 or 1.

    A note lasts from its note-on to the note-off of its key and channel; one that none ends, to the end of the file.
    Program changes tell each note's instrument. Tempo changes count; pedals, bends and all other controllers do not.
    Channel 10, drums in General MIDI, is left out.

    Raises:
        UserError: no MIDI file, damaged, no notes, or more than 20,000 notes or half an hour.
    """
    import mido

    path = Path(path)
    check_readable(path, "a MIDI file", "export it again")
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} has more than {_MOST_BYTES / 1e6:.0f} MB: no score is so large; give a MIDI file")
    try:
        midi = mido.MidiFile(str(path), clip=True)
        messages = [] if midi.type == 2 or midi.ticks_per_beat <= 0 else list(midi)
    except Exception as error:  # mido has no error of its own: a damaged file raises whatever its bytes lead to
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"{path} is no readable MIDI file ({reason[0].rstrip('.')}): export it again") from error
    if midi.type == 2:
        raise UserError(f"{path} is a MIDI file of type 2, of independent patterns: export it as type 0 or 1")
    if midi.ticks_per_beat <= 0:
        raise UserError(f"{path} counts time in film frames, not in beats: export it with ticks per beat")
    score = _notes(messages)
    if not score.notes:
        only = " but drums (channel 10), which no model here plays" if score.drums else ""
        raise UserError(f"{path} has no notes{only}: give a score with a melody")
    if len(score.notes) > _MOST_NOTES:
        raise UserError(f"{path} has {len(score.notes):,} notes, more than {_MOST_NOTES:,}: cut it into pieces")
    if score.seconds > _MOST_SECONDS:
        raise UserError(f"{path} lasts {score.seconds:,.0f} s, more than {_MOST_SECONDS:,.0f} s: cut it into pieces")
    return score


def _notes(messages: Sequence) -> Score:
    """From mido's messages, whose times are seconds since the one before."""
    now, drums = 0.0, 0
    programs: dict[int, int] = defaultdict(lambda: _NO_PROGRAM)
    sounding: dict[tuple[int, int], deque[Note]] = defaultdict(deque)  # (channel, key) -> not yet ended, oldest first
    notes: list[Note] = []
    for message in messages:
        now += message.time
        if message.type == "program_change":
            programs[message.channel] = message.program
        elif message.type not in ("note_on", "note_off"):
            continue
        elif message.channel == DRUMS:
            drums += message.type == "note_on" and message.velocity > 0
        elif message.type == "note_on" and message.velocity > 0:
            note = Note(now, 0.0, message.note, message.velocity, programs[message.channel])
            sounding[message.channel, message.note].append(note)
        elif waiting := sounding[message.channel, message.note]:
            note = waiting.popleft()
            notes.append(replace(note, duration=now - note.start))
    notes += [replace(note, duration=now - note.start) for left in sounding.values() for note in left]
    return Score(tuple(sorted(notes, key=lambda note: (note.start, note.pitch))), drums)


def within(pitch: int, lowest: int, highest: int) -> int:
    """A pitch moved by octaves into a range, as little as it takes; to the nearest end where no octave of it fits."""
    if pitch < lowest:
        pitch += -(-(lowest - pitch) // 12) * 12
    elif pitch > highest:
        pitch -= -(-(pitch - highest) // 12) * 12
    return min(max(pitch, lowest), highest)
