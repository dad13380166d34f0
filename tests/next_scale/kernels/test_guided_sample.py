"""The guided draw: every implementation against the definition and the exact distribution; the kernel on the CPU."""

import functools

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from next_scale.errors import UserError
from next_scale.kernels.guided_sample import cuda, guided_sample, reference
from next_scale.kernels.runtime import compile_source
from next_scale.sampling import Draw, NoiseStreams, SamplingOptions
from tests.cuda_on_cpu.harness import CpuLauncher, Crash, mutants, needs_compiler, poisoned

SETTINGS = [(0, 0.0, 0.0), (5, 0.0, 0.0), (0, 0.8, 1.5), (7, 0.7, 0.0), (7, 0.9, 2.0)]  # top-k, top-p, strength
BOUNDS = r"\bcode < codes\b"


def problem(rows: int, codes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Conditional and unconditional logits and noise, (1, rows, codes) each."""
    generator = torch.Generator().manual_seed(rows + codes)
    conditional, unconditional = (2 * torch.randn(1, rows, codes, generator=generator) for _ in range(2))
    return conditional, unconditional, NoiseStreams([3]).gumbel(rows, codes)


def arguments(rows: int, codes: int, top_k: int, top_p: float, strength: float, temperature: float = 0.9) -> tuple:
    conditional, unconditional, noise = problem(rows, codes)
    return conditional, unconditional if strength else None, noise, strength, temperature, top_k, top_p


def on_cpu(
    inputs: tuple, backwards: bool = False, text: str | None = None, tolerance: float | None = None
) -> Draw | Tensor:
    """The kernel through g++: tokens, or with a tolerance tokens and whether they are sure."""
    with poisoned():
        launcher = functools.partial(CpuLauncher, backwards=backwards, text=text)
        draw = cuda.guided_sample(*inputs, tolerance, launcher)
    return draw.tokens if tolerance is None else draw


def exact(conditional: Tensor, unconditional: Tensor, options: SamplingOptions, strength: float) -> Tensor:
    """Probabilities of one row of logits (V,), in float64, one code after the other."""
    z = ((1 + strength) * conditional.double() - strength * unconditional.double()) / options.temperature
    order = z.argsort(descending=True)[: options.top_k or None]
    share = z[order].softmax(-1)
    if options.top_p:
        kept = 1
        while share[:kept].sum() < options.top_p:
            kept += 1
        order, share = order[:kept], share[:kept] / share[:kept].sum()
    return torch.zeros_like(z).scatter_(0, order, share)


def assert_distributed(tokens: Tensor, probabilities: Tensor) -> None:
    counts = torch.bincount(tokens.flatten(), minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] / probabilities[possible].sum() * counts.sum()
    assert chisquare(counts[possible].numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("top_k, top_p, strength", SETTINGS)
def test_a_million_draws_follow_the_exact_distribution(top_k: int, top_p: float, strength: float) -> None:
    conditional, unconditional, _ = problem(1, 11)
    options = SamplingOptions(temperature=1.1, top_k=top_k, top_p=top_p)
    rows = 10**6
    noise = NoiseStreams([1]).gumbel(rows, 11)
    wide = conditional.expand(1, rows, 11), unconditional.expand(1, rows, 11)
    tokens = guided_sample(wide[0], options, noise, wide[1], strength).tokens
    assert_distributed(tokens, exact(conditional[0, 0], unconditional[0, 0], options, strength))


@needs_compiler
def test_draws_of_the_kernel_follow_the_exact_distribution() -> None:
    conditional, unconditional, _ = problem(1, 11)
    options = SamplingOptions(temperature=1.1, top_k=7, top_p=0.9)
    rows = 500
    noise = NoiseStreams([1]).gumbel(rows, 11)
    wide = conditional.expand(1, rows, 11), unconditional.expand(1, rows, 11)
    tokens = on_cpu((*wide, noise, 1.5, options.temperature, options.top_k, options.top_p))
    assert_distributed(tokens, exact(conditional[0, 0], unconditional[0, 0], options, 1.5))


@pytest.mark.parametrize("top_k, top_p, strength", SETTINGS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_implementations_agree(top_k: int, top_p: float, strength: float, temperature: float) -> None:
    conditional, unconditional, noise = problem(257, 123)
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    call = functools.partial(guided_sample, conditional, options, noise, unconditional, strength)
    assert torch.equal(call(implementation="torch").tokens, call(implementation="reference").tokens)


def test_the_kernel_asked_for_by_name_says_why_it_cannot_run() -> None:
    conditional, _, noise = problem(3, 5)
    with pytest.raises(UserError, match="on the cpu"):
        guided_sample(conditional, SamplingOptions(), noise, implementation="cuda")
    with pytest.raises(ValueError, match="needs noise"):
        guided_sample(conditional, SamplingOptions())


@pytest.mark.parametrize("tolerance", [None, 0.1])
@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_operator(strength: float, tolerance: float | None) -> None:
    inputs = arguments(3, 5, 2, 0.5, strength)
    torch.library.opcheck(torch.ops.next_scale.guided_sample.default, (*inputs, tolerance, "auto"))


def test_compiles_whole() -> None:
    conditional, _, noise = problem(5, 17)
    options = SamplingOptions(top_k=3)
    whole = torch.compile(
        lambda x: guided_sample(2 * x, options, noise).tokens + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(whole(conditional), guided_sample(2 * conditional, options, noise).tokens + 1)


@needs_compiler
@pytest.mark.parametrize("top_k, top_p, strength", SETTINGS)
@pytest.mark.parametrize("rows, codes", [(1, 1), (3, 5), (5, 123), (3, 257)])
def test_kernel(rows: int, codes: int, top_k: int, top_p: float, strength: float) -> None:
    inputs = arguments(rows, codes, top_k, top_p, strength)
    expected = reference.guided_sample(*inputs)
    assert torch.equal(on_cpu(inputs), expected)
    assert torch.equal(on_cpu(inputs, backwards=True), expected)


@needs_compiler
def test_kernel_without_noise_and_with_equal_logits() -> None:
    conditional, _, noise = problem(5, 123)
    assert torch.equal(on_cpu((conditional, None, None, 0.0, 0.0, 3, 0.5)), conditional.argmax(-1))
    flat = torch.zeros(1, 5, 123)
    flat[..., ::2] = -0.0
    assert (on_cpu((flat, None, None, 0.0, 0.0, 0, 0.0)) == 0).all()
    assert torch.equal(on_cpu((flat, None, noise, 0.0, 1.0, 2, 0.5)), noise.argmax(-1))  # all kept together


@needs_compiler
@pytest.mark.parametrize("tolerance", [1e-6, 0.03, 0.5])
@pytest.mark.parametrize("top_k, top_p, strength", SETTINGS)
@pytest.mark.parametrize("rows, codes", [(3, 1), (3, 5), (33, 123)])
def test_kernel_knows_what_is_sure(
    rows: int, codes: int, top_k: int, top_p: float, strength: float, tolerance: float
) -> None:
    inputs = arguments(rows, codes, top_k, top_p, strength)
    conditional, unconditional, noise = inputs[:3]
    options = SamplingOptions(temperature=0.9, top_k=top_k, top_p=top_p)
    expected = guided_sample(conditional, options, noise, unconditional, strength, tolerance, "torch")
    for backwards in (False, True):
        found = on_cpu(inputs, backwards, tolerance=tolerance)
        assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.sure, expected.sure)


@needs_compiler
def test_kernel_is_unsure_of_equal_logits() -> None:
    noise = problem(5, 123)[2]
    flat = torch.zeros(1, 5, 123)
    assert not on_cpu((flat, None, None, 0.0, 0.0, 0, 0.0), tolerance=1e-6).sure.any()
    assert not on_cpu((flat, None, noise, 0.0, 1.0, 7, 0.0), tolerance=1e-6).sure.any()  # any may fall below the cut


MUTANTS = list(mutants(cuda.source(5).text, BOUNDS))


def test_mutants_are_all_found() -> None:
    text = cuda.source(5).text
    assert len(MUTANTS) == text.count("__syncthreads") + text.count("__shfl") + 1


@needs_compiler
@pytest.mark.parametrize("change, text", MUTANTS, ids=[change for change, _ in MUTANTS])
def test_no_barrier_shuffle_or_check_is_for_nothing(change: str, text: str) -> None:
    inputs = arguments(9, 123, 20, 0.8, 1.5)
    expected = on_cpu(inputs, tolerance=0.1)
    for backwards in (False, True):
        try:
            if not all(map(torch.equal, on_cpu(inputs, backwards, text, tolerance=0.1), expected)):
                return
        except Crash:
            return
    pytest.fail(f"nothing noticed the change of {change}")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("codes", [1024, 4096, 16384])
def test_kernel_compiles_without_spills(target: str, codes: int) -> None:
    (used,) = compile_source(cuda.source(codes), target).resources().values()
    assert used.spilled == 0 and used.registers <= 255, used
