"""A full disk: one line that names the file and the mend, earlier files whole, nothing half-written left behind.

The disk is full for this process alone: no file may grow beyond a limit (RLIMIT_FSIZE), which needs no rights and stops
writes of every library, those in C too. A training also meets a real one, a small tmpfs, where tests may mount it.
"""

import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from audio_var.cli import main as audio_var
from image_var.cli import main as image_var
from image_var.io import write_image
from next_scale.compare.record import RESULTS, append_record, read_records
from next_scale.compare.report import write_report
from next_scale.compare.training import trainer_for
from next_scale.errors import UserError
from next_scale.shards.writer import PLAN, plan_shards, write_shards
from next_scale.token_file import TokenFile, write_token_file
from next_scale.whole_checkpoint import is_whole, newest_whole
from tests.conftest import build_generator, build_tokenizer, tree
from tests.fuzz import seeds

ROOT = Path(__file__).parents[1]


@contextmanager
def room(size: int):
    """Let no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Models, and a file of every kind."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "sound").symlink_to(seeds.model_folder("spectral"))
    (folder / "picture").symlink_to(seeds.model_folder("vqgan"))
    soundfile.write(folder / "in.wav", np.sin(np.arange(4000) / 9) / 2, 16_000)
    write_image(folder / "in.png", torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    (folder / "in.mid").write_bytes(seeds.score())
    assert audio_var(["tokenize", f"{folder}/in.wav", f"{folder}/in.nst", "--checkpoint", f"{folder}/sound"]) == 0
    assert (
        image_var(["tokenize", f"{folder}/in.png", f"{folder}/picture.nst", "--checkpoint", f"{folder}/picture"]) == 0
    )
    return folder


COMMANDS = [
    ("sound", "generate --count 3 --out {out}"),
    ("sound", "generate --out {out} --format flac"),
    ("sound", "generate --out {out} --format ogg"),
    ("sound", "generate --out {out} --plot {out}/plot.png"),
    ("sound", "generate --seconds 0.1 --stream --out {out}"),
    ("sound", "generate --seconds 0.1 --stream --format flac --out {out}"),
    ("sound", "play {inputs}/in.mid --label a --out {out}/a.wav"),
    ("sound", "reconstruct {inputs}/in.wav {out}/a.wav"),
    ("sound", "tokenize {inputs}/in.wav {out}/a.nst"),
    ("sound", "detokenize {inputs}/in.nst {out}/a.flac"),
    ("sound", "edit {inputs}/in.wav {out}/a.wav --inpaint 0.1:0.2"),
    ("sound", "edit {inputs}/in.wav {out}/a.wav --variation 0.5 --plot {out}/a.png"),
    ("picture", "generate --count 3 --out {out}"),
    ("picture", "generate --out {out} --format jpg"),
    ("picture", "generate --count 2 --out {out} --grid {out}/grid.png"),
    ("picture", "reconstruct {inputs}/in.png {out}/a.png"),
    ("picture", "tokenize {inputs}/in.png {out}/a.nst"),
    ("picture", "detokenize {inputs}/picture.nst {out}/a.png"),
    ("picture", "edit {inputs}/in.png {out}/a.png --mask 0,0,4,8"),
]


@pytest.mark.parametrize(
    "model, command", COMMANDS, ids=[f"{m}-{c.split()[0]}-{i}" for i, (m, c) in enumerate(COMMANDS)]
)
def test_commands(inputs, tmp_path, capsys, model, command):
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier.txt").write_text("whole")
    main = audio_var if model == "sound" else image_var
    words = command.format(inputs=inputs, out=out).split() + ["--checkpoint", str(inputs / model)]
    if "{out}/a.wav" in command:
        (out / "a.wav").write_text("what was there before")
    before = tree(tmp_path)
    for size in (0, 30):  # nothing at all; the start of a file
        with room(size):
            code = main(words)
        err = capsys.readouterr().err
        assert code == 2 and err.count("\n") == 1, err
        assert str(out) in err and "write" in err and ("free space" in err or "elsewhere" in err), err
        assert tree(tmp_path) == before


class Noise(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"sample": torch.randn(1, 1024, generator=generator), "condition": {"label": index % 3}}


def test_token_shards(tmp_path):
    """What was written before stays; nothing of the rest is there; and with space again, all is made."""
    tokenizer, data = build_tokenizer(), Noise()
    plan = plan_shards(data, {"label": ["a", "b", "c"]}, tokenizer, "train", shard_samples=16, latents=True)
    for _ in write_shards(tmp_path / "whole", data, tokenizer, plan):
        pass
    whole = tree(tmp_path / "whole")
    shards = sorted(name for name in whole if name.endswith(".safetensors"))
    assert len(shards) == 3

    (tmp_path / "set").mkdir()
    for name in shards[:1]:
        (tmp_path / "set" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (tmp_path / "set" / PLAN).write_text(plan.to_json())
    before = tree(tmp_path / "set")
    for size in (60, (tmp_path / "whole" / shards[1]).stat().st_size - 1):
        with room(size), pytest.raises(UserError, match=f"{tmp_path}/set/.*free space"):
            for _ in write_shards(tmp_path / "set", data, tokenizer, plan):
                pass
        assert tree(tmp_path / "set") == before
    for _ in write_shards(tmp_path / "set", data, tokenizer, plan):
        pass
    assert tree(tmp_path / "set") == whole


def test_token_files_and_exported_checkpoints(tmp_path, tiny_generator):
    file = TokenFile(torch.zeros(9, 31, dtype=torch.int64), tiny_generator.predictor.schedule, 16, "0" * 16)
    write_token_file(tmp_path / "a.nst", file)
    from next_scale.checkpoint import save_pretrained

    save_pretrained(tiny_generator, tmp_path / "model")
    before = tree(tmp_path)
    with room(40), pytest.raises(UserError, match="a.nst: .*elsewhere"):
        write_token_file(tmp_path / "a.nst", file)
    for size in (40, 10_000):
        with room(size), pytest.raises(UserError, match=f"{tmp_path}/model: .*free space"):
            save_pretrained(build_generator(3), tmp_path / "model")
    assert tree(tmp_path) == before


def test_results_of_a_comparison(tmp_path):
    """A record is there whole or not at all, and a later one does not suffer from what a kill left of an earlier."""
    append_record(tmp_path, {"id": "a", "key": "1"})
    before = tree(tmp_path)
    with room(60), pytest.raises(UserError, match=f"{RESULTS}: .*free space"):
        append_record(tmp_path, {"id": "b", "key": "x" * 100})
    assert tree(tmp_path) == before
    with (tmp_path / RESULTS).open("ab") as results:
        results.write(b'{"id": "c", "ke')
    append_record(tmp_path, {"id": "d", "key": "2"})
    assert list(read_records(tmp_path)) == ["a", "d"]
    (tmp_path / RESULTS).write_bytes(seeds.results())
    write_report(tmp_path, tmp_path / "report.html")
    before = tree(tmp_path)
    with room(500), pytest.raises(UserError, match="report.html: .*free space"):
        write_report(tmp_path, tmp_path / "report.html")
    assert tree(tmp_path) == before


class Module(L.LightningModule):
    """As little as trains."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(30, 30)

    def training_step(self, batch, batch_idx):
        return self.linear(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.1)


def train(folder, steps):
    trainer, last = trainer_for(folder, steps, 0.9, "cpu")
    trainer.fit(Module(), DataLoader(torch.ones(64, 30), 8), ckpt_path=last)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_training(tmp_path):
    """The checkpoint that was there stays the last one, and the training goes on from it."""
    train(tmp_path, 100)
    last = tmp_path / "checkpoints/last.ckpt"
    size, before = last.stat().st_size, tree(tmp_path)
    for limit in (0, 1000, size // 2, size - 100):
        with room(limit), pytest.raises(UserError, match=f"{last.parent}/.*ckpt: File too large; free space"):
            train(tmp_path, 200)
        assert tree(tmp_path) == before
    assert train(tmp_path, 200).global_step == 200 and is_whole(last)
    assert torch.load(last, weights_only=True)["global_step"] == 200


@pytest.mark.filterwarnings("ignore")
def test_training_on_a_small_disk(full_disk):
    """The same where the disk itself is small, and the system's temporary folder is on another one."""
    (full_disk / "fill").write_bytes(bytes(9000))
    with pytest.raises(UserError, match="disk/checkpoints/.*ckpt: No space left on device; free space"):
        train(full_disk, 100)
    assert [path.name for path in full_disk.rglob("*") if path.is_file()] == ["fill"]


def test_damaged_checkpoints(tmp_path):
    """Cut short, or with a byte of its contents changed, a checkpoint is not whole; the newest whole one is found."""
    torch.save({"a": torch.arange(1000)}, tmp_path / "step=1.ckpt")
    torch.save({"a": torch.arange(2000)}, tmp_path / "step=2.ckpt")
    os.utime(tmp_path / "step=1.ckpt", (1, 1))
    data = (tmp_path / "step=2.ckpt").read_bytes()
    for damaged in (
        b"",
        data[:1],
        data[: len(data) // 2],
        data[:-1],
        data[:2000] + b"\1" + data[2001:],
        bytes(len(data)),
    ):
        (tmp_path / "last.ckpt").write_bytes(damaged)
        assert not is_whole(tmp_path / "last.ckpt")
        assert newest_whole(tmp_path) == tmp_path / "step=2.ckpt"
    (tmp_path / "last.ckpt").write_bytes(data)
    assert newest_whole(tmp_path) == tmp_path / "last.ckpt"


def test_a_recipe_on_a_full_disk_and_after_a_power_cut(tmp_path, monkeypatch, capsys):
    """`fit`: exit code 2 and one line; then `--ckpt_path last` passes over the checkpoint that was cut short."""
    for name in ("recipes", "samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    kept = Path("runs/kept")
    command = ["fit", "tokenizer", "--config", "recipes/audio_notes/tokenizer_debug.yaml", "--data.batch_size", "2",
               "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
               "--trainer.limit_val_batches", "0", "--model.start_samples", "8", "--model.quantize_after", "2",
               "--checkpoint.dirpath", str(kept), "--checkpoint.save_top_k", "-1",
               "--checkpoint.filename", "{step}", "--checkpoint.every_n_train_steps", "1"]  # fmt: skip
    capsys.readouterr()
    with room(1000):
        assert audio_var([*command, "--trainer.max_steps", "2"]) == 2
    assert "tokenizer/logs/config.yaml: File too large; free space" in capsys.readouterr().err
    assert not list(Path("runs").rglob("*.yaml")) and not list(Path("runs").rglob(".*"))
    with room(50_000):
        assert audio_var([*command, "--trainer.max_steps", "2"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("audio-var: error: ")]
    assert len(errors) == 1 and "runs/kept/step=1.ckpt: File too large; free space" in errors[0]
    assert not list(kept.glob("*")) and not list(kept.glob(".*"))

    assert audio_var([*command, "--trainer.max_steps", "2"]) == 0
    last = kept / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    assert audio_var([*command, "--trainer.max_steps", "3", "--ckpt_path", str(last)]) == 2
    assert (
        f"not a whole checkpoint of a training; give a .ckpt file such as {kept}/step=2.ckpt" in capsys.readouterr().err
    )
    assert audio_var([*command, "--trainer.max_steps", "3", "--ckpt_path", "last"]) == 0
    assert torch.load(kept / "step=3.ckpt", weights_only=True)["global_step"] == 3
    assert json.loads((Path("runs/audio_notes_debug/tokenizer") / "config.json").read_text())["kind"] == "tokenizer"
