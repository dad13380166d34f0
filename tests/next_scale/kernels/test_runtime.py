"""Compiling, the cache of compiled kernels, the choice of an implementation, and the table of resources."""

import logging
import os
from pathlib import Path

import pytest
import torch

from next_scale.errors import UserError
from next_scale.kernels import __main__ as table
from next_scale.kernels import cache
from next_scale.kernels.dispatch import dispatch
from next_scale.kernels.runtime import DeviceLauncher, KernelError, Source, compile_source, obstacle, target_of

DOUBLE = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= FACTOR; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A kernel of one line, and a cache of its own."""
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    path = tmp_path / "twice.cu"
    path.write_text(DOUBLE)
    return Source(path, (("FACTOR", 2),))


def test_compiles_once_for_a_source_its_macros_and_a_target(source: Source, tmp_path: Path) -> None:
    binary = compile_source(source, "sm_90")
    assert binary.code[:4] == b"\x7fELF"
    assert binary.resources()["twice"].registers > 0 and binary.resources()["twice"].spilled == 0
    assert len(os.listdir(tmp_path / "cache")) == 1
    assert compile_source(source, "sm_90") == binary
    assert len(os.listdir(tmp_path / "cache")) == 1
    compile_source(source, "sm_80")
    compile_source(Source(source.path, (("FACTOR", 3),)), "sm_90")
    assert len(os.listdir(tmp_path / "cache")) == 3


def test_a_damaged_cache_is_compiled_again(source: Source, tmp_path: Path) -> None:
    binary = compile_source(source, "sm_90")
    (stored,) = (tmp_path / "cache").iterdir()
    stored.write_bytes(stored.read_bytes()[:-9])
    assert compile_source(source, "sm_90").code == binary.code


def test_a_cache_that_cannot_be_written_is_done_without(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(source.path / "below a file"))
    assert compile_source(source, "sm_90").code


def test_the_cache_keeps_texts_apart() -> None:
    assert cache.key_of("ab", "c") != cache.key_of("a", "bc")


def test_what_the_compiler_refuses_is_told(source: Source) -> None:
    with pytest.raises(KernelError, match="FACTOR"):
        compile_source(Source(source.path), "sm_90")
    with pytest.raises(KernelError, match="sm_1"):
        compile_source(source, "sm_1")


def test_targets() -> None:
    assert target_of((9, 0)) == "sm_90"
    assert target_of((12, 0)) == "sm_120"
    assert target_of((99, 0)).startswith("compute_1")  # a newer GPU's driver compiles this itself
    with pytest.raises(KernelError, match="below 8.0"):
        target_of((7, 5))


def test_ptx_for_gpus_to_come(source: Source) -> None:
    binary = compile_source(source, target_of((99, 0)))
    assert b".visible .entry twice" in binary.code and binary.code.endswith(b"\0")


def test_choice(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str:
        raise KernelError("the driver is too old")

    def choose(implementation: str, reason: str | None, cuda=lambda: "cuda") -> str:
        return dispatch("an op", implementation, lambda: reason, cuda, lambda: "torch", lambda: "reference")

    monkeypatch.delenv("NEXT_SCALE_KERNELS", raising=False)
    monkeypatch.setattr("next_scale.kernels.dispatch.MEASURED", frozenset())
    caplog.set_level(logging.INFO)
    assert choose("cuda", None) == "cuda"
    assert choose("auto", None) == "torch"  # nobody has measured it
    monkeypatch.setattr("next_scale.kernels.dispatch.MEASURED", frozenset({"an op"}))
    assert choose("auto", None) == "cuda"
    assert choose("torch", None) == "torch"
    assert choose("reference", None) == "reference"
    assert choose("auto", "no device here") == "torch"
    assert choose("auto", "no device here") == "torch"
    assert choose("auto", None, broken) == "torch"
    assert [record.message for record in caplog.records] == [
        "an op runs in PyTorch: no GPU has measured its kernel yet; NEXT_SCALE_KERNELS=cuda runs it",
        "an op runs in PyTorch: no device here",
        "an op runs in PyTorch: the driver is too old",
    ]
    with pytest.raises(UserError, match="no device here"):
        choose("cuda", "no device here")
    with pytest.raises(KernelError, match="too old"):
        choose("cuda", None, broken)
    monkeypatch.setenv("NEXT_SCALE_KERNELS", "reference")
    assert choose("auto", None) == "reference"
    assert choose("torch", None) == "torch"
    monkeypatch.setenv("NEXT_SCALE_KERNELS", "fast")
    with pytest.raises(UserError, match="'fast'"):
        choose("auto", None)


def test_no_kernel_on_the_cpu() -> None:
    assert obstacle(torch.device("cpu")) == "the tensors are on the cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_launch(source: Source) -> None:
    x = torch.arange(5.0, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        y = x + 1
        DeviceLauncher(source).launch("twice", 1, 5, [y])
    stream.synchronize()
    assert y.tolist() == [2, 4, 6, 8, 10]


def test_table(capsys: pytest.CaptureFixture) -> None:
    assert table.main(["--target", "sm_90"]) == 0
    out = capsys.readouterr().out
    assert "nearest_code" in out and "registers" in out
    assert table.main(["--target", "sm_1"]) == 2
    assert capsys.readouterr().err.startswith("python -m next_scale.kernels: error: ")
