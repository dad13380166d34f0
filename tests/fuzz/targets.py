"""The targets: everything that reads what a stranger may have made. To add one, write a function and a line below it.

A target is a function of bytes. It returns, or raises UserError, whatever they are; `guard.check` holds it to that.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz import seeds
from tests.fuzz.commands import command_lines
from tests.fuzz.strategies import bent_bytes, bent_json, texts

Strategy = Callable[[Sequence[bytes]], st.SearchStrategy[bytes]]


@dataclass(frozen=True)
class Target:
    """Something to fuzz.

    Attributes:
        run: takes the bytes.
        seeds: gives what to start from.
        strategy: how hypothesis bends the seeds.
        coverage: whether atheris may fuzz it too; not where bytes without structure would say nothing.
        short: executions in the test suite.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    strategy: Strategy = bent_bytes
    coverage: bool = True
    short: int = 200


def _file(data: bytes, name: str) -> Path:
    path = seeds.scratch() / name
    path.write_bytes(data)
    return path


def read_tokens(data: bytes) -> None:
    """A token file as it is; and with its checksum set right, so that what is behind it is reached."""
    import struct
    import zlib

    from next_scale.errors import UserError
    from next_scale.token_file import read_token_file

    try:
        read_token_file(_file(data, "tokens.nst"))
    except UserError:
        read_token_file(_file(data[:-4] + struct.pack("<I", zlib.crc32(data[:-4])), "tokens.nst"))


def _open_shards(index: bytes, name: str, shard: bytes) -> None:
    """Open a set of shards, check all, and read its first sample and its last."""
    from next_scale.shards.reader import TokenSet
    from next_scale.shards.shard import check_shard

    with tempfile.TemporaryDirectory(dir=seeds.scratch()) as folder:
        Path(folder, "index.json").write_bytes(index)
        Path(folder, name).write_bytes(shard)
        tokens = TokenSet(folder)
        tokens.batch([0, len(tokens) - 1])
        for listed in tokens.index.shards:
            check_shard(tokens.place.path(listed), listed, tokens.index)


def read_shard_index(data: bytes) -> None:
    """An index beside a shard that is whole."""
    _, name, shard = seeds.shards()
    _open_shards(data, name, shard)


def read_shard(data: bytes) -> None:
    """A shard whose index lists it with its true size and checksum, so that what is behind them is reached."""
    import hashlib

    index, _, _ = seeds.shards()
    digest = hashlib.sha256(data).hexdigest()
    name = f"000000-{digest[:16]}.safetensors"
    values = json.loads(index)
    values["shards"][0] |= {"file": name, "bytes": len(data), "sha256": digest}
    _open_shards(json.dumps(values).encode(), name, data)


def read_schedule(data: bytes) -> None:
    """A schedule or strides as text, and what follows from them."""
    from next_scale.schedule import Schedule, parse_schedule

    schedule = parse_schedule(data.decode("utf-8", "replace"))
    if not isinstance(schedule, Schedule):
        schedule = schedule.at((8 * schedule.strides[0],) * (1 + len(data) % 2))
    assert schedule.length == sum(schedule.counts) and len(schedule.starts) == schedule.scales
    assert Schedule.parse(str(schedule)) == schedule == Schedule.from_config(schedule.to_config())


def read_options(data: bytes) -> None:
    """Texts that options take: spans, boxes, codecs, numbers."""
    import argparse

    from audio_var.cli.edit import _span
    from audio_var.codecs.spec import parse_spec
    from audio_var.editing import check_span
    from image_var.cli.edit import parse_box
    from next_scale.cli import real_number, whole_number
    from next_scale.errors import UserError

    text = data.decode("utf-8", "replace")
    readers = (
        lambda: check_span(*_span(text), 1.0),
        lambda: parse_box(text, (7, 9)),
        lambda: parse_spec(text),
        lambda: whole_number(0, 9)(text),
        lambda: real_number(0, 9)(text),
    )
    for read in readers:
        with contextlib.suppress(UserError, argparse.ArgumentTypeError):
            read()


def _draw(path: Path) -> None:
    """Load a checkpoint, and make a sample of it where it generates."""
    import torch

    from next_scale.checkpoint import from_pretrained
    from next_scale.model import Generator

    model = from_pretrained(path)
    torch.manual_seed(0)
    if isinstance(model, Generator):
        model.generate({}, [0])


def _configured(kind: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        """A configuration beside the weights of a small model."""
        whole = seeds.weights(kind)
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        header["__metadata__"]["config"] = data.decode("utf-8", "replace")
        text = json.dumps(header).encode()
        _draw(_file(len(text).to_bytes(8, "little") + text + whole[8 + length :], "model.safetensors"))

    return run


def read_checkpoint(data: bytes) -> None:
    """A whole checkpoint, its header of tensors first of all."""
    _draw(_file(data, "model.safetensors"))


def read_weights(data: bytes) -> None:
    """Weights of a stranger."""
    from next_scale.weights_file import read_weights_file

    read_weights_file(_file(data, "weights.pth"))


def read_recipe(data: bytes) -> None:
    """A recipe, up to where its classes would be built."""
    from audio_var.cli.fit import run

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(["tokenizer", "--config", str(_file(data, "recipe.yaml")), "--print_config"])


def read_yaml(data: bytes) -> None:
    """YAML as recipes and plans are read, before anything is made of its values."""
    import yaml
    from jsonargparse import get_loader

    from next_scale.yaml_limits import limit_yaml

    limit_yaml()
    with contextlib.suppress(yaml.YAMLError):
        get_loader("yaml")(data.decode("utf-8", "replace"))


def read_plan(data: bytes) -> None:
    """A plan of a comparison, and the keys of its cells."""
    from next_scale.compare.cells import read_plan

    plan = read_plan(_file(data, "plan.yaml"))
    for cell in plan.list_cells():
        plan.cell_key(cell)


def read_results(data: bytes) -> None:
    """Results of a comparison, as its report shows them."""
    from next_scale.compare.report import write_report

    _file(data, "results.jsonl")
    write_report(seeds.scratch(), seeds.scratch() / "report.html")


def read_recording(data: bytes) -> None:
    """An audio file of any format, as what is generated from it would have it."""
    from audio_var.io import read_audio

    read_audio(_file(data, "in.wav"), 16_000)


def read_picture(data: bytes) -> None:
    """An image file of any format, cut and resized."""
    from image_var.io import check_image, read_image

    path = _file(data, "in.png")
    height, width = check_image(path)
    assert height > 0 and width > 0
    read_image(path, (8, 8), 3)


def read_melody(data: bytes) -> None:
    """A MIDI file."""
    from audio_var.score import read_score

    read_score(_file(data, "in.mid"))


def run_command(data: bytes) -> None:
    """A command line of one of the three programs, in a folder with a file of every kind in it."""
    from importlib import import_module

    program, *words = shlex.split(data.decode())
    package = {"audio-var": "audio_var.cli", "image-var": "image_var.cli"}.get(program, "next_scale.compare.cli")
    main = import_module(package).main
    folder = Path(tempfile.mkdtemp(dir=seeds.scratch()))
    for name, content in _INPUTS.items():
        (folder / name).write_bytes(content())
    (folder / "model").symlink_to(seeds.model_folder("vqgan" if program == "image-var" else "spectral"))
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    finally:
        os.chdir(before)
        left = [path.name for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".part"]
        shutil.rmtree(folder)
    told = err.getvalue()
    assert code in (0, 2), f"exit code {code}"
    assert code == 0 or told.count("\n") == 1 or not words, f"exit code 2 with {told!r}"
    assert not left, f"left behind: {left}"


_INPUTS: dict[str, Callable[[], bytes]] = {
    "in.wav": seeds.recording,
    "in.png": seeds.picture,
    "in.mid": seeds.score,
    "in.nst": seeds.token_file,
    "plan.yaml": seeds.plan,
    "weights.pth": seeds.torch_file,
    "empty": bytes,
}

_SOUNDS = (("WAV", "PCM_16", 1), ("WAV", "FLOAT", 2), ("FLAC", "PCM_16", 2), ("OGG", "VORBIS", 1), ("OGG", "OPUS", 1),
           ("AIFF", "PCM_24", 1), ("MP3", "MPEG_LAYER_III", 1))  # fmt: skip
_PICTURES = (("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "L"),
             ("WEBP", "RGB"), ("GIF", "P"), ("TIFF", "RGB"), ("BMP", "RGB"), ("PPM", "RGB"))  # fmt: skip
_SCHEDULES = [b"1 2 4 8", b"1x1 2x2 4x4", b"strides 8 4 2 1", b"1,2,4", b"1 4294967296"]
_YAML = [b"a: &a [1, 2]\nb: &b [*a, *a]\nc: {<<: {d: 1}, e: *b}", b"!!binary aGk=", b"? [a]\n: !!set {b, c}",
         b"1:30:00", b"2001-12-14t21:59:43.10-05:00", b"- |\n a\n- >-\n b", b"%YAML 1.1\n---\n.inf"]  # fmt: skip
_COMMANDS = [
    b"audio-var generate --checkpoint model --out out",
    b"audio-var edit in.wav out.wav --checkpoint model --variation 0.5",
    b"audio-var play in.mid --checkpoint model --label a --out out.wav",
    b"image-var edit in.png out.png --checkpoint model --mask 0,0,1,1",
    b"next-scale compare run plan.yaml --out out --list",
]
_OPTIONS = [b"0.3:0.6", b"0.5,0,1,1", b"8,8,24,24", b"encodec:24khz/8-4-2-1=weights.th@3,6", b"opus@8,12", b"7", b"1e9"]

TARGETS: dict[str, Target] = {
    "tokens": Target(read_tokens, lambda: [seeds.token_file()]),
    "index": Target(read_shard_index, lambda: [seeds.shards()[0]], bent_json),
    "shard": Target(read_shard, lambda: [seeds.shards()[2]]),
    "schedule": Target(read_schedule, lambda: _SCHEDULES, texts),
    "options": Target(read_options, lambda: _OPTIONS, texts),
    "configuration": Target(_configured("spectral"), lambda: [seeds.configuration()], bent_json, short=100),
    "strides": Target(_configured("strides"), lambda: [seeds.configuration("strides")], bent_json, short=60),
    "grid": Target(_configured("vqgan"), lambda: [seeds.configuration("vqgan")], bent_json, short=60),
    "checkpoint": Target(read_checkpoint, lambda: [seeds.weights()], short=60),
    "weights": Target(read_weights, lambda: [seeds.torch_file(), seeds.torch_file(True), seeds.weights()]),
    "recipe": Target(read_recipe, lambda: [seeds.recipe()], short=5),
    "yaml": Target(read_yaml, lambda: [seeds.recipe(), seeds.plan(), *_YAML], texts),
    "plan": Target(read_plan, lambda: [seeds.plan()], short=40),
    "results": Target(read_results, lambda: [seeds.results()], texts, short=20),
    "recording": Target(read_recording, lambda: [seeds.recording(*kind) for kind in _SOUNDS]),
    "picture": Target(read_picture, lambda: [seeds.picture(*kind) for kind in _PICTURES]),
    "melody": Target(read_melody, lambda: [seeds.score()]),
    "command": Target(run_command, lambda: _COMMANDS, command_lines, coverage=False, short=50),
}
