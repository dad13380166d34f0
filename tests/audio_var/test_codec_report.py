"""`audio-var codec-report` and `codec-import` on small recordings, with codecs of random weights."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import soundfile
import torch

from audio_var.cli import codec_report
from audio_var.codecs.spec import Spec, levels_at, parse_spec
from audio_var.codecs.spectral import SpectralCodec
from audio_var.reports.codecs import Clip, Meter, load_clips, measure_tokenizer
from next_scale.checkpoint import from_pretrained, save_pretrained
from next_scale.cli import Parser
from next_scale.errors import UserError
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer
from tests.audio_var.test_codecs_native import HF_DAC, SNAC

RATE = 8000


def run(*words: str) -> None:
    parser = Parser(prog="audio-var")
    codec_report.add_parser(parser.add_subparsers())
    args = parser.parse_args(list(map(str, words)))
    args.run(args)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Tones of 0.5, 0.6 and 0.7 s, with silence, a click too short to measure, and a file that is none."""
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(3):
        time = np.arange(round((0.5 + 0.1 * i) * RATE)) / RATE
        soundfile.write(folder / f"{i}.wav", 0.3 * np.sin(2 * np.pi * 220 * (i + 1) * time), RATE)
    soundfile.write(folder / "silence.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "short.wav", np.ones(100) * 0.1, RATE)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    codec = SpectralCodec(RATE, 256, 64, 8, 16, 2, 3, 1, 1)
    quantizer = MultiScaleQuantizer(Schedule.parse("1 2 4 8 16"), 8, codebook_size=32)
    return save_pretrained(Tokenizer(codec, quantizer), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def snac_folder(tmp_path_factory):
    package = pytest.importorskip("snac", reason="the snac package is an extra")
    folder = tmp_path_factory.mktemp("snac")
    torch.manual_seed(0)
    torch.save(package.SNAC(**SNAC).state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(SNAC))
    return folder


class TestSpec:
    @pytest.mark.parametrize(
        ("text", "spec"),
        [
            ("shipped", Spec("checkpoint", "shipped")),
            ("runs/a@b/tokenizer@8,14", Spec("checkpoint", "runs/a@b/tokenizer", numbers=(8, 14))),
            ("dac", Spec("checkpoint", "dac")),
            ("opus@8,12.5", Spec("opus", numbers=(8, 12.5))),
            ("encodec:24khz@1.5,6", Spec("encodec", "24khz", numbers=(1.5, 6))),
            ("encodec:48khz=a/b.th@6", Spec("encodec", "48khz", "a/b.th", numbers=(6,))),
            ("encodec:24khz/8-4-2-1", Spec("encodec", "24khz", strides=(8, 4, 2, 1))),
            ("snac=a/b", Spec("snac", "", "a/b")),
            ("transformers:me/dac@3", Spec("transformers", "me/dac", numbers=(3,))),
        ],
    )
    def test_read(self, text, spec):
        assert parse_spec(text) == spec

    def test_mistakes(self):
        for text in ("opus", "opus:a@3", "snac=", "encodec:"):
            with pytest.raises(UserError, match="cannot read"):
                parse_spec(text)

    def test_levels_of_a_rate(self):
        assert levels_at(6, (1,) * 32, 1024, 75) == 8  # EnCodec at 24 kHz: 0.75 kbit/s a level
        assert levels_at(24, (1,) * 16, 1024, 150) == 16  # and at 48 kHz: 1.5
        with pytest.raises(UserError, match=r"less than one level takes \(0.75\)"):
            levels_at(0.5, (1,), 1024, 75)


def test_clips_of_a_folder(recordings):
    clips, rate, skipped = load_clips(recordings, 10, 0.55)
    assert rate == RATE and [clip.name for clip in clips] == ["0.wav", "1.wav", "2.wav"]
    assert [len(clip.samples) for clip in clips] == [4000, 4400, 4400]
    assert skipped == {"cannot be read": 1, "silent": 1, "shorter than 0.1 s": 1}
    clips, rate, _ = load_clips(recordings, 2, 10, 16000)
    assert len(clips) == 2 and rate == 16000


def test_clips_of_notes():
    clips, rate, _ = load_clips("samples/demo_notes", 3, 0.5)
    assert rate == 16000 and [len(clip.samples) for clip in clips] == [8000] * 3


class Same(torch.nn.Module):
    """An autoencoder whose latent is the waveform, 64 samples a frame."""

    sample_rate, hop, latent_channels, name = RATE, 64, 64, "same"

    def encode(self, x):
        return x.unflatten(2, (-1, 64))[:, 0].transpose(1, 2)

    def decode(self, latent):
        return latent.transpose(1, 2).flatten(1)[:, None]


def test_figures_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    clips = [Clip(str(i), rng.normal(size=64 * 16).astype(np.float32) * 0.1) for i in range(2)]
    quantizer = MultiScaleQuantizer(Schedule.parse("1 16"), 64, codebook_size=32, phis=0)
    frames = torch.from_numpy(np.concatenate([clip.samples for clip in clips])).view(-1, 64)  # (32, 64)
    quantizer.codebook(0).weight.zero_()
    quantizer.codebook(1).weight.copy_(frames)  # every frame has its own code
    measured = measure_tokenizer("same", Tokenizer(Same(), quantizer), None, Meter(clips, RATE, 0), 4)
    seconds = 2 * 64 * 16 / RATE
    assert measured.kbits == pytest.approx(2 * 17 * 5 / seconds / 1000)
    assert measured.tokens == pytest.approx(34 / seconds)
    assert measured.si_sdr > 80 and measured.mel < 1e-3 and measured.stft < 1e-3
    coarse, fine = measured.usage
    assert (coarse.used, coarse.entropy, coarse.tokens) == (1, 0, 2)
    assert fine.used == 32 and fine.entropy == pytest.approx(5)
    assert measured.entropy_kbits == pytest.approx(2 * 16 * 5 / seconds / 1000)
    half = measure_tokenizer("same", Tokenizer(Same(), quantizer), 1, Meter(clips, RATE, 0), 4)
    assert half.kbits == pytest.approx(2 * 5 / seconds / 1000) and half.mel > 0.1
    with pytest.raises(UserError, match="it has 2 scales only"):
        measure_tokenizer("same", Tokenizer(Same(), quantizer), 3, Meter(clips, RATE, 0), 4)


def test_report(recordings, checkpoint, snac_folder, tmp_path, capsys):
    codecs = [f"{checkpoint}@2,5", f"snac={snac_folder}", f"snac={snac_folder}"]
    opus = shutil.which("ffmpeg") is not None
    codecs += ["opus@8"] if opus else []
    words = [word for codec in codecs for word in ("--codec", codec)]
    run("codec-report", "--data", recordings, *words, "--limit", 2, "--out", tmp_path / "made")
    rows = list(csv.DictReader((tmp_path / "made/report.csv").open()))
    assert [row["codec"] for row in rows[:4]] == [
        "tiny (spectral), 2 scales",
        "tiny (spectral), 5 scales",
        f"snac {snac_folder.name}",
        f"snac {snac_folder.name}",
    ]
    assert rows[2]["mel"] == rows[3]["mel"] and rows[2]["si_sdr"] == rows[3]["si_sdr"]  # its noise is the same
    page = (tmp_path / "made/report.md").read_text()
    assert "# Codecs on 2 clips" in page and "not measured" in page and "1 cannot be read" in page
    figures = json.loads((tmp_path / "made/report.json").read_text())["systems"]
    assert all(math.isfinite(figure["si_sdr"]) and figure["encode_rtf"] > 0 for figure in figures[:4])
    assert (tmp_path / "made/rate_distortion.png").read_bytes().startswith(b"\x89PNG")
    if opus:
        assert rows[4]["codec"] == "opus" and 4 < float(rows[4]["kbits"]) < 14 and rows[4]["encode_rtf"] == ""
    assert "report in" in capsys.readouterr().out


def test_report_at_a_rate_and_with_strides(recordings, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the transformers package is an extra")
    torch.manual_seed(0)
    transformers.DacModel(transformers.DacConfig.from_dict(HF_DAC)).save_pretrained(tmp_path / "dac")
    words = ("--codec", f"transformers={tmp_path}/dac@4.8,9.6", "--codec", f"transformers/4-2-1={tmp_path}/dac")
    run("codec-report", "--data", recordings, *words, "--out", tmp_path / "made", "--limit", 1)
    rows = list(csv.DictReader((tmp_path / "made/report.csv").open()))
    one, two, strided = (float(row["kbits"]) for row in rows)  # 800 frames a second of 6 bits a level
    assert one == pytest.approx(4.8, rel=0.01) and two == pytest.approx(9.6, rel=0.01)
    assert strided == pytest.approx(4.8 * 1.75, rel=0.02)


def test_mistakes_leave_nothing(recordings, checkpoint, tmp_path):
    for words, message in (
        (("--data", tmp_path / "none"), "there is no folder"),
        (("--data", recordings, "--codec", f"{checkpoint}@0.5"), "numbers of leading scales"),
        (("--data", recordings, "--codec", f"{checkpoint}@9"), "it has 5 scales only"),
        (("--data", recordings, "--codec", f"{tmp_path}/nothing.safetensors"), "no checkpoint at"),
        (("--data", recordings, "--codec", f"snac={tmp_path}"), "holds no config.json"),
        (("--data", recordings, "--seconds", "0"), "--seconds must be at least"),
    ):
        with pytest.raises(UserError, match=message):
            run("codec-report", *words, "--out", tmp_path / "made")
        assert not (tmp_path / "made").exists()


def test_import(snac_folder, recordings, tmp_path, capsys):
    run("codec-import", f"snac={snac_folder}", "--out", tmp_path / "own")
    run("codec-import", f"snac={snac_folder}", "--out", tmp_path / "named", "--name-weights")
    assert "strides 8 4 2 1" in capsys.readouterr().out
    own, named = from_pretrained(tmp_path / "own"), from_pretrained(tmp_path / "named")
    x = 0.1 * torch.randn(1, 1, 2048)
    assert torch.equal(own.encode(x), named.encode(x))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("own", "named")]
    assert sizes[1] < sizes[0] / 2
    for spec in ("opus@8", "shipped", f"snac={snac_folder}@1,2"):
        with pytest.raises(UserError, match="no single codec to import"):
            run("codec-import", spec, "--out", tmp_path / "other")
