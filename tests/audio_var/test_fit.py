"""`audio-var fit` as a user runs it, from the recipes at reduced size: training, resuming, mistakes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from audio_var.cli import main
from next_scale.checkpoint import from_pretrained
from recipes.check_debug import losses

ROOT = Path(__file__).parents[2]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
SHORT = ["--data.batch_size", "2", "--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1", *QUIET]
TINY = [*SHORT, "--model.start_samples", "8", "--model.quantize_after", "2", "--trainer.val_check_interval", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with recipes and samples, where a recipe's runs/ may be written."""
    for name in ("recipes", "samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(stage, recipe, *options):
    return main(["fit", stage, "--config", f"recipes/audio_notes/{recipe}.yaml", *map(str, options)])


def state(folder, name="last"):
    return torch.load(folder / "runs/audio_notes_debug/tokenizer/checkpoints" / f"{name}.ckpt", weights_only=True)


def test_interrupted_and_resumed(folder):
    """Stopped after 4 of 6 steps and resumed: the right step, average, codes and learning rate."""
    kept = ["--checkpoint.filename", "{step}", "--checkpoint.every_n_train_steps", 4, "--checkpoint.save_top_k", -1]
    # a training of 6 steps whose checkpoint after the 4th is what an interruption would have left
    assert fit("tokenizer", "tokenizer_debug", *TINY, *kept, "--trainer.max_steps", 6) == 0
    left = folder / "runs/audio_notes_debug/tokenizer/checkpoints/step=4.ckpt"
    before = torch.load(left, weights_only=True)
    # the average begins anew with the codebooks, after the second step
    assert before["global_step"] == 4 and before["averaging_state"]["n_averaged"] == 2
    usage = [u.clone() for u in before["codebook_usage"]]
    assert any((u != 1).any() for u in usage) and not any("usage" in name for name in before["state_dict"])

    more = ["--trainer.max_steps", 6, "--checkpoint.every_n_train_steps", 5, "--ckpt_path", left]
    assert fit("tokenizer", "tokenizer_debug", *TINY, *more) == 0
    after = state(folder)
    assert after["global_step"] == 5 and after["averaging_state"]["n_averaged"] == 3
    names = [name for name in after["current_model_state"] if "codebooks" in name]
    assert len(names) == 7
    for name in names:  # one step's update of the codes that were, not a new start
        moved = (after["current_model_state"][name] - before["current_model_state"][name]).norm()
        assert 0 < moved < 0.5 * before["current_model_state"][name].norm()
    decay = [b.double() / a.double() for a, b in zip(usage, after["codebook_usage"], strict=True)]
    assert all(d.min() > 0.98 for d in decay)
    logs = folder / "runs/audio_notes_debug/tokenizer/logs"
    assert len(losses(logs, "train/loss")) >= 6
    model = from_pretrained(folder / "runs/audio_notes_debug/tokenizer")
    assert model.encode(torch.zeros(1, 1, 16384)).shape == (1, 127)


def test_both_stages_and_their_previews(folder):
    """Tokenizer, then predictor on its tokens; clips and spectrograms of both are in TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert fit("tokenizer", "tokenizer_debug", *TINY, "--trainer.max_steps", 4) == 0
    options = ["--model.predictor.width", 16, "--trainer.max_steps", 2, "--trainer.val_check_interval", 2]
    assert fit("next-scale", "next_scale_debug", *SHORT, *options) == 0
    shown = {}
    for stage in ("tokenizer", "next_scale"):
        events = EventAccumulator(str(folder / "runs/audio_notes_debug" / stage / "logs"))
        events.Reload()
        shown[stage] = events.Tags()
        assert len(events.Audio(shown[stage]["audio"][0])[0].encoded_audio_string) > 2 * 16384
    assert shown["tokenizer"]["audio"] == ["real/0", "all_scales/0", "half_the_scales/0"]
    assert shown["next_scale"]["audio"] == ["generated/0"] and "generated/spectrograms" in shown["next_scale"]["images"]
    logged = set(shown["next_scale"]["scalars"])
    assert {"train/loss", "val/loss", "train/loss_scale_6", "val/accuracy_scale_0"} <= logged
    assert {f"perplexity/{k}" for k in range(7)} <= set(shown["tokenizer"]["scalars"])

    model = from_pretrained(folder / "runs/audio_notes_debug/next_scale")
    clips, tokens = model.generate({"label": torch.tensor([2]), "pitch": torch.tensor([24])}, [0])
    assert clips.shape == (1, 1, 16384) and tokens.shape == (1, 127)
    assert (model.sampling.cfg, model.sampling.top_k) == (1.5, 32)


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_training_ends_with_the_same_weights(folder, workers):
    """Stopped after 5 of 8 steps, in the middle of an epoch of random crops: weights, average, optimizer and codes."""
    kept = ["--checkpoint.filename", "{step}", "--checkpoint.every_n_train_steps", 1, "--checkpoint.save_top_k", -1]
    steps = ["--trainer.max_steps", 8, "--data.num_workers", workers, "--trainer.val_check_interval", 3]
    assert fit("tokenizer", "tokenizer_debug", *TINY, *kept, *steps) == 0
    whole = state(folder, "step=8")
    exported = folder / "runs/audio_notes_debug/tokenizer/model.safetensors"
    bytes_before = exported.read_bytes()
    left = folder / "left.ckpt"
    (folder / "runs/audio_notes_debug/tokenizer/checkpoints/step=5.ckpt").rename(left)
    assert fit("tokenizer", "tokenizer_debug", *TINY, *kept, *steps, "--ckpt_path", left) == 0
    resumed = state(folder, "step=8")
    assert exported.read_bytes() == bytes_before  # where it comes from included
    made = resumed["provenance"]
    assert made["seed"] == 0 and made["recipe"]["trainer"]["max_steps"] == 8 and made["data"]["name"] == "demo_notes"
    for name in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "codebook_usage"):
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)


def test_asked_to_stop_it_saves_first(folder):
    """SIGTERM, as schedulers and shutdowns send it; a checkpoint that was cut short is refused in one line."""
    options = ["--trainer.max_steps", "100000", "--checkpoint.every_n_train_steps", "2", *TINY[:-2]]
    command = [
        sys.executable,
        "-m",
        "audio_var",
        "fit",
        "tokenizer",
        "--config",
        "recipes/audio_notes/tokenizer_debug.yaml",
    ]
    training = subprocess.Popen([*command, *options], env={**os.environ, "PYTHONPATH": str(ROOT)})
    last = folder / "runs/audio_notes_debug/tokenizer/checkpoints/last.ckpt"
    while not last.exists():
        assert training.poll() is None
        time.sleep(0.1)
    steps = torch.load(last, weights_only=True)["global_step"]
    training.send_signal(signal.SIGTERM)
    assert training.wait(60) == 143
    saved = torch.load(last, weights_only=True)
    assert steps <= saved["global_step"] < 100000 and "RandomState" in saved["callbacks"]
    assert not [file for file in last.parent.iterdir() if file.suffix != ".ckpt"]

    last.write_bytes(last.read_bytes()[:-1000])
    cut = subprocess.run([*command, "--ckpt_path", str(last)], env={**os.environ, "PYTHONPATH": str(ROOT)},
                         capture_output=True, text=True)  # fmt: skip
    assert cut.returncode == 2 and "not a whole checkpoint" in cut.stderr.splitlines()[-1]


def test_adversarial_recipe_at_reduced_size(folder):
    """recipes/audio_notes/tokenizer_seanet.yaml parses and trains both sides."""
    small = ["--model.autoencoder.init_args.n_filters", 2, "--model.objective.init_args.discriminator_filters", 2]
    small += ["--model.autoencoder.init_args.lstm", 0, "--model.quantizer.codebook_size", 8]
    small += ["--data.data", "samples/demo_notes", "--data.num_workers", 0, "--trainer.accelerator", "cpu"]
    steps = ["--model.adversarial_after", 1, "--model.quantize_after", 1, "--trainer.max_steps", 2]
    assert fit("tokenizer", "tokenizer_seanet", *TINY, *small, *steps) == 0
    logs = folder / "runs/audio_notes/tokenizer_seanet/logs"
    assert len(losses(logs, "train/discriminator")) == 1 and len(losses(logs, "train/waveform_mel")) == 2
    tokenizer = from_pretrained(folder / "runs/audio_notes/tokenizer_seanet")
    assert tokenizer.autoencoder.name == "seanet"
    assert tokenizer.decode(torch.zeros(1, 191, dtype=torch.int64)).shape == (1, 1, 16384)


@pytest.mark.parametrize(
    "stage, recipe, options, message",
    [
        ("tokenizer", "tokenizer_debug", ["--model.schedule", "4 2"], "may not shrink"),
        ("tokenizer", "tokenizer_debug", ["--data.data", "nowhere"], "nowhere"),
        ("tokenizer", "tokenizer_debug", ["--ckpt_path", "nothing.ckpt"], "does not exist"),
        ("tokenizer", "tokenizer_debug", ["--model.settle_at", "9"], "settle_at"),
        ("tokenizer", "tokenizer_debug", ["--ckpt_path", "recipes/check_debug.py"], "not a whole checkpoint"),
        ("tokenizer", "tokenizer_seanet", ["--trainer.gradient_clip_val", "1"], "model.clip"),
        ("next-scale", "next_scale_debug", [], "no checkpoint at runs/audio_notes_debug/tokenizer"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, capfd, stage, recipe, options, message):
    assert fit(stage, recipe, *QUIET, *options) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("audio-var:")]
    assert len(told) == 1 and message in told[0]


@pytest.mark.parametrize(
    "arguments, code, told",
    [
        ([], 2, "usage: audio-var fit"),
        (["--help"], 0, "usage: audio-var fit"),
        (["nothing"], 2, "unknown stage 'nothing'"),
        (["tokenizer", "--no_such_option", "1"], 2, "error: unrecognized arguments: --no_such_option 1"),
    ],
)
def test_usage(folder, capsys, arguments, code, told):
    assert main(["fit", *arguments]) == code
    out = capsys.readouterr()
    assert told in out.out + out.err and "Traceback" not in out.err
