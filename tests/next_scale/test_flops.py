"""Counts by the layers against PyTorch's own counter, and against what is known by hand."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from next_scale.flops import FlopCounter, count_flops
from next_scale.predictors import NextScale, NextToken
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule

SIZES = {"width": 96, "depth": 2, "heads": 2, "condition_dropout": 0.0}


def torch_count(call) -> float:
    # attention as plain products, which the counter knows; of the fused one on the CPU it knows nothing
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def build(schedule, family=NextScale, **options):
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(Schedule.parse(schedule), 16, codebook_size=64, phis=2)
    quantizer.start(torch.randn(64, 16, *quantizer.schedule.grid))
    predictor = family.for_quantizer(quantizer, {"label": ["a", "b"]}, **SIZES, **options)
    tokens = torch.randint(64, (3, quantizer.schedule.length))
    return quantizer, predictor, tokens, {"label": torch.tensor([0, 1, 0])}


@pytest.mark.parametrize("schedule", ["1 2 4 8 16", "1x1 2x2 4x4 6x6"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("codebook_head", [False, True])
def test_a_predictor_counts_as_pytorch_does(schedule, backward, codebook_head):
    quantizer, predictor, tokens, condition = build(schedule, codebook_head=codebook_head)
    inputs = predictor.inputs(quantizer, tokens)

    def step():
        loss = predictor.loss(tokens, inputs, condition).loss
        if backward:
            loss.backward()

    with torch.set_grad_enabled(backward):
        theirs, ours = torch_count(step), count_flops(step)
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("family", [NextScale, NextToken])
def test_generation_counts_as_pytorch_does(family):
    quantizer, predictor, _, condition = build("1 2 4 8 16", family)
    options = SamplingOptions(cfg=1.0, top_k=8)
    condition = {"label": condition["label"][:1]}

    def draw():
        predictor.generate(quantizer, condition, 1, options, seeds=[0])

    assert count_flops(draw) == pytest.approx(torch_count(draw), rel=0.02)


def test_a_tokenizer_counts_as_pytorch_does():
    quantizer, *_ = build("1x1 2x2 4x4 8x8")
    latent = torch.randn(4, 16, 8, 8)

    def encode():
        quantizer.encode(latent)

    assert count_flops(encode) == pytest.approx(torch_count(encode), rel=0.02)
    layers = torch.nn.Sequential(
        torch.nn.Conv1d(2, 8, 5, 2, 2), torch.nn.GELU(), torch.nn.ConvTranspose1d(8, 4, 4, 2, 1)
    )
    x = torch.randn(3, 2, 64)

    def step():
        layers(x).square().mean().backward()

    assert count_flops(step) == pytest.approx(torch_count(step), rel=0.02)


def test_causal_attention_counts_the_keys_that_are_seen():
    quantizer, predictor, tokens, condition = build("64", NextToken)
    _, other, *_ = build("64", NextScale)
    counts = []
    for p in (predictor, other):
        inputs = p.inputs(quantizer, tokens)
        with torch.no_grad(), FlopCounter() as counter:
            p.loss(tokens, inputs, condition)
        counts.append(counter.total)
    causal, full = counts
    attention = 2 * 4 * 3 * 64 * 64 * 96  # of two blocks: four operations a query, key and channel
    previous = 2 * 3 * 64 * 16 * 96  # the embedding that only next-token has
    assert full - (causal - previous) == pytest.approx(attention * (1 - 65 / 128), rel=1e-6)


def test_nothing_counts_outside_a_block():
    layer, x = torch.nn.Linear(4, 5), torch.randn(2, 4)
    with FlopCounter() as outer:
        with FlopCounter() as inner:
            layer(x)
        layer(x)
    layer(x)
    assert (inner.total, outer.total) == (2 * 2 * 2 * 4 * 5, 2 * 2 * 2 * 2 * 4 * 5)  # with the weight's gradient
