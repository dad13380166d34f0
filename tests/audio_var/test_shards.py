"""`audio-var tokenize-dataset`: the same bytes from one process, from two, and after kills; and training on them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from next_scale.shards.reader import TokenSet
from next_scale.splits import split_of

ROOT = Path(__file__).parents[2]
RATE = 16_000


@pytest.fixture
def clips(tmp_path):
    """A folder of short noises in two classes, longer than a clip, so that training crops them at random."""
    random = np.random.default_rng(0)
    for label in ("bass", "flute"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for i in range(40):
            soundfile.write(tmp_path / "clips" / label / f"{i:02}.wav", 0.1 * random.standard_normal(1500), RATE)
    return tmp_path / "clips"


def made(folder):
    """Every file, also hidden ones: path -> bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(*arguments, launcher=()):
    command = [sys.executable, *launcher, "-m", "audio_var", "tokenize-dataset", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def test_two_processes_and_a_kill(clips, tiny_checkpoint, works, tmp_path):
    options = [clips, "--checkpoint", tiny_checkpoint, "--shard-samples", 1, "--accelerator", "cpu", "--latents"]
    out = works("tokenize-dataset", *options, "--out", "one")
    assert [line.split(" clip")[0] for line in out.splitlines()] == [
        "one/train: 70",
        "one/validation: 1",
        "one/test: 9",
    ]
    two = tmp_path / "two"
    killed = start(*options, "--out", two, "--devices", 2)
    deadline = time.monotonic() + 120
    while len(list(two.glob("train/*.safetensors"))) < 3 and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    there = {name: data for name, data in made(two).items() if name.endswith(".safetensors")}
    whole = made(tmp_path / "one")
    assert 3 <= len(there) < len(whole) - 3 and not (two / "train" / "index.json").exists()
    assert all(whole[name] == data for name, data in there.items())
    resumed = start(*options, "--out", two, "--devices", 2)
    told, errors = resumed.communicate(timeout=120)
    assert (resumed.returncode, errors) == (0, "") and told == out.replace("one", str(two))
    assert made(two) == whole
    # all is there: nothing is done, and what is damaged is made again
    path = next(iter((tmp_path / "one" / "train").glob("000003-*")))
    path.write_bytes(path.read_bytes()[:-1])
    works("tokenize-dataset", *options, "--out", "one")
    assert made(tmp_path / "one") == whole


def test_tokens_are_those_of_the_clips(clips, tiny_generator, tiny_checkpoint, works):
    works("tokenize-dataset", clips, "--checkpoint", tiny_checkpoint, "--split", "test", "--out", "out")
    from audio_var.data.folder import AudioFolder

    data, tokens = AudioFolder(clips, RATE, 1024, "test"), TokenSet("out/test")
    assert os.listdir("out") == ["test"] and len(tokens) == len(data)
    for i in range(len(data)):
        assert tokens[i]["condition"] == data[i]["condition"]
    samples = torch.stack([data[i]["sample"] for i in range(len(data))])
    assert torch.equal(tokens.batch(range(len(data)))["tokens"], tiny_generator.tokenizer.encode(samples))
    assert tokens.index.manifest == data.manifest_sha256 and tokens.index.data == "clips"


def test_mistakes(clips, tiny_checkpoint, other_checkpoint, fails, works):
    assert "no data folder nowhere" in fails("tokenize-dataset", "nowhere", "--out", "out")
    assert "must be 1 or more" in fails("tokenize-dataset", clips, "--out", "out", "--devices", 0)
    assert "no checkpoint" in fails("tokenize-dataset", clips, "--out", "out", "--checkpoint", "./none")
    works("tokenize-dataset", clips, "--checkpoint", tiny_checkpoint, "--out", "out")
    options = ["--out", "out", "--checkpoint", other_checkpoint]
    assert "shards of another tokenization (fingerprint: " in fails("tokenize-dataset", clips, *options)
    next(path for path in clips.rglob("*.wav") if split_of(path.relative_to(clips).as_posix()) == "train").unlink()
    options = ["--out", "out", "--checkpoint", tiny_checkpoint]
    assert "shards of another tokenization (" in fails("tokenize-dataset", clips, *options)
    Path("out/train/index.json").write_text('{"format": "next-scale shards"}')
    assert "index.json has version None" in fails("tokenize-dataset", clips, *options)


def test_a_recipe_trains_on_shards(tmp_path, works, monkeypatch):
    """With the shipped tokenizer, and no sound in reach."""
    for name in ("recipes", "samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    works("tokenize-dataset", "samples/demo_notes", "--split", "validation", "--out", "tokens")
    (tmp_path / "tokens" / "train").symlink_to("validation")
    (tmp_path / "samples").unlink()
    from audio_var.cli import main

    shipped = ROOT / "audio_var" / "models" / "notes"
    options = ["--data", "next_scale.shards.ShardDataModule", "--data.folder", "tokens", "--data.batch_size", "8"]
    options += ["--model.tokenizer", str(shipped), "--model.predictor.width", "16", "--trainer.max_steps", "2"]
    options += ["--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", "2"]
    recipe = "recipes/audio_notes/next_scale_debug.yaml"
    assert main(["fit", "next-scale", "--config", recipe, *options]) == 0
    assert (tmp_path / "runs/audio_notes_debug/next_scale/model.safetensors").is_file()
