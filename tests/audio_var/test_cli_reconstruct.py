"""`audio-var reconstruct`, `tokenize` and `detokenize`: any length, exact agreement, and clear refusals."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
import soundfile
import torch

from audio_var.cli.clips import Windows
from next_scale.checkpoint import from_pretrained
from next_scale.token_file import read_token_file

RATE = 16_000


def tone(samples, rate=RATE):
    t = np.arange(samples) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * 1330 * t)).astype(np.float32)


def read(path):
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE and samples.ndim == 1
    return samples


@pytest.fixture
def tiny(tiny_checkpoint):
    return ["--checkpoint", tiny_checkpoint, "--device", "cpu"]


@pytest.fixture
def wav(tmp_path):
    soundfile.write(tmp_path / "in.wav", tone(5000), RATE)
    return "in.wav"


# Windows


@pytest.mark.parametrize("samples", [1, 255, 256, 257, 1023, 1024, 1025, 1792, 1793, 5000, 100_000])
def test_windows_join_what_they_cut(samples):
    windows = Windows(samples, 1024, 256)
    audio = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    clips = windows.cut(audio)
    assert clips.shape == (windows.count, 1, 1024)
    assert windows.count == 1 or 1024 + 768 * (windows.count - 2) < samples  # none is superfluous
    np.testing.assert_allclose(windows.join(clips), audio, atol=1e-6)


def test_joints_do_not_click():
    """Neighbouring windows of different level: the level moves over the whole fade, not at once."""
    windows = Windows(1792, 1024, 256)
    clips = torch.stack([torch.zeros(1, 1024), torch.ones(1, 1024)])
    joined = windows.join(clips)
    assert np.abs(np.diff(joined)).max() < 0.01 and joined[768] < 0.001 and joined[1023] > 0.999
    assert abs(joined[895:897].mean() - 0.5) < 0.01


# Reconstruct


@pytest.mark.parametrize("samples", [1, 700, 1024, 5000])
def test_any_length(works, tiny, tmp_path, samples):
    soundfile.write(tmp_path / "in.flac", tone(samples), RATE)
    works("reconstruct", "in.flac", "out.wav", *tiny)
    assert len(read(tmp_path / "out.wav")) == samples


def test_one_clip_is_what_the_tokenizer_makes_of_it(works, tiny, tiny_checkpoint, tmp_path):
    soundfile.write(tmp_path / "in.wav", tone(1024), RATE, subtype="FLOAT")
    works("reconstruct", "in.wav", "out.wav", *tiny)
    tokenizer = from_pretrained(tiny_checkpoint).tokenizer
    expected = tokenizer.decode(tokenizer.encode(torch.from_numpy(tone(1024))[None, None]))[0, 0]
    np.testing.assert_allclose(read(tmp_path / "out.wav"), expected.clamp(-1, 1), atol=1e-4)


def test_other_rates_and_stereo(works, tiny, tmp_path):
    soundfile.write(tmp_path / "in.wav", np.stack([tone(44_100, 44_100)] * 2, 1), 44_100)
    out = works("reconstruct", "in.wav", "out.ogg", *tiny)
    assert abs(len(read(tmp_path / "out.ogg")) - RATE) <= 1
    assert out.startswith("out.ogg: 1.00 s, ")


def test_leading_scales(works, tiny, wav, tmp_path):
    lines = [works("reconstruct", wav, f"{k}.wav", "--scales", k, *tiny) for k in (1, 3, 5)]
    works("reconstruct", wav, "all.wav", *tiny)
    assert (tmp_path / "5.wav").read_bytes() == (tmp_path / "all.wav").read_bytes()
    assert len({(tmp_path / f"{k}.wav").read_bytes() for k in (1, 3, 5)}) == 3
    windows = 7  # of 1,024 samples, 256 shared: 1024 + 6 * 768 >= 5000
    for tokens, line in zip((1, 7, 31), lines, strict=True):
        assert f" {windows * tokens * 4:,} bits" in line


def test_batch_size(works, tiny, wav, tmp_path):
    for size in (1, 16):
        works("reconstruct", wav, f"{size}.wav", "--batch-size", size, *tiny)
    assert np.abs(read(tmp_path / "1.wav") - read(tmp_path / "16.wav")).max() <= 1e-4


def test_folder(works, tiny, tmp_path, capsys):
    for name in ("a.wav", "a.flac", "sub/b.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "in" / name, tone(1500), RATE)
    (tmp_path / "in" / "notes.txt").write_text("none of ours")
    out = works("reconstruct", "in", "out/deep", "--plot", "pairs.png", *tiny)
    found = sorted(str(path.relative_to(tmp_path / "out/deep")) for path in (tmp_path / "out/deep").rglob("*.wav"))
    assert found == ["a.wav", "a.wav.wav", "sub/b.wav"]
    assert "3 of 3 files reconstructed in out/deep" in out and (tmp_path / "pairs.png").is_file()


def test_folder_with_bad_files(tiny, tmp_path, capsys):
    from audio_var.cli import main

    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "good.wav", tone(1500), RATE)
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF")
    assert main(["reconstruct", str(tmp_path / "in"), str(tmp_path / "out"), *map(str, tiny)]) == 0
    out, err = capsys.readouterr()
    assert "1 of 2 files" in out and "skipped" in err and "bad.wav" in err
    assert os.listdir(tmp_path / "out") == ["good.wav"]


def test_stride_tokenizers(works, tokenizer_checkpoint, tmp_path):
    for samples in (100, 1000, 5000):
        soundfile.write(tmp_path / "in.wav", tone(samples), RATE)
        works("reconstruct", "in.wav", "out.wav", "--checkpoint", tokenizer_checkpoint)
        works("tokenize", "in.wav", "in.nst", "--checkpoint", tokenizer_checkpoint)
        works("detokenize", "in.nst", "again.wav", "--checkpoint", tokenizer_checkpoint)
        assert len(read(tmp_path / "out.wav")) == samples
        assert (tmp_path / "out.wav").read_bytes() == (tmp_path / "again.wav").read_bytes()
        assert read_token_file(tmp_path / "in.nst").tokens.shape == (1, 15 * -(-samples // 512))


# Token files


def test_tokenize_and_back(works, tiny, wav, tmp_path):
    out = works("tokenize", wav, "a.nst", *tiny)
    assert "868 bits" in out and "kbit/s" in out
    back = works("detokenize", "a.nst", "a.wav", *tiny)
    works("reconstruct", wav, "b.wav", *tiny)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert "868 bits" in back
    file = read_token_file(tmp_path / "a.nst")
    assert file.tokens.shape == (7, 31) and file.details == {"sample_rate": RATE, "samples": 5000, "fade": 256}
    assert (tmp_path / "a.nst").stat().st_size < 400
    works("detokenize", "a.nst", "coarse.flac", "--scales", 1, *tiny)
    assert len(read(tmp_path / "coarse.flac")) == 5000


def test_tokens_of_another_checkpoint(fails, works, tiny, other_checkpoint, wav, tmp_path):
    works("tokenize", wav, "a.nst", *tiny)
    message = fails("detokenize", "a.nst", "a.wav", "--checkpoint", other_checkpoint)
    assert "was made by the tokenizer" in message
    assert read_token_file(tmp_path / "a.nst").fingerprint in message


def test_damaged_token_files(fails, works, tiny, wav, tmp_path):
    works("tokenize", wav, "a.nst", *tiny)
    data = (tmp_path / "a.nst").read_bytes()
    for damaged, message in (
        (data[:-1], "truncated"),
        (data[:20], "truncated"),
        (b"", "not a token file"),
        (b"junk" + data, "not a token file"),
        (data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "checksum"),
    ):
        (tmp_path / "a.nst").write_bytes(damaged)
        assert message in fails("detokenize", "a.nst", "a.wav", *tiny)
    assert "No such file" in fails("detokenize", "b.nst", "a.wav", *tiny)


@pytest.mark.parametrize("details", [{"samples": 10**12}, {"samples": 0}, {"samples": "x"}, {"sample_rate": 8000}, {}])
def test_details_that_do_not_fit(fails, works, tiny, wav, tmp_path, details):
    works("tokenize", wav, "a.nst", *tiny)
    data = (tmp_path / "a.nst").read_bytes()
    size = struct.unpack_from("<I", data, 6)[0]
    header = json.loads(data[10 : 10 + size])
    header["details"] = {**header["details"], **details} if details else {}
    text = json.dumps(header).encode()
    body = data[:6] + struct.pack("<I", len(text)) + text + data[10 + size : -4]
    (tmp_path / "a.nst").write_bytes(body + struct.pack("<I", zlib.crc32(body)))
    assert "does not describe its audio" in fails("detokenize", "a.nst", "a.wav", *tiny)


# Mistakes


def empty(path):
    path.write_bytes(b"")


def corrupt(path):
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def cut_off(path):
    soundfile.write(path.with_suffix(".flac"), tone(50_000), RATE)
    path.write_bytes(path.with_suffix(".flac").read_bytes()[:2000])
    path.with_suffix(".flac").unlink()


def not_a_number(path):
    samples = tone(3000)
    samples[1000] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def infinite(path):
    samples = tone(3000)
    samples[2999] = np.inf
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def zero_length(path):
    soundfile.write(path, np.zeros(0), RATE)


def eight_channels(path):
    soundfile.write(path, np.zeros((1000, 8)), RATE)


def three_hours(path):
    soundfile.write(path, np.zeros(3 * 3600 * 1000), 1000, subtype="PCM_U8")


def folder(path):
    path.mkdir()


BAD = {
    empty: "is empty (0 bytes)",
    corrupt: "no readable audio file",
    cut_off: "damaged",
    not_a_number: "not finite numbers (NaN or infinity)",
    infinite: "not finite numbers (NaN or infinity)",
    zero_length: "holds no samples",
    eight_channels: "has 8 channels",
    three_hours: "lasts 10,800 s, more than 600 s",
}


@pytest.mark.parametrize("command", ["reconstruct", "tokenize"])
@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_audio(fails, tiny, tmp_path, command, make):
    make(tmp_path / "bad.wav")
    message = fails(command, "bad.wav", "out.wav" if command == "reconstruct" else "out.nst", *tiny)
    assert "bad.wav" in message and BAD[make] in message


def test_longer_files_on_request(fails, works, tiny, tmp_path):
    soundfile.write(tmp_path / "in.wav", tone(40_000), RATE)
    assert "lasts 2 s, more than 1 s" in fails("reconstruct", "in.wav", "out.wav", "--max-seconds", 1, *tiny)
    works("reconstruct", "in.wav", "out.wav", "--max-seconds", 3, *tiny)


def test_missing_input(fails, tiny, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "there is no file nowhere.wav" in fails("reconstruct", "nowhere.wav", "out.wav", *tiny)
    assert "there is no file nowhere.wav" in fails("tokenize", "nowhere.wav", "out.nst", *tiny)
    assert "folder holds no audio file" in fails("reconstruct", "folder", "out", *tiny)
    assert "folder is a folder" in fails("tokenize", "folder", "out.nst", *tiny)


def test_folder_without_a_good_file(fails, tiny, tmp_path):
    (tmp_path / "in").mkdir()
    empty(tmp_path / "in" / "a.wav")
    assert "holds no audio file that can be read; first: in/a.wav is empty" in fails("reconstruct", "in", "out", *tiny)


def test_wrong_outputs(fails, tiny, wav, tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", tone(1000), RATE)
    assert "end the name in .wav, .flac, .ogg" in fails("reconstruct", wav, "out.mp3", *tiny)
    assert "end the name in .wav, .flac, .ogg" in fails("reconstruct", wav, "out", *tiny)
    assert "would overwrite what is read" in fails("reconstruct", wav, wav, *tiny)
    assert "would overwrite what is read" in fails("reconstruct", "in", "in", *tiny)
    assert "so OUT must be one too" in fails("reconstruct", "in", "out.wav", *tiny)
    assert "folder.wav is a folder" in fails("reconstruct", wav, "folder.wav", *tiny)
    assert "there is no folder no" in fails("reconstruct", wav, "no/out.wav", *tiny)
    assert "there is no folder no" in fails("tokenize", wav, "no/out.nst", *tiny)
    assert "end it in .nst" in fails("tokenize", wav, "out.wav", *tiny)
    assert "cannot draw plot.txt" in fails("reconstruct", wav, "out.wav", "--plot", "plot.txt", *tiny)
    assert "out.wav is a file" in _blocked(fails, tmp_path, tiny)


def _blocked(fails, tmp_path, tiny):
    (tmp_path / "target").write_text("")
    os.rename(tmp_path / "target", tmp_path / "out.wav")
    (tmp_path / "in" / "out.wav").mkdir()
    soundfile.write(tmp_path / "in" / "out.wav" / "b.wav", tone(1000), RATE)
    os.rename(tmp_path / "in", tmp_path / "tree")
    return fails("reconstruct", "tree", ".", *tiny)


def test_wrong_scales(fails, tiny, wav):
    assert "--scales must be from 1 to 5, the scales of this tokenizer, got 6" in fails(
        "reconstruct", wav, "out.wav", "--scales", 6, *tiny
    )
    assert "--scales: must be 1 or more" in fails("reconstruct", wav, "out.wav", "--scales", 0, *tiny)


def test_full_disk(fails, tiny, full_disk, tmp_path):
    soundfile.write(tmp_path / "in.wav", tone(40_000), RATE)
    (full_disk / "fill").write_bytes(bytes(8192))
    assert "No space left on device" in fails("reconstruct", "in.wav", full_disk / "out.wav", *tiny)
    with (full_disk / "rest").open("wb", buffering=0) as file, pytest.raises(OSError):
        for _ in range(5):
            file.write(bytes(4096))
    assert "No space left on device" in fails("tokenize", "in.wav", full_disk / "out.nst", *tiny)
