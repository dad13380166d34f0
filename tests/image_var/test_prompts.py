"""`image-var generate --prompt` and `image-var morph` as a user runs them: prompts of all sorts, and mistakes."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from image_var.api import load
from next_scale.checkpoint import from_pretrained, save_pretrained
from tests.image_var.conftest import build_image_tokenizer
from tests.prompts import BAD, BYTES, ODD, RENDERED, with_words


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """A checkpoint that draws prompts."""
    model = with_words(build_image_tokenizer(), RENDERED)
    return save_pretrained(model, tmp_path_factory.mktemp("words") / "rendered")


@pytest.fixture
def command(worded):
    return ["generate", "--checkpoint", worded, "--device", "cpu", "--prompt"]


def test_prompts_make_images(works, command, tmp_path):
    out = works(*command, "ankle boot", "bag", "--count", 2, "--grid")
    names = [f"{name}_s0_00{i}.png" for name in ("ankle-boot", "bag") for i in (0, 1)]
    assert sorted(os.listdir(tmp_path / "images")) == [*names, "grid.png"]
    assert "4 images of 32 x 32 in images: prompt ankle boot, bag (seed 0)" in out
    first = (tmp_path / "images" / names[0]).read_bytes()
    assert len({(tmp_path / "images" / name).read_bytes() for name in names}) == 4
    works(*command, "  ankle   boot", "--out", "again")  # the same words, the same image, whatever else is made
    assert (tmp_path / "again" / names[0]).read_bytes() == first


def test_prompts_of_a_file(works, fails, command, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffbag\r\n\nankle boot\nbag\n", encoding="utf-8")
    out = works(*command[:-1], "--prompt-file", "prompts.txt")
    assert "2 images of 32 x 32 in images: prompt bag, ankle boot (seed 0)" in out
    (tmp_path / "prompts.txt").write_bytes(b"\n \n")
    assert "prompts.txt holds no prompt" in fails(*command[:-1], "--prompt-file", "prompts.txt")
    (tmp_path / "prompts.txt").write_bytes(b"bag\xff")
    assert "is no text in UTF-8 (byte 3)" in fails(*command[:-1], "--prompt-file", "prompts.txt")
    assert "there is no file none.txt" in fails(*command[:-1], "--prompt-file", "none.txt")


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_prompts_that_are_refused(fails, command, text):
    message = fails(*command, text)
    assert BAD[text] in message and message.rstrip("\n").isprintable() and len(message) < 300


def test_odd_prompts_are_drawn(works, command, tmp_path):
    out = works(*command, *ODD)
    assert f"{len(ODD)} images" in out
    assert all(line.isprintable() for line in out.splitlines())


def test_what_does_not_fit_a_drawing(fails, command):
    assert "has 5 words, and this model draws 4 at most" in fails(*command, "one two three four five")
    assert "has no glyph of 漢 (U+6F22)" in fails(*command, "漢字")
    assert "is too long for a line" in fails(*command, "m" * 40)


def test_unknown_arguments_print_no_escapes(fails, command):
    message = fails(*command, "bag", "--\x1b[31mcolour")
    assert "\x1b" not in message and r"\x1b[31mcolour" in message


def test_a_model_of_labels_takes_no_prompt(fails, tiny_checkpoint):
    message = fails("generate", "--checkpoint", tiny_checkpoint, "--prompt", "bag")
    assert "trained on labels, not words, and takes no prompt: ask for --label" in message
    message = fails("generate", "--checkpoint", tiny_checkpoint, "--prompt", "\x1b[1m")
    assert "\x1b" not in message


def test_the_checkpoint_keeps_the_words(works, worded, tmp_path):
    facts = json.loads(works("info", "--json", worded))
    assert facts["words"] == RENDERED and facts["conditions"] == {}
    assert "words: kind rendered" in " ".join(works("info", worded).split())
    model = load(str(worded), "cpu")
    assert torch.equal(model(prompt="bag", seed=3), model(prompt=" bag ", seed=3))
    assert not torch.equal(model(prompt="bag", seed=3), model(seed=3))
    bytes_model = with_words(build_image_tokenizer(), BYTES, {"label": ["a", "b"]})
    again = from_pretrained(save_pretrained(bytes_model, tmp_path / "bytes"))
    assert again.words.to_config() == BYTES
    out = works("generate", "--checkpoint", "bytes", "--prompt", "bag", "--label", "b", "--out", "both")
    assert os.listdir(tmp_path / "both") == ["b_bag_s0_000.png"] and "label b; prompt bag" in out


def test_morph(works, fails, worded, tiny_checkpoint, tmp_path):
    command = ["morph", "--checkpoint", worded, "--prompt"]
    out = works(*command, "bag", "ankle boot", "--frames", "--enlarge", 2, "--scales", 2)
    names = [f"{name}_s0_000{end}" for name in ("ankle-boot", "bag") for end in (".gif", ".png", "_strip.png")]
    assert sorted(os.listdir(tmp_path / "morphs")) == names and "2 images in morphs: prompt bag, ankle boot" in out
    strip = Image.open(tmp_path / "morphs" / names[5])
    assert strip.size == (5 * 64 + 4 * 2, 64)  # the drawing and four scales
    gif = Image.open(tmp_path / "morphs" / names[3])
    assert gif.n_frames == 5 and gif.size == (64, 64)
    last = np.asarray(strip)[:, -64:]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "morphs" / names[4])), last)
    # a model of labels is edited: it is told what to make by its label
    out = works("morph", "--checkpoint", tiny_checkpoint, "--prompt", "bag", "--label", "bag", "--out", "edited")
    assert os.listdir(tmp_path / "edited") == ["bag_bag_s0_000.png"]
    assert "nothing to morph" in fails(*command[:-1])
    assert "8 rows a word" in fails(*command, "a b c d e")
    assert "the words' first 9 scales" in fails(*command, "bag", "--scales", 9)
    assert "control character" in fails(*command, "\x1b[2J")


def test_the_shipped_models_follow_words(works, tmp_path):
    """Without a checkpoint: seven of eight images are what is said, one word misspelt, and seven of eight morphs."""
    from image_var.evaluator import load_evaluator
    from image_var.io import read_image

    works("generate", "--prompt", "a photo of a dress", "sneeker", "--count", 4, "--device", "cpu")
    works("morph", "--prompt", "bag", "trouser", "--count", 4, "--enlarge", 1, "--device", "cpu")
    judge = load_evaluator()
    meanings = {"images": {"a-photo": "dress", "sneeker": "sneaker"}, "morphs": {"bag": "bag", "trouser": "trouser"}}
    for folder, said in meanings.items():
        paths = sorted((tmp_path / folder).glob("*.png"))
        samples = torch.stack([torch.as_tensor(read_image(path, (32, 32), 1)) for path in paths])
        heard = [judge.labels[i] for i in judge.judge(samples).label.tolist()]
        meant = [next(label for start, label in said.items() if path.name.startswith(start)) for path in paths]
        assert sum(a == b for a, b in zip(heard, meant, strict=True)) >= 7
