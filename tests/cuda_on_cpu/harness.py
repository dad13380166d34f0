"""Compiles a kernel's source with g++ and launches it on the CPU, in guarded memory and in a process of its own."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from next_scale.kernels import runtime
from next_scale.kernels.runtime import Argument, Source

FOLDER = Path(__file__).parent
COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(
    COMPILER is None or os.uname().machine != "x86_64", reason="kernels run on the CPU through g++ on x86-64"
)
_KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(')
_PAGE = mmap.PAGESIZE
_SECONDS = 30
_libc = ctypes.CDLL(None, use_errno=True)


class Crash(Exception):
    """The kernel's process died: memory outside a tensor, threads that part at a barrier, or no end."""


class Guarded:
    """A copy of a tensor's memory that ends where the process may not read or write, shared with child processes."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        pages = -(-self.size // _PAGE) * _PAGE
        self._memory = mmap.mmap(-1, pages + 2 * _PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.address = base + _PAGE + pages - self.size
        ctypes.memmove(self.address, tensor.data_ptr(), self.size)
        for guard in (base, base + _PAGE + pages):
            if _libc.mprotect(ctypes.c_void_p(guard), _PAGE, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def fetch(self) -> None:
        """Bring what the kernel wrote into the tensor."""
        ctypes.memmove(self.tensor.data_ptr(), self.address, self.size)


class CpuLauncher:
    """Launches a source's kernels on the CPU; stands in for :class:`next_scale.kernels.runtime.DeviceLauncher`.

    Args:
        backwards: blocks, warps and lanes run last to first.
        text: the source's text, where it is not the file's own.
    """

    def __init__(self, source: Source, backwards: bool = False, text: str | None = None) -> None:
        self.library = _build(source, text or source.text)
        self.backwards = backwards

    def launch(self, name: str, grid: int, block: int, arguments: Sequence[Argument]) -> None:
        """As DeviceLauncher.launch; raises Crash."""
        held = [Guarded(x) if isinstance(x, Tensor) else x for x in arguments]
        values = [ctypes.c_void_p(x.address) if isinstance(x, Guarded) else x for x in held]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        function = self.library[f"launch_{name}"]
        child = os.fork()
        if child == 0:  # nothing of PyTorch runs here: its threads are not in this process
            faulthandler.disable()
            signal.alarm(_SECONDS)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            function(pointers, grid, block, self.backwards)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status != 0:
            raise Crash(f"{name} died of signal {os.WTERMSIG(status)}")
        for x in held:
            if isinstance(x, Guarded):
                x.fetch()


@cache
def _build(source: Source, text: str) -> ctypes.CDLL:
    names = _KERNEL.findall(text)
    entries = [
        f'extern "C" void launch_{name}(void** arguments, unsigned grid, unsigned block, bool backwards)\n'
        f"{{ on_cpu::launch({name}, arguments, grid, block, backwards); }}\n"
        for name in names
    ]
    with tempfile.TemporaryDirectory() as folder:
        path, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        path.write_text('#include "cuda_on_cpu.h"\n' + text + "\n" + "".join(entries))
        macros = [f"-D{name}={value}" for name, value in source.macros]
        # this folder first: its mma_bf16.cuh stands in for the kernels'
        include = [f"-I{FOLDER}", f"-I{Path(runtime.__file__).parent}"]
        flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-ffp-contract=off"]
        done = subprocess.run(
            [COMPILER, *flags, *macros, *include, str(path), "-o", str(library)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return ctypes.CDLL(str(library))


_BARRIER = re.compile(r"__sync(?:threads|warp)\(\);")
_SHUFFLE = re.compile(r"__shfl_\w+_sync\(\w+, (\w+), \w+\)")


def mutants(text: str, bounds: str) -> Iterator[tuple[str, str]]:
    """What the text becomes when one barrier is dropped, one shuffle returns its own value, or one check always holds.

    Args:
        bounds: a pattern of the checks of bounds.

    Yields:
        What was changed and the new text.
    """
    for pattern, replacement in ((_BARRIER, ""), (_SHUFFLE, r"\1"), (re.compile(bounds), "true")):
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"line {line}: {match[0]}", text[: match.start()] + match.expand(replacement) + text[match.end() :]


class poisoned:
    """A block of code in which new tensors hold NaN or the greatest integer, not whatever was there."""

    def __enter__(self) -> None:
        self._before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self._before)
