"""Kill commands at random moments, run them again, and fail unless they end as those left alone do.

python -m recipes.check_kills [--kills 20] [--seed 0]

Trains a tokenizer, writes the shards of tokens it makes, trains a predictor on them, and generates clips: once
undisturbed, and once with kills. Two of three are SIGKILL, as a full memory sends it, the others SIGTERM, as a cluster
does; and after every third kill of a training its newest checkpoint is cut in half, as by a power cut. After every
kill all files must be whole; in the end weights, averages, optimizers, shards and clips must be those of the
undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
from rich.console import Console
from safetensors.torch import load_file

from next_scale.cli import whole_number
from next_scale.whole_checkpoint import is_whole, newest_whole

ROOT = Path(__file__).parents[1]
SMALL = (
    "--trainer.enable_progress_bar false --trainer.enable_model_summary false --trainer.limit_val_batches 1 "
    "--checkpoint.every_n_train_steps 2 --trainer.val_check_interval 5 --trainer.max_steps 16"
)
RUNS, LAST = Path("runs/audio_notes_debug"), Path("checkpoints/last.ckpt")
console = Console(stderr=True, highlight=False)


class Stage(NamedTuple):
    """A command, where it writes, and whether it is a training, which is told to go on where it stopped."""

    name: str
    command: str
    out: Path
    trains: bool = False


STAGES = (
    Stage(
        "tokenizer",
        "fit tokenizer --config recipes/audio_notes/tokenizer_debug.yaml --data.batch_size 4 --model.quantize_after 4 "
        f"--model.start_samples 16 --model.settle_at 11 --model.settle_samples 16 {SMALL}",
        RUNS / "tokenizer",
        trains=True,
    ),
    Stage(
        "shards",
        f"tokenize-dataset samples/demo_notes --checkpoint {RUNS / 'tokenizer'} --out shards --shard-samples 8 "
        "--batch-size 4",
        Path("shards"),
    ),
    Stage(
        "predictor",
        "fit next-scale --config recipes/audio_notes/next_scale_debug.yaml "
        f"--data next_scale.shards.ShardDataModule --data.folder shards --data.batch_size 4 {SMALL}",
        RUNS / "next_scale",
        trains=True,
    ),
    Stage(
        "clips",
        f"generate --checkpoint {RUNS / 'next_scale'} --label flute brass --count 3 --seed 5 --out clips",
        Path("clips"),
    ),
)


def start(stage: Stage, folder: Path) -> subprocess.Popen:
    """Begin a stage, or go on with it, in a group of processes of its own."""
    command = [sys.executable, "-m", "audio_var", *stage.command.split()]
    if stage.trains:
        command += ["--ckpt_path", "last"]
    log = (folder / "log.txt").open("ab")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(stage: Stage, folder: Path) -> float:
    """Run a stage to its end; returns the seconds it took."""
    began = time.monotonic()
    if start(stage, folder).wait():
        raise SystemExit(f"{stage.name} failed:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return time.monotonic() - began


def disturb(stage: Stage, folder: Path, moment: float, number: int) -> str:
    """Kill a stage so many seconds after its start; returns what that left behind, and raises where that is damaged."""
    last = folder / stage.out / LAST
    cut = last.stat().st_mtime_ns if last.is_file() and not is_whole(last) else None  # until there is a newer one
    process, polite = start(stage, folder), number % 3 == 2
    try:
        process.wait(moment)
        return "was done already" if process.returncode == 0 else f"failed with exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM if polite else signal.SIGKILL)
        process.wait(60)
    files = [path for path in (folder / stage.out).rglob("*") if path.is_file()]
    files = [path for path in files if path != last or path.stat().st_mtime_ns != cut]
    told = f"{'stopped' if polite else 'killed'} after {moment:.1f} s: {sum(map(read, files))} files, all whole"
    if last in files:
        told += f", at step {torch.load(last, weights_only=True)['global_step']}"
        if number % 3 == 1:
            os.truncate(last, last.stat().st_size // 2)
            told += ", cut in half then"
    return told


def read(path: Path) -> bool:
    """Whether this is a file that must be whole; raises where it is not."""
    if any(part.startswith(".") for part in path.parts[-3:]):  # what was under way, under another name
        return False
    readers = {".ckpt": lambda p: torch.load(p, weights_only=True), ".safetensors": load_file, ".wav": soundfile.read}
    if path.suffix not in readers:
        return False
    readers[path.suffix](path)
    return True


def same(stage: Stage, left_alone: Path, killed: Path) -> bool:
    """Whether a stage ended alike in two folders."""
    folders = left_alone / stage.out, killed / stage.out
    if not stage.trains:
        files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
        return bool(files[0]) and files[0] == files[1]
    exported = [(folder / "model.safetensors").read_bytes() for folder in folders]
    if exported[0] != exported[1]:
        console.print("the exported models differ")
        return False
    # the newest that is whole: one cut in half stays where no step was left to write another
    a, b = (torch.load(newest_whole((folder / LAST).parent), weights_only=True) for folder in folders)
    names = {"state_dict", "current_model_state", "averaging_state", "optimizer_states", "codebook_usage"} & set(a)
    try:
        torch.testing.assert_close({n: a[n] for n in names}, {n: b[n] for n in names}, rtol=0, atol=0)
    except AssertionError as error:
        console.print(str(error))
        return False
    return a["global_step"] == b["global_step"]


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where anything is lost, damaged or different."""
    parser = argparse.ArgumentParser(prog="python -m recipes.check_kills", description=__doc__)
    parser.add_argument("--kills", type=whole_number(1), default=20, metavar="N", help="in all (default: 20)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the moments (default: 0)")
    args = parser.parse_args(argv)
    moments = random.Random(args.seed)
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, name) for name in ("left_alone", "killed")]
        for folder in folders:
            folder.mkdir()
            for name in ("recipes", "samples"):
                (folder / name).symlink_to(ROOT / name)
        for i, stage in enumerate(STAGES):
            seconds = finish(stage, folders[0])
            kills = args.kills // len(STAGES) + (i < args.kills % len(STAGES))
            for number in range(kills):
                told = disturb(stage, folders[1], moments.uniform(0.4, 1.0) * seconds, number)
                console.print(f"{stage.name}: {told}")
                good &= "failed" not in told
            finish(stage, folders[1])
            alike = same(stage, *folders)
            good &= alike
            print(f"{stage.name}: {kills} kills, {'the same' if alike else 'NOT THE SAME'} in the end")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
