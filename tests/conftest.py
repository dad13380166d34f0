"""Tiny models with random weights, for everything that needs a model and not a good one."""

import os
import subprocess
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: more threads would only be in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from audio_var.codecs import build_codec
from next_scale.checkpoint import save_pretrained
from next_scale.model import Generator
from next_scale.predictors import NextScale
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule, StrideSchedule
from next_scale.tokenizer import Tokenizer

SPEC = {"label": ["bass", "brass", "flute"], "pitch": list(range(36, 85)), "velocity": [45, 80, 115]}
RATE = 16_000
CLIP = 1024  # samples of the tiny models' clips


def build_tokenizer(seed: int = 0, strides: tuple[int, ...] | None = None) -> Tokenizer:
    """Spectral codec at 16 kHz, hop 64, and 31 tokens of 16 codes a clip of 1,024 samples."""
    torch.manual_seed(seed)
    sizes = {"fft_size": 256, "hop": 64, "latent_channels": 4, "width": 16, "encoder_depth": 1, "decoder_depth": 1}
    codec = build_codec("spectral", sample_rate=RATE, **sizes)
    schedule = StrideSchedule(strides) if strides else Schedule.parse("1 2 4 8 16")
    quantizer = MultiScaleQuantizer(schedule, 4, codebook_size=16, phis=2).eval()
    quantizer.start(torch.randn(256, 4, 16))
    return Tokenizer(codec, quantizer).eval()


def build_generator(seed: int = 0, spec: dict | None = None) -> Generator:
    """The tiny tokenizer with a transformer whose gates and head are open, as after training."""
    tokenizer = build_tokenizer(seed)
    predictor = NextScale(
        tokenizer.quantizer.schedule, 16, 4, SPEC if spec is None else spec, width=32, depth=2, heads=2
    )
    with torch.no_grad():
        for name, parameter in predictor.named_parameters():
            if "modulation" in name or "head" in name:
                parameter.normal_(std=0.3)
    return Generator(tokenizer, predictor, SamplingOptions(cfg=1.0, top_k=8)).eval()


@pytest.fixture(scope="session")
def tiny_generator() -> Generator:
    """A tokenizer and a predictor in memory; do not change it."""
    return build_generator()


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint folder; do not change it."""
    return save_pretrained(tiny_generator, tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator with other weights and other condition fields."""
    model = build_generator(1, {"emotion": ["calm", "angry"], "speaker": [1, 2, 3]})
    return save_pretrained(model, tmp_path_factory.mktemp("checkpoint") / "other")


@pytest.fixture(scope="session")
def tokenizer_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer without predictor, of any length."""
    tokenizer = build_tokenizer(2, strides=(8, 4, 2, 1))
    return save_pretrained(tokenizer, tmp_path_factory.mktemp("checkpoint") / "tokenizer")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, hidden files too: path -> contents, None for a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def program():
    """Name and main function of the program under test; folders of tests may name another one."""
    from audio_var.cli import main

    return "audio-var", main


@pytest.fixture
def fails(program, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Runs the program in `tmp_path` with arguments that must fail as a user's mistake does; returns the message.

    That is: exit code 2, one line on stderr, nothing on stdout, and no file or folder that was not there before.
    """
    name, main = program
    monkeypatch.chdir(tmp_path)

    def check(*argv: object) -> str:
        before = tree(tmp_path)
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), (out, err)
        assert err.startswith(f"{name}: error: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert tree(tmp_path) == before
        return err

    return check


@pytest.fixture
def works(program, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Runs the program in `tmp_path` with arguments that must work; returns its standard output."""
    _, main = program
    monkeypatch.chdir(tmp_path)

    def check(*argv: object) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        out, err = capsys.readouterr()
        assert (code, err) == (0, ""), (out, err)
        assert not [name for name in tree(tmp_path) if "partial" in name or name.endswith(".part")]
        return out

    return check


@pytest.fixture
def full_disk(tmp_path: Path):
    """A folder on a file system of 16 KiB. Skipped where tests may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("cannot mount a small tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
