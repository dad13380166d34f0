"""Compiling CUDA C++ at first use with NVRTC and launching it on PyTorch's current stream.

Both through ``cuda.bindings``, which PyTorch's CUDA build installs. Compiling needs neither a GPU nor a driver.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from next_scale.kernels import cache as disk

OPTIONS = ("--std=c++17", "--ptxas-options=-v")
_INCLUDE = re.compile(r'^#include "([\w./]+)"', re.MULTILINE)
_FOLDER = Path(__file__).parent

Argument = Tensor | ctypes.c_int | ctypes.c_longlong | ctypes.c_ulonglong | ctypes.c_float


class KernelError(RuntimeError):
    """A kernel could not be compiled, loaded or launched."""


@dataclass(frozen=True)
class Source:
    """A CUDA C++ file and the values of its macros. It may include files beside this module, by name, and no others.

    Args:
        path: the ``.cu`` file.
        macros: names and values, in a fixed order.
    """

    path: Path
    macros: tuple[tuple[str, int], ...] = ()

    @property
    def text(self) -> str:
        """The file's text."""
        return _read(self.path)

    @property
    def headers(self) -> dict[str, str]:
        """Names and texts of the files that it includes."""
        return {name: _read(_FOLDER / name) for name in _INCLUDE.findall(self.text)}

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler's options, without the architecture."""
        return (*OPTIONS, *(f"-D{name}={value}" for name, value in self.macros))


@cache
def _read(path: Path) -> str:
    return path.read_text()


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: 32-bit registers a thread, bytes of static shared memory a block, bytes spilled."""

    registers: int
    shared: int
    spilled: int


@dataclass(frozen=True)
class Binary:
    """A compiled source, cubin or PTX; `log` is what the compiler said of its resources, empty for PTX."""

    code: bytes
    log: str

    def resources(self) -> dict[str, Resources]:
        """Of every kernel, by name; empty for PTX."""
        found = {}
        for part in self.log.split("Compiling entry function '")[1:]:
            numbers = [
                re.search(pattern, part)
                for pattern in (r"Used (\d+) registers", r"(\d+) bytes smem", r"(\d+) bytes spill stores")
            ]
            found[part.split("'")[0]] = Resources(*(int(number[1]) if number else 0 for number in numbers))
        return found


def obstacle(device: torch.device) -> str | None:
    """Why no kernel can be launched on a device, in a few words; None where one can be."""
    if device.type != "cuda":
        return f"the tensors are on the {device.type}"
    try:
        _driver()
        target_of(torch.cuda.get_device_capability(device))
    except KernelError as error:
        return str(error)
    return None


def target_of(capability: tuple[int, int]) -> str:
    """NVRTC's name of the architecture to compile for: ``sm_90``, or ``compute_90``, which a newer GPU's driver takes.

    Args:
        capability: the device's compute capability, major and minor.

    Raises:
        KernelError: older than sm_80, which has the tensor cores' bf16.
    """
    wanted = 10 * capability[0] + capability[1]
    if wanted < 80:
        raise KernelError(f"compute capability {capability[0]}.{capability[1]} is below 8.0")
    nvrtc = _nvrtc()
    error, supported = nvrtc.nvrtcGetSupportedArchs()
    _check(nvrtc, error)
    if wanted in supported:
        return f"sm_{wanted}"
    return f"compute_{max(known for known in supported if known < wanted)}"


def compile_source(source: Source, target: str) -> Binary:
    """Compile for ``sm_...`` (to cubin) or ``compute_...`` (to PTX), or take it from the cache on disk.

    Raises:
        KernelError: the compiler is missing or refuses; its log is in the message.
    """
    nvrtc = _nvrtc()
    error, major, minor = nvrtc.nvrtcVersion()
    _check(nvrtc, error)
    headers = source.headers
    included = [text for item in sorted(headers.items()) for text in item]
    key = disk.key_of(f"nvrtc {major}.{minor}", target, source.text, *included, *source.options)
    stored = disk.load(key)
    if stored is None:
        binary = _compile(nvrtc, source, headers, target)
        log = binary.log.encode()
        disk.store(key, len(log).to_bytes(8, "little") + log + binary.code)
        return binary
    length = int.from_bytes(stored[:8], "little")
    return Binary(stored[8 + length :], stored[8 : 8 + length].decode())


def _compile(nvrtc: object, source: Source, headers: dict[str, str], target: str) -> Binary:
    error, program = nvrtc.nvrtcCreateProgram(
        source.text.encode(),
        source.path.name.encode(),
        len(headers),
        [text.encode() for text in headers.values()],
        [name.encode() for name in headers],
    )
    _check(nvrtc, error)
    try:
        options = [option.encode() for option in (f"--gpu-architecture={target}", *source.options)]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _fetch(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(f"NVRTC refused {source.path.name} for {target}:\n{log}")
        return Binary(_fetch(nvrtc, program, "CUBIN" if target.startswith("sm_") else "PTX"), log)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _fetch(nvrtc: object, program: object, what: str) -> bytes:
    error, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    _check(nvrtc, error)
    data = bytes(size)
    (error,) = getattr(nvrtc, f"nvrtcGet{what}")(program, data)
    _check(nvrtc, error)
    return data


class Launcher(Protocol):
    """Launches the kernels of one source, as :class:`DeviceLauncher` does; ops are written against it."""

    def launch(self, name: str, grid: int, block: int, arguments: Sequence[Argument]) -> None: ...


class DeviceLauncher:
    """Launches the kernels of a source on the device of their first tensor, on PyTorch's current stream.

    Nothing waits for the device, and nothing is compiled or loaded after the first launch on an architecture: later
    ones may be captured in a CUDA graph.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def launch(self, name: str, grid: int, block: int, arguments: Sequence[Argument]) -> None:
        """Launch `grid` blocks of `block` threads.

        Args:
            name: of the kernel.
            arguments: contiguous tensors on one device and ctypes numbers, in the order of the kernel's parameters.

        Raises:
            KernelError: compiling, loading or launching failed.
        """
        device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
        values = tuple(x.data_ptr() if isinstance(x, Tensor) else x.value for x in arguments)
        types = tuple(ctypes.c_void_p if isinstance(x, Tensor) else type(x) for x in arguments)
        driver = _driver()
        with torch.cuda.device(device):
            kernel = _kernel(self.source, target_of(torch.cuda.get_device_capability(device)), name)
            stream = driver.CUstream(torch.cuda.current_stream(device).cuda_stream)
            (error,) = driver.cuLaunchKernel(kernel, grid, 1, 1, block, 1, 1, 0, stream, (values, types), 0)
        _check(driver, error)


@cache
def _library(source: Source, target: str) -> object:
    """The loaded binary, which the driver brings to every device of the architecture by itself."""
    driver = _driver()
    error, library = driver.cuLibraryLoadData(compile_source(source, target).code, [], [], 0, [], [], 0)
    _check(driver, error)
    return library


@cache
def _kernel(source: Source, target: str, name: str) -> object:
    """The kernel, in the form that ``cuLaunchKernel`` takes: it accepts a CUkernel cast to a CUfunction."""
    driver = _driver()
    error, kernel = driver.cuLibraryGetKernel(_library(source, target), name.encode())
    _check(driver, error)
    return driver.CUfunction(int(kernel))


@cache
def _nvrtc() -> object:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except Exception as error:  # a missing package, a missing library, a version without a symbol: each its own type
        raise KernelError("NVRTC is missing: PyTorch's CUDA build installs it") from error
    return nvrtc


@cache
def _driver() -> object:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise KernelError("cuda-bindings is missing: PyTorch's CUDA build installs it") from error
    return driver


def _check(bindings: object, error: object) -> None:
    """Raise what a call of the driver or of NVRTC returned, if it is an error."""
    if int(error) != 0:
        raise KernelError(f"{bindings.__name__.rpartition('.')[2]}: {error.name}")
