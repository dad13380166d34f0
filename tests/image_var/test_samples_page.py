"""The page of images: made from a tiny checkpoint, complete, and without anything from elsewhere."""

import json
import re
import shlex
from html import unescape
from pathlib import Path

import pytest
import torch

from image_var.autoencoder import build_autoencoder
from image_var.cli import main as image_var
from image_var.evaluator import Evaluator
from image_var.io import write_image
from image_var.reports.generator import GeneratorOptions, evaluate_generator
from image_var.reports.tokenizer import TokenizerOptions, evaluate_tokenizer
from next_scale.checkpoint import save_pretrained
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.predictors import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer
from recipes.image_fashion.make_samples import EACH, main

LABELS = ["bag", "boot", "coat"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of noise in three classes."""
    folder = tmp_path_factory.mktemp("data") / "noise"
    generator = torch.Generator().manual_seed(0)
    for label in LABELS:
        for split, count in (("train", 4), ("test", EACH + 1)):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                write_image(folder / split / label / f"{index}.png", torch.rand(1, 16, 16, generator=generator) * 2 - 1)
    return folder


@pytest.fixture(scope="module")
def model() -> Generator:
    torch.manual_seed(0)
    sizes = {"width": 8, "multipliers": [1, 1, 2], "encoder_blocks": 1, "decoder_blocks": 1, "latent_channels": 4}
    quantizer = MultiScaleQuantizer(Schedule.parse("1x1 2x2 4x4"), 4, codebook_size=32, phis=2)
    tokenizer = Tokenizer(build_autoencoder("vqgan", channels_in=1, **sizes), quantizer)
    return Generator(tokenizer, NextScale(quantizer.schedule, 32, 4, {"label": LABELS}, 16, 1, 2)).eval()


@pytest.fixture(scope="module")
def page(model, data, tmp_path_factory) -> Path:
    """A folder with the page, a sibling page, and the checkpoint and reports that it was made of beside."""
    folder = tmp_path_factory.mktemp("samples")
    save_pretrained(model, folder / "tiny")
    judge = Evaluator(LABELS, 1, [16, 16], [4, 8], 4).eval()
    tokenizer = evaluate_tokenizer(model.tokenizer, str(data), judge, TokenizerOptions(baselines=False))
    generator = evaluate_generator(model, str(data), judge, GeneratorOptions(count=9))
    options = ["--checkpoint", str(folder / "tiny"), "--data", str(data), "--out", str(folder / "page")]
    for kind, result in (("tokenizer", tokenizer), ("generator", generator)):
        report = folder / f"{kind}.json"
        report.write_text(json.dumps({"command": f"image-var evaluate {kind}", **result.to_data()}))
        options += [f"--{kind}-report", str(report)]
    (folder / "page").mkdir()
    (folder / "page" / "index.html").write_text("sounds")
    main(options)
    return folder / "page"


def commands(text: str) -> list[list[str]]:
    """The commands of a page, as arguments."""
    return [shlex.split(unescape(re.sub("<.*?>", "", part))) for part in re.findall("<pre>(.*?)</pre>", text)]


def test_page_is_whole(page):
    text = (page / "images.html").read_text(encoding="utf-8")
    links, ids = (re.findall(f'(?:{names})="([^"]+)"', text) for names in ("src|href", "id"))
    files = {link for link in links if not link.startswith("#")}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert files == {"index.html", *(f"images/{path.name}" for path in (page / "images").iterdir())}
    # of each class generated and real ones; two pyramids as drawn, one as decoded
    assert text.count("<img") == 3 * 2 * EACH + 2 * 3 + (1 + 3)
    assert not re.search("<script|<link|://|@import", text)
    assert "this tokenizer" in text and "real test images, compared with" in text and "a dimension" in text
    assert ["image-var", "evaluate", "generator"] in commands(text)
    assert sorted(path.name for path in page.iterdir()) == ["images", "images.html", "index.html"]


def test_commands_make_the_very_files(page, tmp_path, monkeypatch, capsys):
    shown = commands((page / "images.html").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    assert shown[1][:2] == ["image-var", "generate"] and image_var(shown[1][1:]) == 0
    made = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert made == [f"boot_s0_{number:03}.png" for number in range(EACH)]
    for name in made:
        assert (tmp_path / "images" / name).read_bytes() == (page / "images" / name).read_bytes()
    # the last picture of a pyramid as drawn is the image in its card
    images = page / "images"
    assert (images / "bag_s0_000_scales03.png").read_bytes() == (images / "bag_s0_000.png").read_bytes()
    decode = next(command for command in shown if command[1] == "reconstruct")
    source = page / decode[2]
    assert (
        image_var(["reconstruct", str(source), "coarse.png", *["2" if word == "K" else word for word in decode[4:]]])
        == 0
    )
    assert Path("coarse.png").read_bytes() == (images / f"{source.stem}_scales02.png").read_bytes()


def test_what_does_not_fit_is_refused(model, data, tmp_path):
    report = tmp_path / "report.json"
    report.write_text('{"fingerprint": "0000000000000000", "systems": []}')
    save_pretrained(model, tmp_path / "tiny")
    options = ["--checkpoint", str(tmp_path / "tiny"), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="about tokenizer 0000000000000000"):
        main([*options, "--data", str(data), "--tokenizer-report", str(report)])
    with pytest.raises(UserError, match="other classes"):
        main([*options, "--data", str(data / "test" / "bag")])
    assert not list((tmp_path / "out").glob("*.html"))
