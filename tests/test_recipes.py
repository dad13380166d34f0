"""What every recipe promises in its first comments and its README."""

import re
from pathlib import Path

import pytest
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
