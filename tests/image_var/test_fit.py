"""`image-var fit` as a user runs it, from the recipes at reduced size: one process, resuming, both stages, mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from image_var.cli import main
from image_var.data.datamodule import ImageDataModule
from next_scale.checkpoint import from_pretrained
from next_scale.metrics import codebook_usage
from recipes.check_debug import losses

ROOT = Path(__file__).parents[2]
DEBUG = "recipes/image_fashion/tokenizer_debug.yaml"
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
SHORT = ["--data.batch_size", "8", "--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1", *QUIET]
TINY = [*SHORT, "--model.start_samples", "64", "--model.quantize_after", "2", "--trainer.val_check_interval", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with recipes and samples, where a recipe's runs/ may be written."""
    for name in ("recipes", "samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(stage, recipe, *options):
    return main(["fit", stage, "--config", f"recipes/image_fashion/{recipe}.yaml", *map(str, options)])


def scalars(logs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs))
    events.Reload()
    return events.Tags()


def test_one_process_is_enough_and_codebook_usage_is_tracked(folder, monkeypatch):
    """VAR's release trains no tokenizer, and counts the use of its codes in distributed training only: not so here."""
    import torch.distributed as dist

    def refuse(*args, **options):
        raise AssertionError("a process group was wanted")

    for name in ("init_process_group", "all_reduce", "broadcast", "all_gather", "barrier"):
        monkeypatch.setattr(dist, name, refuse)
    assert fit("tokenizer", "tokenizer_debug", *TINY, "--trainer.max_steps", 6, "--trainer.accelerator", "cpu") == 0
    assert not dist.is_initialized()

    runs = folder / "runs/image_fashion_debug/tokenizer"
    assert len(losses(runs / "logs", "train/perplexity")) == 4  # each step from the quantizer's start
    for k in range(6):
        values = losses(runs / "logs", f"perplexity/{k}")
        assert len(values) == 3 and all(1 <= value <= 128 for value in values)
    # how often each code was used, 1 being the average: kept with the training
    state = torch.load(runs / "checkpoints/last.ckpt", weights_only=True)
    assert [usage.shape for usage in state["codebook_usage"]] == [(128,)] * 6
    assert all((usage != 1).any() and 0 <= usage.min() for usage in state["codebook_usage"])
    # and of the model that came out, over a data set
    tokenizer = from_pretrained(runs)
    data = ImageDataModule("samples/demo_images").dataset("train")
    tokens = tokenizer.encode(torch.stack([data[i]["sample"] for i in range(64)]))
    usage = codebook_usage(tokens, tokenizer.quantizer.schedule, 128)
    assert [scale.tokens for scale in usage] == [1, 4, 9, 16, 36, 64]
    assert all(1 <= scale.used <= 128 and scale.perplexity <= scale.used + 1e-6 for scale in usage)
    assert max(scale.used for scale in usage) > 16


def test_interrupted_and_resumed(folder):
    """Stopped after 4 of 6 steps and resumed: the right step, average and codes."""
    kept = ["--checkpoint.filename", "{step}", "--checkpoint.every_n_train_steps", 4, "--checkpoint.save_top_k", -1]
    assert fit("tokenizer", "tokenizer_debug", *TINY, *kept, "--trainer.max_steps", 6) == 0
    left = folder / "runs/image_fashion_debug/tokenizer/checkpoints/step=4.ckpt"
    before = torch.load(left, weights_only=True)
    more = ["--trainer.max_steps", 6, "--checkpoint.every_n_train_steps", 5, "--ckpt_path", left]
    assert fit("tokenizer", "tokenizer_debug", *TINY, *more) == 0
    after = torch.load(left.with_name("last.ckpt"), weights_only=True)
    assert (before["global_step"], after["global_step"]) == (4, 5)
    assert (before["averaging_state"]["n_averaged"], after["averaging_state"]["n_averaged"]) == (2, 3)
    names = [name for name in after["current_model_state"] if "codebooks" in name]
    assert len(names) == 6
    for name in names:  # one step's update of the codes that were, not a new start
        moved = (after["current_model_state"][name] - before["current_model_state"][name]).norm()
        assert 0 < moved < 0.5 * before["current_model_state"][name].norm()


def test_both_stages_and_their_previews(folder):
    """Tokenizer, then predictor on its tokens; grids of both are in TensorBoard's files."""
    assert fit("tokenizer", "tokenizer_debug", *TINY, "--trainer.max_steps", 4) == 0
    options = ["--model.predictor.width", 16, "--trainer.max_steps", 2, "--trainer.val_check_interval", 2]
    assert fit("next-scale", "next_scale_debug", *SHORT, *options) == 0
    runs = folder / "runs/image_fashion_debug"
    assert scalars(runs / "tokenizer/logs")["images"] == ["real", "all_scales", "half_the_scales"]
    shown = scalars(runs / "next_scale/logs")
    assert shown["images"] == ["generated"]
    assert {"train/loss", "val/loss", "train/loss_scale_5", "val/accuracy_scale_0"} <= set(shown["scalars"])
    model = from_pretrained(runs / "next_scale")
    assert "ankle-boot" in model.condition_spec["label"]
    images, tokens = model.generate({"label": torch.tensor([2])}, [0])
    assert images.shape == (1, 1, 32, 32) and tokens.shape == (1, 130)
    assert (model.sampling.cfg, model.sampling.top_k) == (1.5, 32)


def test_adversarial_recipe_at_reduced_size(folder):
    """recipes/image_fashion/tokenizer_adversarial.yaml parses and trains both sides, in RGB."""
    small = ["--model.autoencoder.init_args.width", 4, "--model.objective.init_args.discriminator_width", 4]
    small += [
        "--model.autoencoder.init_args.multipliers",
        "[1,2,4]",
        "--model.objective.init_args.discriminator_layers",
        2,
    ]
    small += ["--model.quantizer.codebook_size", 8, "--model.schedule", "1x1 2x2 4x4 8x8"]
    small += ["--data.data", "samples/demo_images", "--data.num_workers", 0, "--data.size", 32]
    small += ["--trainer.accelerator", "cpu"]
    steps = ["--model.adversarial_after", 1, "--model.quantize_after", 1, "--trainer.max_steps", 3]
    assert fit("tokenizer", "tokenizer_adversarial", *TINY, *small, *steps) == 0
    logs = folder / "runs/image_fashion/tokenizer_adversarial/logs"
    for name, count in (("l1", 3), ("adversarial", 2), ("adaptive_weight", 2), ("discriminator", 2)):
        values = losses(logs, f"train/{name}")
        assert len(values) == count and all(torch.tensor(values).isfinite())
    assert min(losses(logs, "train/adaptive_weight")) > 0
    tokenizer = from_pretrained(folder / "runs/image_fashion/tokenizer_adversarial")
    assert tokenizer.autoencoder.channels_in == 3 and len(tokenizer.quantizer.codebooks) == 1
    assert tokenizer.decode(torch.zeros(1, 85, dtype=torch.int64)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "stage, recipe, options, message",
    [
        ("tokenizer", "tokenizer_debug", ["--model.schedule", "4x4 2x2"], "may not shrink"),
        ("tokenizer", "tokenizer_debug", ["--data.data", "nowhere"], "nowhere"),
        ("tokenizer", "tokenizer_debug", ["--model.objective.init_args.perceptual", "1"], "perceptual_weights"),
        ("tokenizer", "tokenizer_adversarial", ["--trainer.gradient_clip_val", "1"], "model.clip"),
        ("tokenizer", "tokenizer_debug", ["--model.lr", "fast"], "float"),
        ("tokenizer", "tokenizer_debug", ["--model.learning", "1"], "model.learning"),
        ("tokenizer", "tokenizer_debug", ["--trainer.logger", "os.system"], "add --trust"),
        ("next-scale", "next_scale_debug", [], "no checkpoint at runs/image_fashion_debug/tokenizer"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, capfd, stage, recipe, options, message):
    assert fit(stage, recipe, *QUIET, *options) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("image-var:")]
    assert len(told) == 1 and message in told[0]


def test_recipes_import_nothing_of_strangers(folder, capfd):
    """Importing a module runs it: classes of other packages than the recipes' own need the user's word."""
    (folder / "stranger.py").write_text("open('ran', 'w').close()\nfrom lightning.pytorch.callbacks import *\n")
    (folder / "recipe.yaml").write_text("trainer: {callbacks: [{class_path: stranger.Timer}], max_steps: 0}\n")
    command = [
        sys.executable,
        "-m",
        "image_var",
        "fit",
        "tokenizer",
        "--config",
        ROOT / DEBUG,
        "--config",
        "recipe.yaml",
    ]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    refused = subprocess.run([*command], env=paths, capture_output=True, text=True)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "stranger.Timer, which was not imported" in refused.stderr and not (folder / "ran").exists()
    subprocess.run([*command, "--trust", "--data.data", "nowhere"], env=paths, capture_output=True)
    assert (folder / "ran").exists()


@pytest.mark.parametrize("arguments, code", [([], 2), (["--help"], 0), (["nothing"], 2)])
def test_usage(folder, capsys, arguments, code):
    assert main(["fit", *arguments]) == code
    out = capsys.readouterr()
    assert "usage: image-var fit" in out.out or "unknown stage 'nothing'" in out.err
