"""Scores: what a MIDI file says, and one clear line for everything that can be wrong with one."""

import mido
import pytest

from audio_var.score import Note, read_score, within
from next_scale.errors import UserError


def write(path, messages, kind=1, beat=480):
    """A file of one track; times in beats of half a second, since the message before."""
    midi = mido.MidiFile(type=kind, ticks_per_beat=beat)
    midi.tracks.append(mido.MidiTrack(message.copy(time=round(message.time * beat)) for message in messages))
    midi.save(path)
    return path


def on(note, time=0, velocity=64, channel=0):
    return mido.Message("note_on", note=note, time=time, velocity=velocity, channel=channel)


def off(note, time=0, channel=0):
    return mido.Message("note_off", note=note, time=time, channel=channel)


def test_notes(tmp_path):
    messages = [
        mido.Message("program_change", program=73),
        *(on(60), on(64, 1, 100), off(60, 1)),  # overlapping
        *(on(64, 0, 0), on(60), on(60, 1), off(60, 1), on(60, 1, 0)),  # ended by velocity 0; the older one ends first
        mido.MetaMessage("set_tempo", tempo=1_000_000),
        *(on(67, 0, channel=1), off(67, 1, channel=1), on(35, 0, channel=9), off(35, channel=9), off(99)),
        *(on(72), mido.Message("control_change", control=7, value=1, time=2)),  # never ended
    ]
    score = read_score(write(tmp_path / "a.mid", messages))
    assert score.notes == (
        Note(0.0, 1.0, 60, 64, 73),
        Note(0.5, 0.5, 64, 100, 73),
        Note(1.0, 1.0, 60, 64, 73),
        Note(1.5, 1.0, 60, 64, 73),
        Note(2.5, 1.0, 67, 64, 0),
        Note(3.5, 2.0, 72, 64, 73),
    )
    assert score.drums == 1 and score.seconds == 5.5


def test_range():
    assert [within(pitch, 36, 84) for pitch in (0, 24, 35, 36, 60, 84, 85, 127)] == [36, 36, 47, 36, 60, 84, 73, 79]
    assert [within(pitch, 60, 62) for pitch in (48, 50, 59, 65, 73)] == [60, 62, 62, 60, 61]


def test_files_that_are_none(tmp_path):
    good = write(tmp_path / "good.mid", [on(60), off(60, 1)]).read_bytes()
    damaged = {"half": good[: len(good) // 2], "wav": b"RIFF" + bytes(60), "header": good[:14], "frames": None}
    damaged["frames"] = good[:12] + b"\xe8\x28" + good[14:]
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        if name != "header":
            with pytest.raises(UserError, match="is no readable MIDI|film frames"):
                read_score(tmp_path / name)
    for path, message in (("none.mid", "there is no file"), (".", "is a folder")):
        with pytest.raises(UserError, match=message):
            read_score(tmp_path / path)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        read_score(tmp_path / "empty")


@pytest.mark.parametrize(
    "messages, kind, message",
    [
        ([], 1, "has no notes"),
        ([on(60, channel=9), off(60, 1, channel=9)], 1, "no notes but drums"),
        ([on(60), off(60, 4000)], 1, "lasts 2,000 s"),
        ([on(60, 1e6), off(60, 1)], 1, "lasts 500,000 s"),
        ([on(60), off(60, 1)] * 20_001, 1, "20,001 notes"),
        ([on(60), off(60, 1)], 2, "type 2"),
    ],
)
def test_scores_that_cannot_be_played(tmp_path, messages, kind, message):
    with pytest.raises(UserError, match=message):
        read_score(write(tmp_path / "a.mid", messages, kind))
