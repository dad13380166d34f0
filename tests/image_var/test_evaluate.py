"""`image-var evaluate`, end to end at tiny sizes, and what it measures with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import image_var.autoencoder  # noqa: F401 - registers the autoencoder
from image_var import baselines
from image_var.autoencoder import build_autoencoder
from image_var.baselines import coded
from image_var.cli import main
from image_var.evaluator import Evaluator, save_evaluator
from image_var.io import write_image
from image_var.metrics import psnr, squared_error, ssim
from image_var.reports.tokenizer import Meter
from next_scale.checkpoint import save_pretrained
from next_scale.model import Generator
from next_scale.predictors import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule, StrideSchedule
from next_scale.tokenizer import Tokenizer

LABELS = ["disc", "ring", "square"]
TRAIN, TEST = 12, 16  # images of a class


def draw(kind: str, middle: torch.Tensor, size: float) -> torch.Tensor:
    """A bright shape on black: (1, 16, 16)."""
    place = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")) - middle[:, None, None]
    radius = place.abs().amax(0) if kind == "square" else place.square().sum(0).sqrt()
    inside = (radius <= size) & ((radius >= size - 1.5) if kind == "ring" else True)
    return (2.0 * inside - 1)[None]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A folder of images of three classes, with test and training images apart."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generator = torch.Generator().manual_seed(0)
    for label in LABELS:
        for split, count in (("train", TRAIN), ("test", TEST)):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                middle = 6 + 4 * torch.rand(2, generator=generator)
                size = 3 + 2 * float(torch.rand((), generator=generator))
                write_image(folder / split / label / f"{index}.png", draw(label, middle, size))
    return folder


def build_tokenizer(schedule: Schedule | StrideSchedule, channels: int = 1) -> Tokenizer:
    torch.manual_seed(0)
    sizes = {"width": 8, "multipliers": [1, 1, 2], "encoder_blocks": 1, "decoder_blocks": 1, "latent_channels": 4}
    autoencoder = build_autoencoder("vqgan", channels_in=channels, **sizes)
    return Tokenizer(autoencoder, MultiScaleQuantizer(schedule, 4, codebook_size=32, phis=2, dim=2)).eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    schedule = Schedule.parse("1x1 2x2 4x4")
    predictor = NextScale(schedule, 32, 4, {"label": LABELS}, width=16, depth=1, heads=2)
    model = Generator(build_tokenizer(schedule), predictor).eval()
    return save_pretrained(model, tmp_path_factory.mktemp("model") / "generator")


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "evaluator"
    save_evaluator(Evaluator(LABELS, 1, [16, 16], [8, 16], 6), folder)
    return folder


def test_tokenizer_report(checkpoint, evaluator, shapes, tmp_path, capsys):
    arguments = ["evaluate", "tokenizer", str(checkpoint), "--evaluator", str(evaluator), "--data", str(shapes)]
    arguments += ["--limit", "40", "--subset", "20", "--examples", "4"]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    assert "bits a pixel" in capsys.readouterr().out
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["shape"] == [1, 16, 16] and report["data"] == "shapes"
    rows = {system["name"]: system for system in report["systems"]}
    own = rows["this tokenizer"]
    assert own["quality"]["images"] == 40 and own["bits"] == 21 * 5
    assert own["bits_a_pixel"] == pytest.approx(21 * 5 / 256)
    assert own["quality"]["frechet"] > 0 and 0 < own["quality"]["psnr"] < 30
    # random weights spoil what JPEG keeps
    assert rows["JPEG, quality 75"]["quality"]["psnr"] > own["quality"]["psnr"]
    assert rows["real test images"]["quality"]["accuracy"] >= 0
    assert rows["real training images"]["quality"]["frechet"] > 0
    assert [step["bits"] for step in report["profile"]] == [5, 25, 105]
    assert [step["size"] for step in report["profile"]] == ["1x1", "2x2", "4x4"]
    assert all(step["quality"]["images"] == 20 for step in report["profile"])
    assert all(0 < step["usage"]["used"] <= 32 for step in report["profile"])
    assert sum(c["images"] for c in report["classes"]) == 40
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files == {"report.json", "report.md", "profile.png", "pyramids.png"}
    text = (tmp_path / "a" / "report.md").read_text()
    assert "--limit 40" in text and "6 features" in text
    # the same command, the same figures
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    again = json.loads((tmp_path / "b" / "report.json").read_text())
    assert {**again, "command": ""} == {**report, "command": ""}


def test_all_scales_of_the_profile_are_the_whole_tokenizer(checkpoint, evaluator, shapes, tmp_path):
    options = ["--evaluator", str(evaluator), "--data", str(shapes), "--no-baselines", "--out", str(tmp_path)]
    assert main(["evaluate", "tokenizer", str(checkpoint), *options]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["systems"]) == 3 and report["systems"][2]["quality"]["images"] == 3 * TEST
    whole, last = report["systems"][2]["quality"], report["profile"][-1]["quality"]
    assert last == pytest.approx(whole, rel=1e-4)


def test_generator_report(checkpoint, evaluator, shapes, tmp_path, capsys):
    out = tmp_path / "deep" / "report"
    arguments = ["--evaluator", str(evaluator), "--data", str(shapes), "--count", "24", "--examples", "2"]
    assert main(["evaluate", "generator", str(checkpoint), *arguments, "--top-k", "4", "--out", str(out)]) == 0
    assert "generated: 24 images" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["sampling"]["top_k"] == 4
    verdicts = {verdict["name"]: verdict for verdict in report["verdicts"]}
    assert list(verdicts) == [
        "real test images, all", "real test images, compared with", "their reconstructions", "other real test images",
        "real training images", "generated",
    ]  # fmt: skip
    made, floor = verdicts["generated"], verdicts["other real test images"]
    assert verdicts["real test images, all"]["images"] == 3 * TEST
    assert made["images"] == floor["images"] == verdicts["real training images"]["images"] == 24
    assert made["frechet"] > floor["frechet"]  # noise is further from images than other images are
    assert 0 <= made["precision"] <= 1 and made["frechet_reconstructed"] >= 0
    assert np.sum(report["confusion"], 1).tolist() == [8, 8, 8]
    assert np.sum(report["real_confusion"], 1).tolist() == [TEST] * 3
    # nothing learned: about as many bits as without a model
    assert report["bits"] == pytest.approx(21 * 5, rel=0.1)
    assert report["bits_a_token"] == pytest.approx(report["bits"] / 21)
    assert report["bits_a_dimension"] == pytest.approx(report["bits"] / 256)
    assert sum(entry["bits"] for entry in report["entropy"]) == pytest.approx(report["bits"])
    assert all(pair["generated"]["used"] <= 32 and pair["real"]["used"] <= 32 for pair in report["usage"])
    files = {path.name for path in out.iterdir()}
    assert files == {"report.json", "report.md", "confusion.png", "usage.png", "images.png"}
    assert "--top-k 4" in (out / "report.md").read_text()


def test_mistakes_are_told_in_one_line(checkpoint, evaluator, shapes, tmp_path, capsys):
    out, model, judge = tmp_path / "out", str(checkpoint), ["--evaluator", str(evaluator)]
    strides = save_pretrained(build_tokenizer(StrideSchedule((4, 2, 1))), tmp_path / "strides")
    rgb = save_pretrained(build_tokenizer(Schedule.parse("1x1 4x4"), 3), tmp_path / "rgb")
    data = ["--data", str(shapes)]
    for arguments, reason in [
        (["tokenizer", model, *judge, "--data", str(tmp_path / "none")], "no data folder"),
        (["tokenizer", str(tmp_path / "none"), *judge, *data], "no checkpoint at"),
        (["tokenizer", model, "--evaluator", str(tmp_path), *data], "holds no evaluator"),
        (["tokenizer", str(strides), *judge, *data], "strides for any size"),
        (["tokenizer", str(rgb), *judge, *data], "these have 3 x 16 x 16"),
        (["generator", str(rgb), *judge, *data], "tokenizer only"),
        (["generator", model, *judge, *data, "--count", "0"], "--count"),
        (["generator", model, *judge, *data, "--temperature", "-1"], "temperature"),
        (["generator", model, *judge, "--data", str(shapes / "test")], "other conditions"),
    ]:
        capsys.readouterr()
        if reason == "other conditions":  # classes of another name
            (tmp_path / "other").mkdir()
            for name in ("one", "two"):
                for index in range(9):
                    (tmp_path / "other" / name).mkdir(exist_ok=True)
                    write_image(tmp_path / "other" / name / f"{index}.png", torch.zeros(1, 16, 16))
            arguments = [*arguments[:-1], str(tmp_path / "other")]
        assert main(["evaluate", *arguments, "--out", str(out)]) == 2
        message = capsys.readouterr().err
        assert reason in message and message.count("\n") == 1, message
        assert not out.exists()


def test_distances_of_images():
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    assert psnr(squared_error(images, images)).tolist() == [100] * 3
    # an error of 0.2 in a range of 2 is a tenth of it: 20 dB
    assert psnr(squared_error(images, images + 0.2)).tolist() == pytest.approx([20] * 3, rel=1e-4)
    assert psnr(0.01) == pytest.approx(20)
    assert ssim(images, images).tolist() == pytest.approx([1] * 3)
    assert ssim(images, images.flip(-1)).max() < 0.5
    assert ssim(images[..., :8], images[..., :8]) is None


def test_meter_finds_nothing_wrong_with_the_originals():
    evaluator = Evaluator(LABELS, 1, [16, 16], [8, 16], 6).eval()
    images = torch.rand(12, 1, 16, 16) * 2 - 1
    label = evaluator.judge(images).label
    quality, each, found = Meter(evaluator, images, label, batch_size=5)(images)
    assert (quality.psnr, quality.psnr_pooled, quality.accuracy) == (100, 100, 1)
    assert quality.frechet == pytest.approx(0, abs=1e-6) and quality.ssim == pytest.approx(1)
    assert each.shape == (12,) and found.all()


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize("shape", [(5, 1, 16, 16), (7, 3, 20, 28)])
def test_coders_spend_bits_on_likeness(form, shape, monkeypatch):
    smooth = torch.nn.functional.interpolate(torch.rand(*shape[:2], 4, 4) * 2 - 1, shape[2:], mode="bicubic")
    images = smooth.clamp(-1, 1)
    rates, errors = [], []
    for quality in (5, 40, 90):
        decoded, bits = coded(images, form, quality)
        assert decoded.shape == shape and decoded.abs().max() <= 1
        rates.append(bits)
        errors.append(float(squared_error(images, decoded).mean()))
    assert rates == sorted(rates) and errors == sorted(errors, reverse=True)
    assert errors[-1] < 2e-3
    if form == "JPEG" and shape[1] == 1:  # its blocks know nothing of each other, so sheets do not matter
        monkeypatch.setattr(baselines, "_MOST_PIXELS", 2 * 16 * 16)
        apart, bits = coded(images, form, 90)
        assert torch.equal(apart, decoded) and bits > rates[-1]
