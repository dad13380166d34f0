"""Prefix attention: every implementation against the definition, and the kernel's own source on the CPU."""

import functools
import re
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from next_scale.attention import PrefixAttention
from next_scale.errors import UserError
from next_scale.flops import count_flops
from next_scale.kernels import runtime
from next_scale.kernels.prefix_attention import Prefix, cuda, flex, op, prefix_attention, reference
from next_scale.kernels.runtime import compile_source
from next_scale.schedule import Schedule
from next_scale.transformer import Transformer
from tests.cuda_on_cpu.harness import CpuLauncher, Crash, mutants, needs_compiler, poisoned

CASES = {
    "one token": [1],
    "more keys than queries": [3, 3, 9],
    "five": [2, 2, 2, 4, 5],
    "scales": Schedule.parse("1 2 4 8 16 32 60").visible_end.tolist(),
    "causal": list(range(1, 124)),
    "full": [257] * 257,
}
BOUNDS = (
    r"\brow < rows\b|\bfirst \+ row < end\b|\bfirst_key \+ (?:N <= least|i < most|column < end\[i >> 1\])|"
    r"\bcolumn < stop\b|\bfirst_column \+ (?:N <= visible_end\[block_row\]|column < end\[half\])|"
    r"\bblock_row \+ ROWS <= visible_end\[first_column\]|\brow\[half\] < columns\.ends\[column\]"
)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float64: 1e-10}


class Problem:
    """Inputs and a gradient of the output, with what the definition makes of them in float64."""

    def __init__(
        self, ends: Sequence[int], width: int, dtype: torch.dtype, head_scale: bool, batch: int = 2, heads: int = 3,
        unseen: int = 2,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(len(ends))
        self.prefix = Prefix(torch.tensor(ends))
        sizes = (len(ends), ends[-1] + unseen, ends[-1] + unseen, len(ends))
        *self.inputs, self.grad = (torch.randn(batch, n, heads, width, generator=generator).to(dtype) for n in sizes)
        self.head_scale = 1 + 8 * torch.rand(heads, generator=generator) if head_scale else None
        self.scale = 1.0 if head_scale else width**-0.5
        self.tolerance = TOLERANCE[dtype]

    @functools.cached_property
    def expected(self) -> list[Tensor]:
        """The output and the gradients of q, k, v and head_scale."""
        inputs = [x.double().requires_grad_() for x in self.inputs]
        scale = None if self.head_scale is None else self.head_scale.double().requires_grad_()
        out = reference.prefix_attention(*inputs, self.prefix.visible_end, self.scale, scale, 0.0)
        wanted = inputs if scale is None else [*inputs, scale]
        return [out.detach(), *torch.autograd.grad(out, wanted, self.grad.double())]

    def differentiated(self, implementation: str) -> list[Tensor]:
        """The same from the op."""
        inputs = [x.clone().requires_grad_() for x in self.inputs]
        scale = None if self.head_scale is None else self.head_scale.to(inputs[0].dtype).requires_grad_()
        out = prefix_attention(*inputs, self.prefix, self.scale, scale, implementation=implementation)
        wanted = inputs if scale is None else [*inputs, scale]
        return [out.detach(), *torch.autograd.grad(out, wanted, self.grad)]

    def on_cpu(self, backwards: bool = False, text: str | None = None) -> list[Tensor]:
        """The same from the kernel, through g++."""
        launcher = functools.partial(CpuLauncher, backwards=backwards, text=text)
        shared = self.prefix.visible_end, self.head_scale, self.scale, launcher
        with poisoned():
            out, log_sums = cuda.forward(*self.inputs, *shared)
            gradients = cuda.backward(self.grad, *self.inputs, out, log_sums, *shared)
        return [out, *gradients[: 3 if self.head_scale is None else 4]]

    def check(self, found: Sequence[Tensor]) -> None:
        """Off by no more than the tolerance, and by ten times that where it is worst, both relative to the expected."""
        for got, want in zip(found, self.expected, strict=True):
            assert got.shape == want.shape and got.isfinite().all()
            error = relative(got, want)
            assert error.square().mean().sqrt() <= self.tolerance and error.abs().max() <= 10 * self.tolerance


def relative(got: Tensor, want: Tensor) -> Tensor:
    """Their difference over the root mean square of what is wanted, or over 0.1 where that is less."""
    return (got.double() - want.double()) / want.double().square().mean().sqrt().clamp_min(0.1)


@pytest.mark.parametrize("implementation", ["auto", "torch", "reference"])
@pytest.mark.parametrize("head_scale", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_implementations(case: str, head_scale: bool, implementation: str) -> None:
    problem = Problem(CASES[case], 8, torch.float64, head_scale)
    problem.check(problem.differentiated(implementation))


@pytest.mark.parametrize("case", CASES)
def test_flex(case: str) -> None:
    problem = Problem(CASES[case], 16, torch.float32, True)
    with torch.no_grad():
        out = flex.prefix_attention(*problem.inputs, problem.prefix, problem.scale, problem.head_scale)
    torch.testing.assert_close(out.double(), problem.expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ends", [Schedule.parse("1x1 2x2 5x5 9x9 16x16").visible_end, torch.arange(1, 301)])
def test_blocks_of_flex_are_those_of_the_mask_and_made_once(ends: Tensor) -> None:
    prefix = Prefix(ends)
    mask = flex.block_mask(prefix)
    want = create_block_mask(lambda b, h, i, j: j < ends[i], None, None, prefix.length, prefix.keys, device="cpu")
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(mask, name), getattr(want, name)), name
    assert torch.equal(mask.to_dense(), want.to_dense())
    assert flex.block_mask(prefix) is mask


@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_dropout_is_of_the_weights(implementation: str) -> None:
    torch.manual_seed(0)
    problem = Problem(CASES["full"], 8, torch.float32, False)
    ones = torch.ones_like(problem.inputs[2])
    out = prefix_attention(*problem.inputs[:2], ones, problem.prefix, dropout=0.5, implementation=implementation)
    assert out.std() > 0.05 and abs(out.mean() - 1) < 0.02


@pytest.mark.parametrize("case", ["causal", "scales"])
@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_counts_the_keys_that_the_calls_see(case: str, implementation: str) -> None:
    q, prefix = torch.randn(2, 123, 3, 16), Prefix(torch.tensor(CASES[case]))
    found = count_flops(lambda: prefix_attention(q, q, q, prefix, implementation=implementation))
    seen = sum((stop - start) * keys for start, stop, keys, _ in prefix.calls) or 123 * 124 / 2
    assert found == pytest.approx(4 * 2 * 3 * 16 * seen)


def test_errors() -> None:
    problem = Problem(CASES["five"], 16, torch.float32, False)
    q, k, v = problem.inputs
    with pytest.raises(ValueError, match="4 queries and 7 keys: the prefix has 5 and sees 5"):
        prefix_attention(q[:, :4], k, v, problem.prefix)
    with pytest.raises(ValueError, match="4 keys"):
        prefix_attention(q, k[:, :4], v[:, :4], problem.prefix)
    for inputs, dropout, reason in (
        ((q, k, v), 0.0, "on the cpu"),
        ((q, k, v.double()), 0.0, "float32, torch.float64"),
        ((q[..., :5], k[..., :5], v[..., :5]), 0.0, "steps of 16, not 5"),
        ((q, k, v), 0.5, "no dropout"),
    ):
        with pytest.raises(UserError, match=reason):
            prefix_attention(*inputs, problem.prefix, dropout=dropout, implementation="cuda")


def test_compiles_whole() -> None:
    problem = Problem(CASES["scales"], 16, torch.float32, True)
    call = functools.partial(prefix_attention, prefix=problem.prefix, head_scale=problem.head_scale)
    whole = torch.compile(lambda q, k, v: call(2 * q, k, v) + 1, fullgraph=True, backend="aot_eager")
    q, k, v = (x.requires_grad_() for x in problem.inputs)
    found, want = whole(q, k, v), call(2 * q, k, v) + 1
    assert torch.equal(found, want)
    for a, b in zip(*(torch.autograd.grad(x, (q, k, v), problem.grad) for x in (found, want)), strict=True):
        assert torch.equal(a, b)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_scale", [False, True])
@pytest.mark.parametrize(
    "case, width", [("one token", 32), ("more keys than queries", 16), ("five", 48), ("scales", 32), ("causal", 16)]
)
def test_kernel(case: str, width: int, head_scale: bool, dtype: torch.dtype) -> None:
    problem = Problem(CASES[case], width, dtype, head_scale, batch=1 + (width > 16), heads=2)
    found = problem.on_cpu()
    problem.check(found)
    for a, b in zip(problem.on_cpu(backwards=True), found, strict=True):
        assert torch.equal(a, b)


@needs_compiler
@pytest.mark.parametrize("width, dtype", [(128, torch.float32), (80, torch.bfloat16), (16, torch.float32)])
def test_kernel_of_wide_heads_and_of_many_tokens(width: int, dtype: torch.dtype) -> None:
    """Rows read again for every tile; gradients of k and v in two launches; several blocks and tiles."""
    ends = CASES["full"] if width == 16 else CASES["scales"][:75]
    problem = Problem(ends, width, dtype, True, batch=1, heads=1, unseen=70)
    problem.check(problem.on_cpu())


@needs_compiler
def test_kernel_reads_no_key_beyond_the_last_that_is_seen() -> None:
    problem = Problem(CASES["more keys than queries"], 16, torch.float32, True, unseen=70)
    problem.inputs[1][:, 9:] = problem.inputs[2][:, 9:] = torch.nan
    out, of_q, of_k, of_v, of_head_scale = problem.on_cpu()
    clean = Problem(CASES["more keys than queries"], 16, torch.float32, True, unseen=70)
    assert torch.equal(of_v[:, 9:], torch.zeros(2, 70, 3, 16))
    for a, b in zip((out, of_q, of_k[:, :9], of_v, of_head_scale), clean.expected, strict=True):
        torch.testing.assert_close(a, (b[:, :9] if a.shape[1:2] == (9,) else b).float(), atol=1e-4, rtol=1e-3)


@needs_compiler
def test_kernel_of_large_logits_and_of_zeros() -> None:
    problem = Problem(CASES["scales"], 16, torch.float32, True, heads=2)
    problem.head_scale[:] = torch.tensor([100.0, 0.0])
    problem.inputs[0][:, 1], problem.inputs[1][:, 2] = problem.inputs[0][:, 0], 0
    problem.tolerance = 2e-3  # an exponent of 100 is off by 100 times the products' 2^-16
    out, _, of_k, of_v, of_head_scale = problem.on_cpu()
    of_k[:, 2] = problem.expected[2][:, 2] = 0  # of a row without a direction: 1e12 times the rounding
    for got, want in zip((out, of_k, of_v, of_head_scale), (problem.expected[i] for i in (0, 2, 3, 4)), strict=True):
        assert relative(got, want).square().mean().sqrt() <= problem.tolerance


@functools.cache
def _register_on_cpu() -> None:
    """The operators' kernels for the CPU: the CUDA kernels' source through g++."""
    op._prefix_attention.register_kernel("cpu")(lambda *inputs: cuda.forward(*inputs, CpuLauncher))
    op._backward.register_kernel("cpu")(lambda *inputs: cuda.backward(*inputs, CpuLauncher))


@pytest.fixture
def kernel_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """``implementation="cuda"`` runs here."""
    _register_on_cpu()
    monkeypatch.setattr(runtime, "obstacle", lambda device: None)
    monkeypatch.setattr(cuda, "prepare", lambda *what: None)


@needs_compiler
@pytest.mark.parametrize("head_scale", [False, True])
def test_operator(head_scale: bool, kernel_on_cpu: None) -> None:
    problem = Problem(CASES["five"], 16, torch.float32, head_scale)
    problem.check(problem.differentiated("cuda"))
    inputs = [x.requires_grad_() for x in problem.inputs]
    scale = problem.head_scale.requires_grad_() if head_scale else None
    arguments = (*inputs, problem.prefix.visible_end, scale, problem.scale)
    torch.library.opcheck(torch.ops.next_scale.prefix_attention.default, arguments, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        out, log_sums = torch.ops.next_scale.prefix_attention(*arguments)
    arguments = (problem.grad, *(x.detach() for x in inputs), out, log_sums, problem.prefix.visible_end)
    arguments = (*arguments, scale.detach() if head_scale else None, problem.scale)
    torch.library.opcheck(torch.ops.next_scale.prefix_attention_backward.default, arguments)


@needs_compiler
def test_operator_compiles_whole_and_takes_any_layout(kernel_on_cpu: None) -> None:
    problem = Problem(CASES["five"], 16, torch.float32, True, heads=2, unseen=0)

    def call(x: Tensor) -> Tensor:
        q, k, v = x.chunk(3, dim=-1)
        return prefix_attention(q, k, v, problem.prefix, 1.0, problem.head_scale, implementation="cuda")

    x = torch.cat(problem.inputs, dim=-1).requires_grad_()
    out = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
    (of_x,) = torch.autograd.grad(out.transpose(1, 2), x, problem.grad.transpose(1, 2))
    want, *gradients, _ = problem.expected
    torch.testing.assert_close(out.double(), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(of_x.double(), torch.cat(gradients, dim=-1), atol=1e-4, rtol=1e-3)


@needs_compiler
@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_model_with_the_kernel_and_without(
    qk_norm: bool, kernel_on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Transformer(width=32, depth=2, heads=2, outputs=7, qk_norm=qk_norm)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    schedule = Schedule.parse("1x1 2x2 3x3")
    x, condition, prefix = torch.randn(2, 14, 32), torch.randn(2, 32), PrefixAttention(schedule.visible_end)
    results = []
    for implementation in ("torch", "cuda"):
        monkeypatch.setenv("NEXT_SCALE_KERNELS", implementation)
        out = model(x, model.modulations(condition), prefix)
        results.append([out, *torch.autograd.grad(out.square().mean(), list(model.parameters()), allow_unused=True)])
    for without, with_it in zip(*results, strict=True):
        if without is not None:
            assert relative(with_it, without).abs().max() <= 1e-2


_CLAMP = re.compile(r"\bmin\((.+?), (?:length|rows - 1)\)")


def _all_mutants() -> Iterator[tuple[str, str]]:
    """Barriers, shuffles and checks, and the clamps that stand in for checks."""
    text = cuda.source(16, torch.float32).text
    yield from mutants(text, BOUNDS)
    for match in _CLAMP.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield f"line {line}: {match[0]}", text[: match.start()] + f"({match[1]})" + text[match.end() :]


MUTANTS = list(_all_mutants())


def test_mutants_are_all_found() -> None:
    text = cuda.source(16, torch.float32).text
    assert len(MUTANTS) == text.count("__syncthreads") + text.count("__shfl") + 11 + text.count("min(")


@needs_compiler
@pytest.mark.parametrize("change, text", MUTANTS, ids=[change for change, _ in MUTANTS])
def test_no_barrier_shuffle_or_check_is_for_nothing(change: str, text: str) -> None:
    ends = [1, 3, 3, *range(4, 36), *[70] * 35]
    problem = _mutated_problem(tuple(ends))
    for backwards in (False, True):
        try:
            problem.check(problem.on_cpu(backwards, text))
        except (Crash, AssertionError):
            return
    pytest.fail(f"nothing noticed the change of {change}")


@functools.cache
def _mutated_problem(ends: tuple[int, ...]) -> Problem:
    return Problem(ends, 16, torch.float32, True, batch=1, heads=1, unseen=0)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("width, dtype", [(64, torch.bfloat16), (128, torch.float32)], ids=str)
def test_kernel_compiles_without_spills(width: int, dtype: torch.dtype, target: str) -> None:
    resources = compile_source(cuda.source(width, dtype), target).resources()
    assert set(resources) == {"row_products", "attend", "gradient_of_q", "gradient_of_k", "gradient_of_v"}
    for name, used in resources.items():
        assert used.spilled == 0 and used.registers <= 255 and used.shared <= 48 * 1024, (name, used)
