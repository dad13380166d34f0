"""`audio-var edit` with a real tiny model: what stays, what changes, how long it gets, and mistakes."""

import numpy as np
import pytest
import soundfile
import torch

from audio_var.editing import Editor, best_shift, check_span
from next_scale.errors import UserError

RATE = 16_000


def tone(seconds, rate=RATE, pitch=440.0):
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * time) * np.exp(-3 * time)).astype(np.float32)


def read(path):
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    return samples


@pytest.fixture
def note(tmp_path):
    """A file of 0.2 s, three windows of the tiny model and a bit."""
    soundfile.write(tmp_path / "in.wav", tone(0.2), RATE)
    return read(tmp_path / "in.wav")


@pytest.fixture
def edit(works, tiny_checkpoint):
    def run(*options, source="in.wav", out="out.wav"):
        return works("edit", source, out, "--checkpoint", tiny_checkpoint, "--device", "cpu", *options)

    return run


def test_only_the_span_changes(edit, note, tmp_path):
    text = edit("--inpaint", "0.1:0.13", "--label", "flute")
    assert text.splitlines() == ["out.wav", "1 clip of 0.20 s: 0.1 to 0.13 s drawn anew (seed 0)"]
    made = read(tmp_path / "out.wav")
    start, end, fade = 1600, 2080, 160
    assert np.array_equal(made[: start - fade], note[: start - fade])
    assert np.array_equal(made[end + fade :], note[end + fade :])
    assert np.abs(made[start:end] - note[start:end]).mean() > 0.01


def test_a_span_longer_than_a_window(edit, note, tmp_path):
    edit("--inpaint", "0.02:0.18")
    made = read(tmp_path / "out.wav")
    assert len(made) == len(note) and np.array_equal(made[:160], note[:160])
    assert np.array_equal(made[-160:], note[-160:])
    assert all(np.abs(part).max() > 0.001 for part in np.split(made[320:2880], 8))  # drawn all the way


def test_what_follows(edit, note, tmp_path):
    assert "0.15 s appended" in edit("--continue", "0.15", "--candidates", "2", "--passes", "2")
    made = read(tmp_path / "out.wav")
    assert len(made) == len(note) + 2400 and np.array_equal(made[: len(note) - 160], note[:-160])
    assert all(np.abs(part).max() > 0.001 for part in np.split(made[len(note) :], 6))


def test_seeds_counts_and_labels(edit, note, tmp_path):
    options = ("--inpaint", "0.1:0.13", "--label", "flute", "bass", "--count", "2")
    text = edit(*options, "--plot", "sheet.png")
    names = ["out_flute_000.wav", "out_flute_001.wav", "out_bass_000.wav", "out_bass_001.wav"]
    assert text.splitlines()[:4] == names and "spectrograms of 5 in sheet.png" in text
    made = [(tmp_path / name).read_bytes() for name in names]
    assert len(set(made)) == 4
    edit(*options)
    assert [(tmp_path / name).read_bytes() for name in names] == made
    edit(*options, "--seed", "1")
    assert all((tmp_path / name).read_bytes() != old for name, old in zip(names, made, strict=True))


def test_other_rates_channels_and_lengths(edit, tmp_path):
    """Two channels at 22,050 Hz become one at 16,000; a clip shorter than a window keeps its length."""
    stereo = np.stack([tone(0.05, 22_050)] * 2, 1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 22_050)
    text = edit("--inpaint", "0.02:0.03", source="stereo.wav")
    assert "; stereo.wav was resampled from 22,050 Hz and mixed to mono (seed 0)" in text
    made = read(tmp_path / "out.wav")
    assert made.shape == (800,) and np.abs(made[:160] - tone(0.05)[:160]).max() < 0.02


def test_variations(edit, note, tmp_path, tiny_generator):
    text = edit("--variation", "0", out="same.wav")
    assert "the coarsest 5 of 5 scales kept" in text
    again = Editor(tiny_generator).vary(torch.from_numpy(note), 0.0).numpy()
    assert np.abs(read(tmp_path / "same.wav") - again).max() < 1e-3
    made = {}
    for keep in ("coarse", "fine"):
        edit("--variation", "0.4", "--keep", keep, out=f"{keep}.wav")
        made[keep] = read(tmp_path / f"{keep}.wav")
        assert len(made[keep]) == len(note) and not np.array_equal(made[keep], read(tmp_path / "same.wav"))
    assert not np.array_equal(made["coarse"], made["fine"])
    assert "the coarsest 1 of 5 scales kept" in edit("--relabel", "brass")
    edit("--variation", "0.8", "--label", "brass", out="labelled.wav")  # which is the same
    assert (tmp_path / "out.wav").read_bytes() == (tmp_path / "labelled.wav").read_bytes()


def test_between_two(edit, note, tmp_path):
    soundfile.write(tmp_path / "other.wav", tone(0.3, pitch=880.0), RATE)
    made = {}
    for amount in (0, 0.5, 1):
        edit("--interpolate", "other.wav", "--amount", amount)
        made[amount] = read(tmp_path / "out.wav")
        assert len(made[amount]) == 4800
    edit("--interpolate", "in.wav", source="other.wav")
    assert np.abs(read(tmp_path / "out.wav") - made[0.5]).max() < 1e-3  # half-way is half-way from either side
    edit("--interpolate", "other.wav", "--amount", 1, source="other.wav")
    assert np.abs(read(tmp_path / "out.wav") - made[1]).max() < 1e-3


def test_repair(edit, note, tmp_path):
    noisy = note + 0.02 * np.random.default_rng(0).standard_normal(len(note)).astype(np.float32)
    soundfile.write(tmp_path / "noisy.wav", noisy, RATE)
    assert "noise taken off" in edit("--denoise", source="noisy.wav")
    made = read(tmp_path / "out.wav")
    assert made.shape == note.shape and 0 < np.linalg.norm(made) < np.linalg.norm(noisy)  # nothing gets louder
    soundfile.write(tmp_path / "low.wav", tone(0.2, 8_000), 8_000)
    assert "drawn above 4,000 Hz" in edit("--upsample", source="low.wav")
    spectrum = np.abs(np.fft.rfft(read(tmp_path / "out.wav")))
    assert spectrum.argmax() == 88 and spectrum[900:].max() > 20 * np.abs(np.fft.rfft(note))[900:].max()


def test_in_place_by_force_only(edit, note, tmp_path, fails, tiny_checkpoint):
    message = fails("edit", "in.wav", "in.wav", "--checkpoint", tiny_checkpoint, "--inpaint", "0.1:0.12")
    assert "in.wav is what is read: write elsewhere, or give --force" in message
    soundfile.write(tmp_path / "other_000.wav", note, RATE)
    options = ("--checkpoint", tiny_checkpoint, "--interpolate", "other_000.wav")
    assert "is what is read" in fails("edit", "in.wav", "other_000.wav", *options)
    soundfile.write(tmp_path / "a_any_000.wav", note, RATE)
    options = ("--checkpoint", tiny_checkpoint, "--inpaint", "0.1:0.12", "--count", "2")
    assert "a_any_000.wav is what is read" in fails("edit", "a_any_000.wav", "a.wav", *options)
    edit("--inpaint", "0.1:0.12", "--force", out="in.wav")
    assert not np.array_equal(read(tmp_path / "in.wav"), note)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "one of the arguments"),
        (["--inpaint", "0.1:0.2", "--continue", "1"], "not allowed with"),
        (["--inpaint", "0.1"], "must be START:END in seconds"),
        (["--inpaint", "a:b"], "must be START:END in seconds"),
        (["--inpaint", "nan:0.1"], "is empty"),
        (["--inpaint", "0.1:0.1"], "the span 0.1:0.1 is empty"),
        (["--inpaint", "0.15:0.1"], "is empty"),
        (["--inpaint=-0.1:0.1"], "reaches beyond the clip, which lasts 0.200 s"),
        (["--inpaint", "0.1:0.3"], "reaches beyond the clip, which lasts 0.200 s"),
        (["--inpaint", "0:0.2"], "is the whole clip"),
        (["--continue", "0"], "must be a number above 0"),
        (["--continue", "x"], "must be a number above 0"),
        (["--continue", "1e9"], "must be a number above 0, up to 600"),
        (["--variation", "1.5"], "must be a number from 0 to 1"),
        (["--variation", "nan"], "must be a number from 0 to 1"),
        (["--variation", "0.5", "--amount", "0.5"], "--amount is for --relabel and --interpolate"),
        (["--variation", "0.5", "--passes", "2"], "are for --inpaint and --continue"),
        (["--inpaint", "0.1:0.15", "--keep", "fine"], "is for --variation and --relabel"),
        (["--upsample"], "in.wav has 16,000 samples a second, and the model 16,000: --upsample takes a lower rate"),
        (["--relabel", "trumpet"], "unknown label 'trumpet'"),
        (["--relabel", "flute", "--label", "bass"], "--relabel says the label"),
        (["--interpolate", "missing.wav"], "missing.wav"),
        (["--inpaint", "0.1:0.15", "--pitch", "200"], "pitch 200 is out of range"),
        (["--inpaint", "0.1:0.15", "--plot", "sheet.gif"], "cannot draw sheet.gif"),
    ],
)
def test_mistakes(fails, tiny_checkpoint, note, options, message):
    assert message in fails("edit", "in.wav", "out.wav", "--checkpoint", tiny_checkpoint, *options)


def test_files_that_cannot_be(fails, tiny_checkpoint, tokenizer_checkpoint, note, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    asked = ("--checkpoint", tiny_checkpoint, "--inpaint", "0.1:0.15")
    assert "no file other.wav" in fails("edit", "other.wav", "out.wav", *asked)
    assert "is no readable audio file" in fails("edit", "broken.wav", "out.wav", *asked)
    assert "end the name in" in fails("edit", "in.wav", "out.mp3", *asked)
    assert "there is no folder" in fails("edit", "in.wav", "missing/out.wav", *asked)
    asked = ("--checkpoint", tokenizer_checkpoint, "--inpaint", "0.1:0.15")
    assert "holds a tokenizer only" in fails("edit", "in.wav", "out.wav", *asked)


def test_what_is_drawn_moves_to_where_it_fits():
    kept = torch.sin(torch.arange(1000) * 0.11)
    drawn = torch.sin(torch.arange(1000) * 0.11 + 2.0)
    moved = best_shift(kept, drawn, (400, 600), 100, 100, 40)
    assert (moved - kept)[400:600].abs().max() < 0.06 < 1.5 < (drawn - kept)[400:600].abs().max()
    assert torch.equal(best_shift(kept, kept, (0, 1000), 0, 0, 40), kept)
    assert torch.equal(best_shift(torch.zeros(1000), drawn, (400, 600), 100, 0, 40), drawn)


def test_progress_adds_up(tiny_generator):
    audio, told = torch.from_numpy(tone(0.3)), []
    editor = Editor(tiny_generator, advance=told.append)
    for edit in (
        lambda: editor.inpaint(audio, 0.05, 0.25),
        lambda: editor.continued(audio, 0.2),
        lambda: editor.vary(audio, 0.5),
        lambda: editor.denoise(audio),
        lambda: editor.upsample(audio, 4000.0),
    ):
        told.clear()
        edit()
        assert len(told) > 1 and sum(told) == pytest.approx(1)
    with pytest.raises(UserError, match="a line of samples"):
        editor.vary(audio[None], 0.5)


def test_spans():
    assert check_span(0.0, 0.5, 1.0) == (0.0, 0.5)
    with pytest.raises(UserError, match="is the whole clip"):
        check_span(0.0, 1.0005, 1.0)
