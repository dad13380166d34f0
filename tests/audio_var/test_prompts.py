"""`audio-var generate --prompt` as a user runs it, of a model that reads the bytes of words."""

import os

import numpy as np
import pytest
import soundfile
import torch

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


def test_the_shipped_model_follows_words(works, tmp_path):
    """Without a checkpoint: most clips are of the family that was said, high is above low, loud louder than soft."""
    from audio_var.evaluator import load_evaluator

    works("generate", "--prompt", "a soft low flute", "a loud high brass", "--count", 4, "--device", "cpu")
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted((tmp_path / "clips").glob("*.wav"))]
    judge = load_evaluator()
    found = judge.judge(torch.as_tensor(np.stack(clips))[:, None])
    heard = [judge.labels[i] for i in found.label.tolist()]  # names in order: the loud ones, the soft ones
    assert sum(a == b for a, b in zip(heard, ["brass"] * 4 + ["flute"] * 4, strict=True)) >= 6
    assert found.pitch[:4].min() > found.pitch[4:].max()
    levels = [float(np.square(clip).mean()) for clip in clips]
    assert min(levels[:4]) > max(levels[4:])
