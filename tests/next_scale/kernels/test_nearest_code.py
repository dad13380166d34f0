"""The nearest code: every implementation against the definition, and the kernel's own source on the CPU."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from next_scale.errors import UserError
from next_scale.kernels.nearest_code import cuda, nearest_code, reference
from next_scale.kernels.runtime import compile_source
from tests.cuda_on_cpu.harness import CpuLauncher, Crash, mutants, needs_compiler, poisoned

BOUNDS = r"\brow < rows\b|\bcode < codes\b|\bc(?: \+ 1)? < CHANNELS(?=\))"


def problem(rows: int, codes: int, channels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, generator=generator), torch.randn(codes, channels, generator=generator)


def on_cpu(latents: Tensor, codebook: Tensor, cosine: bool, backwards: bool = False, text: str | None = None) -> Tensor:
    """The kernel through g++."""
    launcher = functools.partial(CpuLauncher, backwards=backwards, text=text)
    with poisoned():
        return cuda.nearest_code(latents, codebook, cosine, launcher)


def assert_nearest(found: Tensor, latents: Tensor, codebook: Tensor, cosine: bool) -> None:
    """Each found code is the nearest, but for those as near as the products' rounding."""
    expected = reference.nearest_code(latents.double(), codebook.double(), cosine)
    assert found.dtype == torch.int64 and found.shape == expected.shape
    if cosine:
        latents, codebook = F.normalize(latents, dim=-1), F.normalize(codebook, dim=-1)
    wrong = found != expected
    x = latents[wrong].double()
    excess = (x - codebook[found[wrong]]).square().sum(-1) - (x - codebook[expected[wrong]]).square().sum(-1)
    scale = x.norm(dim=-1) * codebook.double().norm(dim=-1).max()
    assert (excess <= 2**-14 * scale).all(), excess / scale


@pytest.mark.parametrize("implementation", ["auto", "torch", "reference"])
@pytest.mark.parametrize("cosine", [False, True])
def test_implementations(implementation: str, cosine: bool) -> None:
    latents, codebook = problem(1025, 257, 5)
    assert_nearest(nearest_code(latents, codebook, cosine, implementation), latents, codebook, cosine)


def test_the_kernel_asked_for_by_name_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    latents, codebook = problem(3, 5, 4)
    with pytest.raises(UserError, match="on the cpu"):
        nearest_code(latents, codebook, implementation="cuda")
    with pytest.raises(UserError, match="float32"):
        nearest_code(latents.double(), codebook.double(), implementation="cuda")
    with pytest.raises(UserError, match="256 channels"):
        nearest_code(*problem(3, 5, 257), implementation="cuda")
    monkeypatch.setenv("NEXT_SCALE_KERNELS", "cuda")
    with pytest.raises(UserError, match="on the cpu"):
        nearest_code(latents, codebook)


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("cosine", [False, True])
def test_operator(rows: int, cosine: bool) -> None:
    latents, codebook = problem(rows, 5, 4)
    torch.library.opcheck(torch.ops.next_scale.nearest_code.default, (latents, codebook, cosine, "auto"))
    wanting = latents.clone().requires_grad_()
    assert not nearest_code(wanting, codebook, cosine).requires_grad


def test_compiles_whole() -> None:
    latents, codebook = problem(123, 17, 8)

    def quantize(x: Tensor) -> Tensor:
        return codebook[nearest_code(2 * x, codebook)]

    whole = torch.compile(quantize, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (123, 5):
        assert torch.equal(whole(latents[:rows]), quantize(latents[:rows]))


@needs_compiler
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    "rows, codes, channels", [(1, 1, 1), (3, 5, 4), (257, 123, 5), (129, 65, 32), (33, 257, 123), (17, 33, 256)]
)
def test_kernel(rows: int, codes: int, channels: int, cosine: bool) -> None:
    latents, codebook = problem(rows, codes, channels)
    found = on_cpu(latents, codebook, cosine)
    assert_nearest(found, latents, codebook, cosine)
    assert torch.equal(on_cpu(latents, codebook, cosine, backwards=True), found)


@needs_compiler
def test_kernel_keeps_close_codes_apart() -> None:
    latents, codebook = problem(128, 2048, 32)
    close = codebook + 1e-3 * torch.randn(codebook.shape, generator=torch.Generator().manual_seed(1))
    codebook = torch.cat([codebook, close])
    expected = reference.nearest_code(latents.double(), codebook.double(), False)
    assert (on_cpu(latents, codebook, False) == expected).float().mean() > 0.97
    rough = reference.nearest_code(latents.bfloat16().double(), codebook.bfloat16().double(), False)
    assert (rough == expected).float().mean() < 0.9


@needs_compiler
@pytest.mark.parametrize("cosine", [False, True])
def test_kernel_ties_go_to_the_lowest_index(cosine: bool) -> None:
    latents, codebook = problem(257, 41, 6)
    order = torch.arange(41).repeat_interleave(2)  # in the same thread, in other threads, in other tiles
    assert (on_cpu(latents, codebook[order], cosine) % 2 == 0).all()
    assert (on_cpu(latents, codebook.repeat(4, 1), cosine) < 41).all()


@needs_compiler
def test_kernel_of_zeros_and_of_numbers_that_are_none() -> None:
    latents, codebook = problem(5, 70, 4)
    latents[1], codebook[3] = 0, 0
    assert_nearest(on_cpu(latents, codebook, True), latents, codebook, True)
    latents[2] = torch.nan
    found = on_cpu(latents, codebook, False)
    assert 0 <= found[2] < 70  # and not beyond the codebook


MUTANTS = list(mutants(cuda.source(5).text, BOUNDS))


def test_mutants_are_all_found() -> None:
    text = cuda.source(5).text
    assert len(MUTANTS) == text.count("__syncthreads") + text.count("__shfl") + 10


@needs_compiler
@pytest.mark.parametrize("change, text", MUTANTS, ids=[change for change, _ in MUTANTS])
def test_no_barrier_shuffle_or_check_is_for_nothing(change: str, text: str) -> None:
    latents, codebook = problem(257, 123, 5)
    latents *= torch.linspace(0.1, 9, 257)[:, None]
    codebook *= torch.linspace(0.1, 3, 123)[:, None]
    for backwards in (False, True):
        for cosine in (True, False):
            try:
                assert_nearest(on_cpu(latents, codebook, cosine, backwards, text), latents, codebook, cosine)
            except (Crash, AssertionError, IndexError):
                return
    pytest.fail(f"nothing noticed the change of {change}")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("channels", [4, 32, 65, 256])
def test_kernel_compiles_without_spills(target: str, channels: int) -> None:
    resources = compile_source(cuda.source(channels), target).resources()
    assert set(resources) == {"nearest_code", "split_codes"}
    for name, used in resources.items():
        assert used.spilled == 0 and used.registers <= 255 and used.shared <= 48 * 1024, (name, used)
