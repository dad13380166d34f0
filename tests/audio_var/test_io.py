"""Reading and writing audio files: round trips, and one clear sentence for each kind of bad file."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_var import io
from audio_var.io import read_audio, write_audio
from next_scale.errors import UserError

RATE = 16_000


def tone(seconds=0.5, rate=RATE, frequency=440.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 2**-15), (".flac", 2**-15), (".OGG", 0.05)])
def test_round_trip(tmp_path, suffix, tolerance):
    path = tmp_path / f"tone{suffix}"
    write_audio(path, tone(), RATE)
    samples = read_audio(path, RATE)
    assert samples.dtype == np.float32 and samples.shape == (8_000,)
    assert np.abs(samples - tone()).max() <= tolerance
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # no partial file is left


def test_write_replaces_clips_and_keeps_usual_permissions(tmp_path):
    path, other = tmp_path / "a.wav", tmp_path / "other"
    path.write_text("old")
    other.write_text("")
    write_audio(path, np.array([0, 2, -2], np.float32), RATE)
    samples = read_audio(path, RATE)
    assert samples[1] > 0.999 and samples[2] == -1
    assert soundfile.info(path).subtype == "PCM_16"
    assert path.stat().st_mode == other.stat().st_mode


def test_long_ogg(tmp_path):
    write_audio(tmp_path / "long.ogg", tone(60), RATE)
    assert len(read_audio(tmp_path / "long.ogg", RATE)) == 60 * RATE


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000, 44_101])
def test_resampling_keeps_the_pitch(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1.0, rate), rate)
    samples = read_audio(tmp_path / "a.wav", RATE)
    assert abs(len(samples) - RATE) <= 1
    assert np.abs(samples[1000:-1000] - tone(1.0)[1000:][: len(samples) - 2000]).max() < 2e-3


def test_stereo_is_mixed_or_kept(tmp_path):
    stereo = np.stack([tone(), -0.5 * tone()], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", RATE), stereo.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", RATE, mono=False), stereo.T, atol=1e-6)


def _corrupt_flac(path):
    soundfile.write(path, tone(2.0), RATE, format="FLAC")
    data = bytearray(path.read_bytes())
    data[len(data) // 3 :] = bytes(len(data) - len(data) // 3)
    path.write_bytes(data)


BAD = {
    "missing": (lambda path: None, "there is no file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "text": (lambda path: path.write_text("no audio here " * 20), "is no readable audio file"),
    "header only": (lambda path: path.write_bytes(b"RIFF\x24\x00\x00\x00WAVE"), "is no readable audio file"),
    "damaged": (_corrupt_flac, "is damaged"),
    "no samples": (lambda path: soundfile.write(path, np.zeros(0), RATE, format="WAV"), "holds no samples"),
    "nan": (
        lambda path: soundfile.write(path, np.array([0, np.nan, 0]), RATE, "FLOAT", format="WAV"),
        "not finite",
    ),
    "infinity": (lambda path: soundfile.write(path, np.array([np.inf]), RATE, "FLOAT", format="WAV"), "not finite"),
    "eight channels": (lambda path: soundfile.write(path, np.zeros((9, 8)), RATE, format="WAV"), "has 8 channels"),
    "long": (
        lambda path: soundfile.write(path, np.zeros(700 * 8000), 8000, format="WAV"),
        "lasts 700 s, more than 600",
    ),
    "slow": (lambda path: soundfile.write(path, np.zeros(50), 10, format="WAV"), "10 samples a second"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_explained_in_one_line(tmp_path, kind):
    path = tmp_path / "bad.wav"
    make, message = BAD[kind]
    make(path)
    with pytest.raises(UserError) as caught:
        read_audio(path, RATE)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_long_file_is_refused_before_decoding(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(2.0), RATE)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *arguments, **options: pytest.fail("decoded"))
    with pytest.raises(UserError, match="cut it into pieces"):
        read_audio(tmp_path / "a.wav", RATE, max_seconds=1.5)


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("a.mp4", tone(), "end the name in .wav, .flac, .ogg"),
        ("none", tone(), "end the name in"),
        ("a.wav", np.array([np.nan], np.float32), "not finite"),
        ("a.wav", np.zeros(0, np.float32), "expected samples of shape"),
        ("a.wav", np.zeros((2, 9), np.float32), "expected samples of shape"),
        ("nowhere/a.wav", tone(), "there is no folder"),
        ("folder.wav", tone(), "is a folder"),
    ],
)
def test_bad_writes(tmp_path, name, samples, message):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(UserError, match=message):
        write_audio(tmp_path / name, samples, RATE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.wav"]


def test_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    write_audio(path, tone(), RATE)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_audio(path, tone(1.0), RATE)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.wav"]


def test_import_is_light():
    code = "import sys, audio_var.io; print(sorted({'librosa', 'torch', 'soundfile', 'lightning'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_only_the_start(tmp_path):
    """The first seconds alone are those of the whole file."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 1_000_000), 44_100)
    whole = read_audio(tmp_path / "a.wav", 16_000)
    start = read_audio(tmp_path / "a.wav", 16_000, max_seconds=None, first=2.0)
    assert 2 * 16_000 <= len(start) < len(whole) / 3
    np.testing.assert_array_equal(start[: 2 * 16_000], whole[: 2 * 16_000])
