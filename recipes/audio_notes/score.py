"""The demo score, a French folk song of the 18th century in the public domain, as a MIDI file.

    python -m recipes.audio_notes.score samples/long/au_clair_de_la_lune.mid

"Au clair de la lune": the tune (channel 1, flute) over a bass of one note a bar (channel 2, cello), 120 beats a minute.
"""

from __future__ import annotations

import sys

import mido

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


def song() -> mido.MidiFile:
    """The demo score."""
    midi = mido.MidiFile(ticks_per_beat=BEAT)
    midi.tracks.append(mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(120))]))
    midi.tracks += [track(TUNE, 0, 73, 90), track(BASS, 1, 42, 70)]
    return midi


if __name__ == "__main__":
    song().save(sys.argv[1])
