"""`audio-var generate --prompt` as a user runs it, of a model that reads the bytes of words."""

import os

import pytest

from next_scale.checkpoint import save_pretrained
from tests.conftest import build_tokenizer
from tests.prompts import BAD, BYTES, ODD, with_words


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    model = with_words(build_tokenizer(), BYTES, {"pitch": list(range(36, 85))})
    folder = save_pretrained(model, tmp_path_factory.mktemp("words") / "bytes")
    return ["generate", "--checkpoint", folder, "--device", "cpu", "--prompt"]


def test_prompts_make_clips(works, command, tmp_path):
    out = works(*command, "soft low flute", "loud bass", "--pitch", 60)
    assert sorted(os.listdir(tmp_path / "clips")) == ["p060_loud-bass_s0_000.wav", "p060_soft-low-flute_s0_000.wav"]
    assert "pitch 60; prompt soft low flute, loud bass (seed 0)" in out
    first, second = ((tmp_path / "clips" / name).read_bytes() for name in sorted(os.listdir(tmp_path / "clips")))
    assert first != second


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_prompts_that_are_refused(fails, command, text):
    assert BAD[text] in fails(*command, text)


def test_odd_and_long_prompts(works, fails, command):
    assert f"{len(ODD)} clips" in works(*command, *ODD)
    assert "has 41 bytes, and this model reads 40" in fails(*command, "x" * 41)
