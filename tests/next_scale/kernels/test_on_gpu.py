"""The kernels where they belong: against the definition, on a side stream, and replayed in a CUDA graph."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from next_scale.kernels.guided_sample import guided_sample
from next_scale.kernels.nearest_code import nearest_code
from next_scale.kernels.prefix_attention import Prefix, prefix_attention
from next_scale.kernels.pyramid_step import pyramid_inputs, pyramid_tokens
from next_scale.sampling import NoiseStreams, SamplingOptions
from next_scale.schedule import Schedule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def nearest(rows: int, codes: int, channels: int, cosine: bool) -> Callable[[str], Tensor]:
    x, codebook = torch.randn(rows, channels, device="cuda"), torch.randn(codes, channels, device="cuda")
    return lambda implementation: nearest_code(x, codebook, cosine, implementation)


def sampling(tokens: int, codes: int, **options: float) -> Callable[[str], Tensor]:
    logits, others = torch.randn(2, 3, tokens, codes, device="cuda").unbind()
    noise = NoiseStreams(range(3)).gumbel(tokens, codes, "cuda")
    drawn = SamplingOptions(**options)
    return lambda implementation: guided_sample(logits, drawn, noise, others, 1.5, implementation=implementation).tokens


def pyramid(text: str, channels: int, kernel: int, upsampling: str, whole: bool) -> Callable[[str], Tensor]:
    schedule = Schedule.parse(text)
    codes = [torch.randn(64, channels, device="cuda") for _ in range(schedule.scales)]
    shape = (channels, channels, *[kernel] * schedule.dim)
    weights = [torch.randn(shape, device="cuda") / channels / kernel for _ in range(2)]
    biases = [torch.randn(channels, device="cuda") for _ in range(2)]
    options = (codes, schedule.sizes, upsampling, weights, biases, 0.5, [k % 2 for k in range(schedule.scales)])
    if whole:
        latent = torch.randn(5, channels, *schedule.grid, device="cuda")
        return lambda implementation: pyramid_tokens(latent, *options, implementation=implementation)
    tokens = torch.randint(64, (5, schedule.length), device="cuda")
    return lambda implementation: pyramid_inputs(tokens, *options, implementation=implementation)


def attention(width: int, dtype: torch.dtype, normalise: bool, backward: bool) -> Callable[[str], Tensor]:
    prefix = Prefix(Schedule.parse("1x1 2x2 3x3 5x5 7x7 11x11").visible_end).cuda()
    q, k, v, grad = (torch.randn(3, prefix.length, 5, width, device="cuda", dtype=dtype) for _ in range(4))
    head_scale = torch.rand(5, device="cuda") + 3 if normalise else None
    leaves = [x.requires_grad_(backward) for x in (q, k, v)]

    def run(implementation: str) -> Tensor:
        out = prefix_attention(q, k, v, prefix, None, head_scale, implementation=implementation)
        return torch.stack([out.detach(), *torch.autograd.grad(out, leaves, grad)]) if backward else out

    return run


PROBLEMS = {
    "nearest_code, 4 channels": lambda: nearest(257, 123, 4, False),
    "nearest_code, 32 channels": lambda: nearest(4097, 4096, 32, False),
    "nearest_code, 256 channels": lambda: nearest(1025, 1023, 256, True),
    "guided_sample, all codes": lambda: sampling(5, 123),
    "guided_sample, top-k and top-p": lambda: sampling(257, 4096, top_k=900, top_p=0.96, temperature=0.9),
    "guided_sample, 16,384 codes": lambda: sampling(3, 16384, top_p=0.9),
    "pyramid_inputs, 1D": lambda: pyramid("1 2 5 13", 24, 9, "linear", False),
    "pyramid_inputs, 2D": lambda: pyramid("1x1 2x2 3x3 7x5", 32, 3, "cubic", False),
    "pyramid_tokens, 1D": lambda: pyramid("1 2 5 13", 24, 9, "linear", True),
    "pyramid_tokens, 2D": lambda: pyramid("1x1 2x2 3x3 7x5", 32, 3, "cubic", True),
    "prefix_attention, 64 channels, bfloat16": lambda: attention(64, torch.bfloat16, True, False),
    "prefix_attention, 128 channels, float32": lambda: attention(128, torch.float32, False, False),
    "gradients of attention, 64 channels, bfloat16": lambda: attention(64, torch.bfloat16, True, True),
    "gradients of attention, 32 channels, float32": lambda: attention(32, torch.float32, True, True),
}


@pytest.fixture(params=PROBLEMS)
def op(request: pytest.FixtureRequest) -> Callable[[str], Tensor]:
    torch.manual_seed(0)
    return PROBLEMS[request.param]()


def alike(found: Tensor, expected: Tensor) -> bool:
    """Up to rounding, which may decide between two codes that are as good."""
    if not found.is_floating_point():
        return float((found != expected).float().mean()) < 0.01
    tolerance = 0.04 if found.dtype == torch.bfloat16 else 1e-3
    return float((found - expected).abs().max() / expected.abs().max()) < tolerance


def test_as_defined(op: Callable[[str], Tensor]) -> None:
    assert alike(op("cuda"), op("reference"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = op("cuda")
    side.synchronize()
    assert torch.equal(found, op("cuda"))


def test_in_a_graph(op: Callable[[str], Tensor]) -> None:
    expected = op("cuda")  # compiled and loaded before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = op("cuda")
    found.data.fill_(-1)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, expected)
