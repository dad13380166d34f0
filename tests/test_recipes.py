"""What every recipe promises in its first comments and its README."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from recipes.check_debug import PROMISE, RECIPES

ROOT = Path(__file__).parents[1]
PROGRAMS = {"audio_notes": "audio-var", "audio_frozen_codec": "audio-var", "image_fashion": "image-var"}
CHANGED = {"notes": "audio_notes", "fashion": "image_fashion"}  # of recipes/prompts: by its name's beginning
PATHS = [path for folder in PROGRAMS for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_begin_with_their_command(path):
    text = path.read_text(encoding="utf-8")
    commands = re.findall(r"^# (\S+-var fit .*)$", text, re.MULTILINE)
    assert len(commands) == 1 and commands[0].startswith(PROGRAMS[path.parent.name])
    assert commands[0].endswith(f"--config recipes/{path.parent.name}/{path.name}")
    assert (path.parent / "README.md").read_text(encoding="utf-8").count(path.name) >= 1
    assert yaml.safe_load(text)["seed_everything"] == 0


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/prompts").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_prompts_change_another(path):
    text = path.read_text(encoding="utf-8")
    base = CHANGED[path.stem.partition("_")[0]]
    debug = "_debug" if path.stem.endswith("_debug") else ""
    configs = f"--config recipes/{base}/next_scale{debug}.yaml --config recipes/prompts/{path.name}"
    assert text.startswith(f"# {PROGRAMS[base]} fit next-scale {configs}\n")
    assert (path.parent / "README.md").read_text(encoding="utf-8").count(path.name) >= 1
    assert yaml.safe_load(text)["seed_everything"] == 0


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/multimodal").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_sequences_begin_with_their_command(path):
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first.startswith(("# next-scale joint fit --config ", "# python -m recipes.multimodal.compare --plan "))
    assert f"recipes/multimodal/{path.name}" in first
    assert (path.parent / "README.md").read_text(encoding="utf-8").count(path.name) >= 1


def test_debug_recipes_state_what_they_must_reach():
    for _, _, recipe, *_ in RECIPES:
        path = ROOT / "recipes" / recipe
        readme = (path.parent / "README.md").read_text(encoding="utf-8")
        name, percent = PROMISE.search(path.read_text(encoding="utf-8")).groups()
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{path.name}` |"))
        assert f"{percent}%" in row and name == "train/loss"


def test_scale_out_recipes_lie_over_others(capsys, monkeypatch):
    """Each is named with its command; those of one stage go together, and what the recipe below says stays."""
    from audio_var.cli import main

    folder = ROOT / "recipes" / "scale_out"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    paths = {path.stem: path for path in folder.glob("*.yaml")}
    for path in paths.values():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# audio-var fit ") and f"recipes/scale_out/{path.name}" in first
        assert f"`{path.name}`" in readme
    monkeypatch.chdir(ROOT)
    below = ROOT / "recipes" / "audio_notes" / "next_scale.yaml"
    over = [f"--config={paths[name]}" for name in ("2b", "accumulate", "gpu", "fsdp")]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "next-scale", f"--config={below}", *over, "--print_config"])
    assert stopped.value.code in (0, None)
    merged = yaml.safe_load(capsys.readouterr().out)
    assert merged["trainer"]["strategy"]["class_path"] == "next_scale.sharding.FullySharded"
    assert merged["trainer"]["precision"] == "bf16-mixed" and merged["trainer"]["accumulate_grad_batches"] == 2
    assert merged["model"]["checkpointing"] and merged["model"]["compile"]
    assert merged["model"]["predictor"]["width"] == 1920 and merged["model"]["predictor"]["codebook_head"]
    assert merged["data"]["init_args"]["tokenizer"] == yaml.safe_load(below.read_text())["data"]["tokenizer"]


def test_bf16_is_refused_on_a_cpu_without_matrix_units(capsys, monkeypatch):
    from audio_var.cli import main

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False})
    monkeypatch.chdir(ROOT)
    over = ["--config=recipes/scale_out/gpu.yaml", "--trainer.accelerator=cpu"]
    assert main(["fit", "next-scale", "--config=recipes/audio_notes/next_scale_debug.yaml", *over]) == 2
    assert "a hundred times slower" in capsys.readouterr().err
