"""Playing a score: the notes where they belong, as long and as loud as asked, in tune, the same for the same seed."""

import mido
import pytest
import soundfile
import torch

from audio_var.perform import _ended, _off, _retuned, frequency_of, perform
from audio_var.score import Note, Score

RATE = 16_000


@pytest.fixture
def midi(tmp_path):
    """A file with a note in range, one out of it, and a drum."""
    file = mido.MidiFile(ticks_per_beat=480)
    track = mido.MidiTrack([mido.Message("program_change", program=73)])
    for note, channel in ((60, 0), (100, 0), (40, 9), (60, 0)):
        track.append(mido.Message("note_on", note=note, channel=channel))
        track.append(mido.Message("note_off", note=note, channel=channel, time=240))
    file.tracks.append(track)
    file.save(tmp_path / "a.mid")
    return tmp_path / "a.mid"


def test_mix(tiny_generator):
    """Equal notes are one kind; starts, ends and loudness are those of the score."""
    notes = (Note(0.0, 0.3, 60, 100), Note(0.5, 0.3, 60, 50), Note(1.0, 0.1, 100, 100))
    played = perform(tiny_generator, Score(notes), "flute")
    sound = played.sound
    assert played.kinds == 3 and played.moved == 1 and len(played.cents) == 3  # velocities 80 and 45
    assert abs(float(sound.abs().max()) - 0.9) < 1e-3 and 1.1 < len(sound) / RATE < 1.5

    def level(start, stop):
        return float(sound[round(start * RATE) : round(stop * RATE)].square().mean().sqrt())

    assert level(0.4, 0.5) < 1e-4 < level(0.05, 0.3) and level(0.9, 1.0) < 1e-4 < level(1.0, 1.1)
    assert level(0.5, 0.8) < 0.7 * level(0.0, 0.3)
    again = perform(tiny_generator, Score(notes), "flute", batch_size=2)
    assert torch.allclose(again.sound, sound, atol=1e-3)
    assert not torch.allclose(
        perform(tiny_generator, Score(notes), "flute", seed=1).sound[:4000], sound[:4000], atol=1e-2
    )


def test_programs_and_labels(tiny_generator):
    """The same sound by a label and by a program of that family; another one by another."""
    flute = perform(tiny_generator, Score((Note(0.0, 0.05, 60, 80, 73),))).sound
    assert torch.equal(perform(tiny_generator, Score((Note(0.0, 0.05, 60, 80, 0),)), "flute").sound, flute)
    assert not torch.equal(perform(tiny_generator, Score((Note(0.0, 0.05, 60, 80, 33),))).sound, flute)


def tone(frequency, seconds=1.0):
    time = torch.arange(round(seconds * RATE)) / RATE
    return sum(torch.sin(2 * torch.pi * frequency * n * time) / n for n in (1, 2, 3, 4, 5)) * 0.2


def test_retuning():
    for pitch, off in ((60, 30.0), (48, -45.0), (72, 80.0), (60, 250.0)):
        sound = tone(frequency_of(pitch + off / 100))
        wanted = torch.tensor([frequency_of(pitch)])
        cents, octaves = _off(sound[None], wanted, RATE, told=True)
        assert abs(float(cents) - off) < 3 and octaves == 0
        tuned = _retuned(sound, 2 ** (-float(cents) / 1200), RATE)
        assert abs(float(_off(tuned[None], wanted, RATE, told=True)[0])) < 3
        assert abs(len(tuned) / len(sound) - 2 ** (off / 1200)) < 1e-3
    octave = tone(frequency_of(48))[None]  # as an organ's 16' stop sounds: left alone where pitches are told
    cents, octaves = _off(octave, torch.tensor([frequency_of(60)]), RATE, told=True)
    assert abs(float(cents)) < 3 and octaves == 1
    cents, octaves = _off(octave, torch.tensor([frequency_of(60)]), RATE, told=False)
    assert abs(float(cents) + 1200) < 3 and octaves == 0


def test_ends():
    sound = torch.ones(RATE)
    assert torch.equal(_ended(sound, 0.8, 0.25, RATE), sound)  # its own release
    cut = _ended(sound, 0.4, 0.25, RATE)
    assert len(cut) == round(0.48 * RATE) and cut[: round(0.4 * RATE)].min() == 1 and cut[-1] < 1e-3


def test_long_notes(tiny_generator):
    sound = perform(tiny_generator, Score((Note(0.0, 1.0, 60, 80),)), "flute").sound
    assert 1.0 <= len(sound) / RATE < 1.1 and sound[12_000:15_000].abs().max() > 0.05


def test_a_model_of_very_short_clips(tmp_path):
    """Clips of 64 samples, fewer than a window of the spectra that compare their timbre."""
    from next_scale.checkpoint import from_pretrained
    from tests.fuzz.seeds import model_folder

    sound = perform(from_pretrained(model_folder()), Score((Note(0.0, 0.1, 60, 80),)), "a").sound
    assert sound.isfinite().all() and 0.1 <= len(sound) / RATE < 0.3


def test_command(works, tiny_checkpoint, midi, tmp_path):
    argv = ["play", midi, "--checkpoint", tiny_checkpoint, "--device", "cpu"]
    out = works(*argv, "--label", "flute", "--out", "a.wav", "--plot", "a.png").splitlines()
    assert out[0].startswith("a.wav: 1.0") and out[0].endswith("3 notes of 2 kinds (seed 0)")
    assert out[2:] == [
        "1 note out of the model's range, moved by octaves into it",
        "1 note of channel 10, drums, left out",
        "spectrogram in a.png",
    ]
    works(*argv, "--out", "b.flac")  # the file's own program is a flute
    assert soundfile.info(tmp_path / "a.wav").frames == soundfile.info(tmp_path / "b.flac").frames


def test_models_that_are_not_told_pitches(works, other_checkpoint, midi):
    assert "3 notes of 2 kinds" in works("play", midi, "--checkpoint", other_checkpoint, "--out", "a.wav")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["a.mid", "--label", "flut", "--out", "b.wav"], "did you mean 'flute'?"),
        (["none.mid", "--out", "b.wav"], "there is no file none.mid"),
        (["a.mid", "--out", "b.mp3"], "end the name in"),
        (["a.mid", "--out", "none/b.wav"], "there is no folder none"),
        (["a.mid", "--out", "b.wav", "--plot", "b.gif"], "cannot draw b.gif"),
        (["a.mid", "--out", "b.wav", "--candidates", 0], "must be from 1 to 64"),
        (["a.mid"], "--out"),
    ],
)
def test_mistakes(fails, tiny_checkpoint, midi, argv, message):
    assert message in fails("play", *argv, "--checkpoint", tiny_checkpoint, "--device", "cpu")
