"""Run the debug recipes as a user would, and fail unless each lowers its loss by what its first comments state.

python -m recipes.check_debug
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RECIPES = (  # package of the program, stage, recipe; and, of one that changes another, that one's name
    ("audio_var", "tokenizer", "audio_notes/tokenizer_debug.yaml"),
    ("audio_var", "next-scale", "audio_notes/next_scale_debug.yaml"),
    ("audio_var", "tokenizer", "audio_frozen_codec/tokenizer_debug.yaml"),
    ("image_var", "tokenizer", "image_fashion/tokenizer_debug.yaml"),
    ("image_var", "next-scale", "image_fashion/next_scale_debug.yaml"),
    ("audio_var", "next-scale", "prompts/notes_debug.yaml", "audio_notes/next_scale_debug.yaml"),
    ("image_var", "next-scale", "prompts/fashion_debug.yaml", "image_fashion/next_scale_debug.yaml"),
    ("image_var", "next-scale", "prompts/fashion_morph_debug.yaml", "image_fashion/next_scale_debug.yaml"),
    ("next_scale", "joint", "multimodal/joint_debug.yaml"),
)
PROMISE = re.compile(r"^# It must lower (\S+) by at least (\d+)%", re.MULTILINE)
LAST = 5  # logged values whose mean counts as the end


def losses(logs: Path, name: str) -> list[float]:
    """What TensorBoard would show for a scalar, in the order of steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs), size_guidance={"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def check(folder: Path, package: str, stage: str, recipe: str, base: str | None = None) -> bool:
    """Train by one recipe in `folder` and compare its loss with the promise; prints a line of figures."""
    text = (ROOT / "recipes" / recipe).read_text(encoding="utf-8")
    name, percent = PROMISE.search(text).groups()
    words = ["joint", "fit"] if stage == "joint" else ["fit", stage]
    command = [sys.executable, "-m", package, *words]
    for part in [recipe] if base is None else [base, recipe]:
        command += ["--config", f"recipes/{part}"]
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    seconds = time.monotonic() - start
    if done.returncode:
        print(f"{recipe}: exit code {done.returncode}\n{done.stdout}")
        return False
    logger = yaml.safe_load(text)["trainer"]["logger"]["init_args"]
    values = losses(folder / logger["save_dir"] / logger["name"] / logger["version"], name)
    first, last = values[0], sum(values[-LAST:]) / LAST
    drop = 100 * (1 - last / first)
    kept = drop >= int(percent)
    verdict = "as stated" if kept else "LESS THAN STATED"
    print(f"{recipe}: {name} {first:.3f} -> {last:.3f}, -{drop:.0f}% (at least {percent}%: {verdict}), {seconds:.0f} s")
    return kept


def main() -> int:
    """Exit code 1 where a recipe fails or falls short."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("recipes", "samples"):
            (folder / name).symlink_to(ROOT / name)
        return 0 if all(check(folder, *recipe) for recipe in RECIPES) else 1


if __name__ == "__main__":
    sys.exit(main())
