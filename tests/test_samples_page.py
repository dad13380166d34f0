"""The page of samples: made from a tiny checkpoint, complete, and without anything from elsewhere."""

import json
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from audio_var.cli import main as audio_var
from audio_var.codecs.spectral import SpectralCodec
from audio_var.data.notes import Notes
from audio_var.reports.tokenizer import TokenizerOptions, evaluate_tokenizer
from next_scale.checkpoint import save_pretrained
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.predictors import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer
from recipes.audio_notes.make_samples import choose, main

NOTES = Path(__file__).parents[1] / "samples" / "demo_notes"


class Reader(HTMLParser):
    """Tags, links, ids and classes of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids, self.classes, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        self.classes += attributes.get("class", "").split()
        self.ids.append(attributes.get("id"))


def commands(text: str) -> list[list[str]]:
    """The commands of a page, as arguments."""
    return [shlex.split(unescape(re.sub("<.*?>", "", part))) for part in re.findall("<pre>(.*?)</pre>", text)]


@pytest.fixture(scope="module")
def model() -> Generator:
    torch.manual_seed(0)
    codec = SpectralCodec(latent_channels=4, width=8, encoder_depth=1, decoder_depth=1)
    quantizer = MultiScaleQuantizer(Schedule.parse("1 4 16 64"), 4, codebook_size=32, phis=2)
    spec = Notes(NOTES, "test").condition_spec
    return Generator(Tokenizer(codec, quantizer), NextScale(quantizer.schedule, 32, 4, spec, 16, 1, 2)).eval()


@pytest.fixture(scope="module")
def page(model, tmp_path_factory) -> Path:
    """A folder with the page of a tiny random model; its checkpoint lies beside it."""
    folder = tmp_path_factory.mktemp("samples")
    save_pretrained(model, folder / "tiny")
    result = evaluate_tokenizer(model.tokenizer, NOTES, TokenizerOptions(limit=3, subset=2, clips=1))
    (folder / "report.json").write_text(json.dumps(result.to_data()))
    out = folder / "page"
    arguments = ["--checkpoint", str(folder / "tiny"), "--data", str(NOTES), "--out", str(out)]
    main([*arguments, "--tokenizer-report", str(folder / "report.json")])
    return out


def test_page_is_whole(page):
    text = (page / "index.html").read_text(encoding="utf-8")
    reader = Reader(text)
    assert reader.classes.count("pair") == 24 and reader.classes.count("pyramid") == 3
    assert reader.tags.count("audio") == reader.tags.count("img") == 2 * 24 + 3 * 4
    assert "script" not in reader.tags and "link" not in reader.tags
    assert "://" not in text and "@import" not in text
    for link in reader.links:
        assert link[1:] in reader.ids if link.startswith("#") else (page / link).is_file()
    shown = {link for link in reader.links if not link.startswith("#")}
    assert {f"clips/{path.name}" for path in (page / "clips").iterdir()} == shown
    assert "this tokenizer, 3 notes" in text
    assert sorted(path.name for path in page.iterdir()) == ["clips", "index.html"]


def test_command_makes_the_very_file(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = commands((page / "index.html").read_text(encoding="utf-8"))[5]
    assert command[:2] == ["audio-var", "generate"]
    assert audio_var(command[1:]) == 0
    (made,) = (tmp_path / "clips").iterdir()
    assert made.read_bytes() == (page / "clips" / made.name).read_bytes()


def test_report_of_another_model_is_refused(page, model, tmp_path):
    report = tmp_path / "report.json"
    report.write_text('{"fingerprint": "0000000000000000", "systems": []}')
    save_pretrained(model, tmp_path / "tiny")
    with pytest.raises(UserError, match="about tokenizer 0000000000000000"):
        main(["--checkpoint", str(tmp_path / "tiny"), "--data", str(NOTES), "--tokenizer-report", str(report)])


def test_choice_is_even_and_repeatable():
    notes = Notes(NOTES, "test")
    chosen = choose(notes, 24, 0)
    assert chosen == choose(notes, 24, 0) != choose(notes, 24, 1)
    condition = notes.condition_batch(chosen)
    asked = set(zip(*(values.tolist() for values in condition.values()), strict=True))
    assert len(asked) == 24
    assert torch.bincount(condition["label"], minlength=12).min() >= 1
    with pytest.raises(UserError, match="are needed"):
        choose(notes, 1000, 0)
