"""The kernels where they belong: against the definition, on a side stream, and replayed in a CUDA graph."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from next_scale.kernels.guided_sample import guided_sample
from next_scale.kernels.nearest_code import nearest_code
from next_scale.sampling import NoiseStreams, SamplingOptions

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


PROBLEMS = {
    "nearest_code, 4 channels": lambda: nearest(257, 123, 4, False),
    "nearest_code, 32 channels": lambda: nearest(4097, 4096, 32, False),
    "nearest_code, 256 channels": lambda: nearest(1025, 1023, 256, True),
    "guided_sample, all codes": lambda: sampling(5, 123),
    "guided_sample, top-k and top-p": lambda: sampling(257, 4096, top_k=900, top_p=0.96, temperature=0.9),
    "guided_sample, 16,384 codes": lambda: sampling(3, 16384, top_p=0.9),
}


@pytest.fixture(params=PROBLEMS)
def op(request: pytest.FixtureRequest) -> Callable[[str], Tensor]:
    torch.manual_seed(0)
    return PROBLEMS[request.param]()


def share_of_other(found: Tensor, expected: Tensor) -> float:
    return float((found != expected).float().mean())


def test_as_defined(op: Callable[[str], Tensor]) -> None:
    assert share_of_other(op("cuda"), op("reference")) < 1e-3  # between two codes as good up to rounding
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
    found.fill_(-1)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, expected)
