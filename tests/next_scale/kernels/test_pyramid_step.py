"""The steps of a pyramid: every implementation against the definition, values and gradients; the kernels on the CPU."""

import functools

import pytest
import torch
from torch import Tensor

from image_var.autoencoder import ConvAutoencoder
from next_scale.errors import UserError
from next_scale.kernels.nearest_code import cuda as nearest_cuda
from next_scale.kernels.nearest_code import reference as nearest_reference
from next_scale.kernels.pyramid_step import backward, cuda, pyramid_inputs, pyramid_step, pyramid_tokens, reference
from next_scale.kernels.runtime import DeviceLauncher, compile_source
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule
from next_scale.tokenizer import Tokenizer
from tests.cuda_on_cpu.harness import CpuLauncher, Crash, mutants, needs_compiler, poisoned

# size, grid, size shown, upsampling, phi's kernel size
STEPS = [
    ((1,), (1,), (1,), "linear", 3),
    ((1,), (13,), (3,), "linear", 3),
    ((5,), (13,), (7,), "linear", 9),
    ((13,), (13,), (13,), "linear", 0),
    ((3,), (7,), (5,), "nearest", 3),
    ((1, 1), (3, 5), (2, 3), "cubic", 3),
    ((3, 2), (7, 13), (5, 3), "cubic", 3),
    ((5, 5), (5, 7), (5, 7), "linear", 3),
    ((3, 5), (7, 5), (7, 5), "nearest", 0),
    ((2, 3), (5, 7), (), "cubic", 3),
]
PYRAMIDS = [
    (((1,), (1,), (3,), (5,), (7,)), "linear", 3),
    (((3,), (13,)), "linear", 0),
    (((1, 1), (2, 3), (3, 3), (5, 7)), "cubic", 3),
    (((5, 3),), "cubic", 3),
]


def step_problem(size, grid, upsampling, kernel, batch=3, channels=5, codes=17, dtype=torch.float32) -> tuple:
    """Arguments of add_scale."""
    generator = torch.Generator().manual_seed(len(grid) + channels + batch)
    draw = functools.partial(torch.randn, generator=generator, dtype=dtype)
    tokens = torch.randint(codes, (batch, torch.Size(size).numel()), generator=generator)
    phi = (draw(channels, channels, *[kernel] * len(grid)) / channels**0.5, draw(channels)) if kernel else (None, None)
    return draw(batch, channels, *grid), tokens, draw(codes, channels), *phi, 0.4, size, upsampling


def expected_step(problem: tuple, shown: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    latent = reference.add_scale(*problem)
    return latent, reference.show(latent, shown) if shown else latent.new_empty(len(latent), 0, latent.shape[1])


def pyramid_problem(sizes, upsampling, kernel, shared=False, batch=3, channels=5, codes=17) -> tuple:
    """A latent, tokens, and the arguments that tokenizing and teacher forcing share."""
    generator = torch.Generator().manual_seed(len(sizes))
    draw = functools.partial(torch.randn, generator=generator)
    books = [draw(codes, channels) / (k + 1) for k in range(1 if shared else len(sizes))]
    phis = 2 if kernel else 0
    weights = [draw(channels, channels, *[kernel] * len(sizes[0])) / channels**0.5 for _ in range(phis)]
    biases = [draw(channels) / 4 for _ in range(phis)]
    which = [min(k, 1) for k in range(len(sizes))] if kernel else []
    tokens = torch.randint(codes, (batch, sum(torch.Size(s).numel() for s in sizes)), generator=generator)
    return draw(batch, channels, *sizes[-1]), tokens, (books, weights, biases, 0.4, which, list(sizes), upsampling)


def called(op, first: Tensor, arguments: tuple, **options) -> Tensor:
    """A public function by the arguments of its definition."""
    books, weights, biases, ratio, which, sizes, upsampling = arguments
    return op(first, books, sizes, upsampling, weights, biases, ratio, which, **options)


def on_cpu(function, *inputs, backwards: bool = False, text: str | None = None):
    """A kernel through g++."""
    own = cuda.source(1, (), True).path

    def launcher(source):
        return CpuLauncher(source, backwards, text if source.path == own else None)

    with poisoned():
        return function(*inputs, launcher)


@pytest.mark.parametrize("size, grid, shown, upsampling, kernel", STEPS, ids=str)
def test_steps_agree(size, grid, shown, upsampling, kernel) -> None:
    """Of many channels and few, since the fast path chooses by their number."""
    for channels in (1, 5, 40):
        latent, tokens, codes, weight, bias, ratio, *_ = problem = step_problem(
            size, grid, upsampling, kernel, channels=channels
        )
        want = expected_step(problem, shown)
        for implementation in ("reference", "torch", "auto"):
            options = (size, shown or None, upsampling, weight, bias, ratio, implementation)
            found = pyramid_step(latent, tokens, codes, *options)
            torch.testing.assert_close(found[0], want[0], atol=1e-5, rtol=1e-5)
            if shown:
                torch.testing.assert_close(found[1], want[1], atol=1e-5, rtol=1e-5)
            else:
                assert found[1] is None


@pytest.mark.parametrize("size, grid, shown, upsampling, kernel", STEPS, ids=str)
def test_gradients(size, grid, shown, upsampling, kernel) -> None:
    problem = step_problem(size, grid, upsampling, kernel, dtype=torch.float64)
    floats = [i for i, x in enumerate(problem[:5]) if x is not None and x.is_floating_point()]

    def gradients(step) -> tuple[Tensor, ...]:
        inputs = [x.clone().requires_grad_() if i in floats else x for i, x in enumerate(problem)]
        latent, seen = step(*inputs)
        loss = (latent * torch.linspace(-1, 1, latent.numel(), dtype=torch.float64).view_as(latent)).sum()
        loss = loss + latent.square().sum() + (seen**3).sum()
        return torch.autograd.grad(loss, [inputs[i] for i in floats])

    def ours(latent, tokens, codes, weight, bias, ratio, size, upsampling) -> tuple[Tensor, Tensor]:
        latent, seen = pyramid_step(latent, tokens, codes, size, shown or None, upsampling, weight, bias, ratio)
        return latent, latent.new_zeros(()) if seen is None else seen

    for found, want in zip(gradients(ours), gradients(lambda *p: expected_step(p, shown)), strict=True):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("sizes, upsampling, kernel", PYRAMIDS, ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_pyramids_agree(sizes, upsampling, kernel, shared) -> None:
    latent, tokens, arguments = pyramid_problem(sizes, upsampling, kernel, shared)
    want = reference.pyramid_inputs(tokens, *arguments)
    found = reference.pyramid_tokens(latent, *arguments, False, nearest_reference.nearest_code)
    for implementation in ("reference", "torch", "auto"):
        inputs = called(pyramid_inputs, tokens, arguments, implementation=implementation)
        torch.testing.assert_close(inputs, want, atol=1e-5, rtol=1e-5)
        assert torch.equal(called(pyramid_tokens, latent, arguments, implementation=implementation), found)


@pytest.mark.parametrize(("sizes", "upsampling", "kernel"), PYRAMIDS[:3])
def test_mixed_precision_leaves_sums_alone(sizes, upsampling, kernel) -> None:
    """Sums, inputs and tokens keep full precision where autocast computes the rest in bf16, with gradients or not."""
    latent, tokens, arguments = pyramid_problem(sizes, upsampling, kernel)
    books, weights, biases, ratio, _, _, _ = arguments
    phi = (weights[0], biases[0], ratio) if weights else ()
    own = (tokens[:, : torch.Size(sizes[0]).numel()], books[0], sizes[0], sizes[-1], upsampling, *phi)

    def all_of() -> list[Tensor]:
        steps = [*pyramid_step(latent, *own), *pyramid_step(latent.clone().requires_grad_(), *own)]
        return [*steps, called(pyramid_inputs, tokens, arguments), called(pyramid_tokens, latent, arguments)]

    expected = all_of()
    with torch.autocast("cpu", torch.bfloat16):
        found = all_of()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_the_kernel_asked_for_by_name_says_why_it_cannot_run() -> None:
    latent, tokens, codes, weight, bias, ratio, size, _ = step_problem((3,), (7,), "linear", 3)
    with pytest.raises(UserError, match="on the cpu"):
        pyramid_step(latent, tokens, codes, size, weight=weight, bias=bias, ratio=ratio, implementation="cuda")
    with pytest.raises(UserError, match="float32"):
        pyramid_step(latent.double(), tokens, codes.double(), size, implementation="cuda")
    wide = step_problem((3,), (7,), "linear", 0, channels=257)
    with pytest.raises(UserError, match="256 channels"):
        pyramid_step(*wide[:3], size, implementation="cuda")
    with pytest.raises(UserError, match="grid of 200x200 does not fit"):
        pyramid_step(torch.zeros(1, 5, 200, 200), tokens[:1, :1], codes, (1, 1), implementation="cuda")


def test_operators() -> None:
    ops = torch.ops.next_scale
    for size, grid, shown, upsampling, kernel in STEPS[2:3] + STEPS[8:]:
        latent, tokens, codes, weight, bias, ratio, *_ = step_problem(size, grid, upsampling, kernel)
        floats = [x if x is None else x.requires_grad_() for x in (latent, codes, weight, bias)]
        options = (ratio, list(size), list(shown), upsampling, "auto")
        torch.library.opcheck(ops.pyramid_step.default, (floats[0], tokens, *floats[1:], *options))
        seen = torch.randn(3, torch.Size(shown).numel() if shown else 0, 5)
        grads = (latent.detach(), seen, tokens, codes.detach(), weight if weight is None else weight.detach())
        for learn in ((False, False), (True, False), (kernel > 0, kernel > 0)):
            torch.library.opcheck(ops.pyramid_step_backward.default, (*grads, *options, *learn))
    for sizes, upsampling, kernel in PYRAMIDS[1:3]:
        latent, tokens, arguments = pyramid_problem(sizes, upsampling, kernel)
        books, weights, biases, ratio, which, *_ = arguments
        flat = [n for size in sizes for n in size]
        common = (books, weights, biases, ratio, which, flat)
        inputs = (tokens, *common, len(sizes[0]), upsampling, "auto")
        torch.library.opcheck(ops.pyramid_inputs.default, inputs)
        torch.library.opcheck(ops.pyramid_tokens.default, (latent, *common, upsampling, False, "auto"))


def test_compiles_whole() -> None:
    sizes, upsampling, kernel = PYRAMIDS[2]
    latent, _, arguments = pyramid_problem(sizes, upsampling, kernel)
    books, weights, biases, *_ = arguments

    def run(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        tokens = called(pyramid_tokens, 2 * x, arguments)
        inputs = called(pyramid_inputs, tokens, arguments)
        size = sizes[0]
        total, _ = pyramid_step(x, tokens[:, :1], books[0], size, None, upsampling, weight, biases[0], 0.3)
        return inputs + 1, total.square().sum()

    whole = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (run, whole):
        weight = weights[0].clone().requires_grad_()
        inputs, loss = function(latent, weight)
        results.append((inputs, loss, *torch.autograd.grad(loss, weight)))
    torch.testing.assert_close(results[1], results[0])


@needs_compiler
@pytest.mark.parametrize("size, grid, shown, upsampling, kernel", STEPS, ids=str)
def test_kernel_of_a_step(size, grid, shown, upsampling, kernel, monkeypatch) -> None:
    """A group of channels a block; all of them, in as many rounds as little shared memory asks for."""
    problem = step_problem(size, grid, upsampling, kernel)
    want = expected_step(problem, shown)
    inputs = (*problem[:-1], shown, upsampling)
    found = [on_cpu(cuda.pyramid_step, *inputs)]
    monkeypatch.setattr(cuda, "_FEW", 1)
    monkeypatch.setattr(cuda, "_POOL", 570)
    found.append(on_cpu(cuda.pyramid_step, *inputs, backwards=True))
    for latent, seen in found:
        torch.testing.assert_close(latent, want[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(seen, want[1], atol=1e-5, rtol=1e-5)


def backward_problem(size, grid, shown, upsampling, kernel, channels=5) -> tuple:
    """Arguments of the gradients' functions, without what is wanted."""
    latent, tokens, codes, weight, _, ratio, *_ = step_problem(size, grid, upsampling, kernel, channels=channels)
    seen = torch.randn(
        3, torch.Size(shown).numel() if shown else 0, channels, generator=torch.Generator().manual_seed(0)
    )
    return latent, seen, tokens, codes, weight, ratio, size, shown, upsampling


@needs_compiler
@pytest.mark.parametrize("size, grid, shown, upsampling, kernel", STEPS, ids=str)
def test_kernel_of_gradients(size, grid, shown, upsampling, kernel, monkeypatch) -> None:
    problem = backward_problem(size, grid, shown, upsampling, kernel)
    for pool, *learn in ((cuda._POOL, True, kernel > 0), (1000, False, kernel > 0), (1000, True, False)):
        monkeypatch.setattr(cuda, "_POOL", pool)
        found = on_cpu(cuda.pyramid_step_backward, *problem, *learn, backwards=pool == 1000)
        want = backward.pyramid_step_backward(*problem, *learn)
        torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)  # sums over all samples and cells


@needs_compiler
@pytest.mark.parametrize("sizes, upsampling, kernel", PYRAMIDS, ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_kernels_of_a_pyramid(sizes, upsampling, kernel, shared) -> None:
    latent, tokens, arguments = pyramid_problem(sizes, upsampling, kernel, shared)
    want = reference.pyramid_inputs(tokens, *arguments)
    for backwards in (False, True):
        inputs = on_cpu(cuda.pyramid_inputs, tokens, *arguments, backwards=backwards)
        torch.testing.assert_close(inputs, want, atol=1e-5, rtol=1e-5)
        for cosine in (False, True):
            expected = reference.pyramid_tokens(latent, *arguments, cosine, nearest_reference.nearest_code)
            assert torch.equal(on_cpu(cuda.pyramid_tokens, latent, *arguments, cosine, backwards=backwards), expected)


@needs_compiler
@pytest.mark.parametrize("options", [{}, {"shared_codebook": True, "cosine": True}], ids=str)
def test_a_tokenizer_is_the_same_with_kernels_on(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, reconstruction, inputs under teacher forcing, and a training step's gradients, by every kernel there is.

    The device stands on the CPU: all but the launch itself is what a GPU's user runs.
    """

    def launch(self: DeviceLauncher, *arguments: object) -> None:
        CpuLauncher(self.source).launch(*arguments)

    monkeypatch.setattr(DeviceLauncher, "launch", launch)
    for module in (cuda, nearest_cuda):
        monkeypatch.setattr(module, "obstacle", lambda device: None)
    torch.manual_seed(0)
    autoencoder = ConvAutoencoder(1, 4, (1, 2), 1, 1, attention=False, latent_channels=6)
    quantizer = MultiScaleQuantizer(Schedule.parse("1x1 2x3 5x7"), 6, 32, phis=2, update="gradient", **options)
    tokenizer = Tokenizer(autoencoder, quantizer).eval()
    x = torch.randn(2, 1, 10, 14)
    quantizer.start(autoencoder.encode(torch.randn(16, 1, 10, 14)).detach())
    results = []
    for choice in ("torch", "cuda"):
        monkeypatch.setenv("NEXT_SCALE_KERNELS", choice)
        tokens = tokenizer.encode(x)
        tokenizer.zero_grad()
        quantizer(autoencoder.encode(x)).loss.backward()
        learned = [weight.grad for weight in tokenizer.parameters() if weight.grad is not None]
        results.append((tokens, tokenizer.decode(tokens), quantizer.teacher_forcing(tokens), *learned))
    assert len(results[0]) > 10
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)


BOUNDS = (
    r"[yx] >= 0|\by < grid\.height(?= &&)|\bx < grid\.width(?=\))|\bchannel < CHANNELS|\bcell < cells"
    r"|\bown >= 0|\bown < chunk|\bfirst \+ \w+ < rows|\bc(?: \+ 1)? < CHANNELS(?= \?)|\bcode(?: \+ 1)? < codes(?= \?)"
)
MUTANTS = list(mutants(cuda.source(5, (), True).text, BOUNDS))


def test_mutants_are_all_found() -> None:
    text = cuda.source(5, (), True).text
    assert len(MUTANTS) == text.count("__syncthreads") + text.count("__shfl") + 20


@functools.cache
def mutation_problems() -> list[tuple]:
    """Function, inputs and expected output, of one source: channels that fill no tile, more vectors than a pass has."""
    _, tokens, arguments = pyramid_problem(((2, 3), (5, 7), (5, 7)), "cubic", 3, channels=3)
    latent, _, others = pyramid_problem(((8, 9), (8, 9)), "cubic", 3, batch=2, channels=3)
    infinite, _, single = pyramid_problem(((8, 9),), "cubic", 3, batch=1, channels=3)
    infinite[:, :, 3, 3] = torch.inf  # no other vector's business
    problems = [(cuda.pyramid_inputs, (tokens, *arguments), reference.pyramid_inputs(tokens, *arguments))]
    for x, options, cosine in ((latent, others, True), (infinite, single, False)):
        expected = reference.pyramid_tokens(x, *options, cosine, nearest_reference.nearest_code)
        problems.append((cuda.pyramid_tokens, (x, *options, cosine), expected))
    back = (*backward_problem((2, 3), (5, 7), (), "cubic", 3, channels=3), True, True)
    problems.append((cuda.pyramid_step_backward, back, backward.pyramid_step_backward(*back)))
    return problems


@needs_compiler
@pytest.mark.parametrize("change, text", [("nothing", None), *MUTANTS], ids=["nothing", *(name for name, _ in MUTANTS)])
def test_no_barrier_shuffle_or_check_is_for_nothing(change: str, text: str | None, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "_POOL", 400)
    for function, inputs, expected in mutation_problems():
        for backwards in (False, True):
            try:
                found = on_cpu(function, *inputs, backwards=backwards, text=text)
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            except (Crash, AssertionError):
                assert text is not None, "the kernels themselves are wrong"
                return
    assert text is None, f"nothing noticed the change of {change}"


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_kernels_compile_without_spills(target: str) -> None:
    resources = compile_source(cuda.source(32, (3, 3), True), target).resources()
    assert set(resources) == {"pyramid_inputs", "pyramid_step_backward", "pyramid_tokens"}
    for name, used in resources.items():
        assert used.spilled == 0 and used.registers <= 255 and used.shared <= 48 * 1024, (name, used)
