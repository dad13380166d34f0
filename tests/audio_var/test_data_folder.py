"""A folder of audio files: classes, splits, crops, loudness, silence, and files that cannot be used."""

import logging

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from audio_var.data.folder import AudioFolder, normalize_loudness, split_of
from next_scale.errors import UserError

RATE, CLIP = 16_000, 4_096


def tone(seconds, frequency=440.0, rate=RATE):
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def plain(folder, **options):
    return AudioFolder(folder, RATE, CLIP, **{"split": "all", "loudness": None, "trim_silence_db": None} | options)


@pytest.fixture
def folder(tmp_path):
    for name, frequency in (("low", 220), ("high", 880)):
        (tmp_path / name / "deep").mkdir(parents=True)
        soundfile.write(tmp_path / name / "a.wav", tone(1.0, frequency), RATE)
        soundfile.write(tmp_path / name / "deep" / "b.flac", tone(1.0, frequency), RATE)
    (tmp_path / "README.md").write_text("not audio, not mentioned")
    return tmp_path


def test_sub_folders_are_classes(folder):
    data = plain(folder)
    assert data.condition_spec == {"label": ["high", "low"]} and len(data) == 4 and data.skipped == []
    for index, path in enumerate(data.files):
        item = data[index]
        assert item["sample"].shape == (1, CLIP) and item["sample"].dtype == torch.float32
        assert data.condition_spec["label"][item["condition"]["label"]] == path.relative_to(folder).parts[0]


def test_files_without_sub_folders_are_one_class(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.5), RATE)
    assert plain(tmp_path).condition_spec == {"label": [tmp_path.name]}


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64"])
def test_formats(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", tone(1.0), RATE)
    clip = plain(tmp_path)[0]["sample"]
    assert clip.square().mean().sqrt() == pytest.approx(0.3 / 2**0.5, rel=0.1)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_a_crop_of_a_resampled_file_has_clean_edges(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(2.0, 440, rate), rate, "FLOAT")
    clip = plain(tmp_path, random_crop=False)[0]["sample"][0].numpy()
    assert np.abs(clip[200:] - tone(1.0)[200:CLIP]).max() < 5e-3
    torch.manual_seed(3)
    clip = plain(tmp_path, random_crop=True)[0]["sample"][0].numpy()
    peaks = np.abs(clip[: CLIP // 80 * 80].reshape(-1, 80)).max(axis=1)  # (T,) -> (windows, 5 ms)
    assert peaks.min() > 0.28 and peaks.max() < 0.31


def test_stereo_is_mixed_and_short_clips_are_padded(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(0.1), np.zeros(1600)], axis=1), RATE)
    clip = plain(tmp_path)[0]["sample"][0]
    np.testing.assert_allclose(clip[:1600], tone(0.1) / 2, atol=1e-4)
    assert not clip[1600:].any()


def test_crops_are_random_in_training_and_repeat_with_the_seed(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 10 * RATE), RATE)

    def starts(seed, workers=0):
        torch.manual_seed(seed)
        loader = DataLoader(plain(tmp_path, random_crop=True), num_workers=workers)
        return [float(batch["sample"][0, 0, 0]) for _ in range(3) for batch in loader]

    assert len(set(starts(0))) == 3 and starts(0) == starts(0) != starts(1)
    assert len(set(starts(0, workers=1))) == 3 and starts(0, workers=1) == starts(0, workers=1)
    held_out = plain(tmp_path)
    assert not held_out.random_crop and torch.equal(held_out[0]["sample"], held_out[0]["sample"])


def test_a_long_file_is_not_decoded_whole(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(60), RATE)
    data, read, decoded = plain(tmp_path, random_crop=True), soundfile.SoundFile.read, []

    def counting(file, frames=-1, *arguments, **options):
        decoded.append(frames)
        return read(file, frames, *arguments, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    assert data[0]["sample"].any()
    assert sum(decoded) < 2 * CLIP and min(decoded) >= 0


def test_silence_is_trimmed(tmp_path):
    quiet = np.zeros(RATE)
    soundfile.write(tmp_path / "a.wav", np.concatenate([quiet, tone(0.2), quiet]), RATE)
    clip = plain(tmp_path, trim_silence_db=60.0)[0]["sample"][0]
    np.testing.assert_allclose(clip[:3200], tone(0.2), atol=1e-4)
    assert not clip[3200:].any()
    assert not plain(tmp_path)[0]["sample"].any()  # its first samples


@pytest.mark.parametrize("length", [2_000, 16_384])
def test_loudness(length):
    # BS.1770: a 997 Hz sine at full scale measures -3.01 LUFS in one channel, so 0.1 measures -23.01.
    sine = torch.sin(2 * torch.pi * 997 * torch.arange(length) / RATE)
    if length == 16_384:
        assert float(normalize_loudness(0.5 * sine, RATE, -23.0).abs().max()) == pytest.approx(0.1, rel=0.02)
    loud = normalize_loudness(0.01 * sine, RATE, 20.0)
    assert float(loud.abs().max()) == pytest.approx(1.0)  # no higher than full scale
    assert not normalize_loudness(torch.zeros(length), RATE, -23.0).any()


def test_unusable_files_are_reported_by_name_and_skipped(folder, caplog):
    low = folder / "low"
    (low / "empty.wav").write_bytes(b"")
    (low / "text.wav").write_text("no audio")
    (low / "dir.wav").mkdir()
    soundfile.write(low / "none.wav", np.zeros(0), RATE)
    soundfile.write(low / "nan.wav", np.array([0, np.nan]), RATE, "FLOAT")
    soundfile.write(low / "eight.wav", np.zeros((4, 8)), RATE)
    soundfile.write(folder / "lost.wav", tone(0.1), RATE)
    with caplog.at_level(logging.WARNING):
        data = plain(folder)
    assert len(data) == 4
    reasons = {path.rsplit("/", 1)[1]: reason for path, reason in data.skipped}
    assert set(reasons) == {"empty.wav", "text.wav", "dir.wav", "none.wav", "nan.wav", "eight.wav", "lost.wav"}
    assert "0 bytes" in reasons["empty.wav"] and "not finite" in reasons["nan.wav"] and "8 ch" in reasons["eight.wav"]
    assert all(name in caplog.text for name in reasons)


def test_damage_found_while_decoding_is_skipped_too(folder, caplog):
    path = folder / "high" / "a.flac"
    rng = np.random.default_rng(0)
    soundfile.write(path, 0.1 * rng.standard_normal(RATE), RATE)
    damaged = bytearray(path.read_bytes())
    damaged[200:] = bytes(len(damaged) - 200)  # the header is whole
    path.write_bytes(damaged)
    soundfile.write(folder / "high" / "silent.wav", np.zeros(RATE), RATE)
    data = plain(folder, trim_silence_db=60.0)
    assert len(data) == 6 and data.skipped == []
    for _ in range(2):
        assert all(data[index]["sample"].any() for index in range(len(data)))
    assert sorted(path.rsplit("/", 1)[1] for path, _ in data.skipped) == ["a.flac", "silent.wav"]
    assert caplog.text.count("silent.wav") == 1


def test_nothing_usable_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        plain(tmp_path / "none")
    with pytest.raises(UserError, match="no usable audio file"):
        plain(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(UserError, match="1 skipped"):
        plain(tmp_path)
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    with pytest.raises(UserError, match="all silence"):
        plain(tmp_path, trim_silence_db=60.0)[0]
    with pytest.raises(UserError, match="no split named dev"):
        plain(tmp_path, split="dev")


def test_splits_are_disjoint_deterministic_and_share_classes(tmp_path):
    (tmp_path / "only").mkdir()
    for number in range(60):
        soundfile.write(tmp_path / "only" / f"{number}.wav", tone(0.02), RATE)
    parts = {split: plain(tmp_path, split=split) for split in ("train", "validation", "test", "all")}
    names = {split: {path.name for path in part.files} for split, part in parts.items()}
    assert names["train"] | names["validation"] | names["test"] == names["all"] and len(names["all"]) == 60
    assert sum(map(len, names.values())) == 120 and len(names["train"]) > 40
    assert all(part.condition_spec == {"label": ["only"]} for part in parts.values())
    assert split_of("only/0.wav") == next(split for split in names if "0.wav" in names[split])
    for number in range(60):
        if f"{number}.wav" not in names["train"]:
            (tmp_path / "only" / f"{number}.wav").unlink()
    with pytest.raises(UserError, match="no file in the test split"):
        plain(tmp_path, split="test")
