"""A tiny model end to end, its kernels executed on the CPU: nothing changes but rounding."""

from collections import Counter

import pytest
import torch

from next_scale.kernels import guided_sample, nearest_code, pyramid_step
from next_scale.kernels.runtime import DeviceLauncher
from next_scale.predictors import NextScale, NextToken
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import Schedule
from tests.cuda_on_cpu.harness import CpuLauncher, needs_compiler

pytestmark = needs_compiler


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Every op runs its kernel through g++, as on a GPU but for the launch itself; how often each was launched."""
    launched = Counter()

    def launch(self: DeviceLauncher, name: str, *arguments: object) -> None:
        launched[name] += 1
        CpuLauncher(self.source).launch(name, *arguments)

    monkeypatch.setattr(DeviceLauncher, "launch", launch)
    for module in (nearest_code.op.cuda, guided_sample.op.cuda, pyramid_step.op.cuda):
        monkeypatch.setattr(module, "obstacle", lambda device: None)
    monkeypatch.setenv("NEXT_SCALE_KERNELS", "cuda")
    return launched


def quantizer_for(schedule: Schedule) -> MultiScaleQuantizer:
    torch.manual_seed(1)
    quantizer = MultiScaleQuantizer(schedule, 4, 16).eval()
    quantizer.start(torch.randn(64, 4, *schedule.grid))
    return quantizer


@pytest.mark.parametrize("text", ["1 2 4 7", "1x1 2x2 3x5"])
@pytest.mark.parametrize("family", [NextScale, NextToken])
@pytest.mark.parametrize("batch", [1, 3])
def test_generation(text, family, batch, kernels, monkeypatch) -> None:
    schedule = Schedule.parse(text)
    with monkeypatch.context() as off:
        off.setenv("NEXT_SCALE_KERNELS", "torch")
        quantizer = quantizer_for(schedule)
    torch.manual_seed(2)
    model = family.for_quantizer(quantizer, {"label": list("abc")}, width=32, depth=2, heads=2).eval()
    with torch.no_grad():
        model.transformer.head.weight.normal_(std=0.3)
    sampling = SamplingOptions(cfg=1.5, top_k=9, top_p=0.9)

    @torch.inference_mode()
    def generate():
        return model.generate(quantizer, {"label": torch.arange(batch)}, batch, sampling, seeds=7)

    with_kernels = generate()
    assert kernels["guided_sample"] >= model.steps(sampling)  # and again where a batch's rounding could decide
    assert kernels["pyramid_inputs"] >= schedule.scales
    monkeypatch.setenv("NEXT_SCALE_KERNELS", "torch")
    without = generate()
    assert torch.equal(with_kernels[0], without[0])
    torch.testing.assert_close(with_kernels[1], without[1])


@pytest.mark.parametrize("text", ["1 2 4 7", "1x1 2x2 3x5"])
def test_tokens(text, kernels, monkeypatch) -> None:
    schedule = Schedule.parse(text)
    with monkeypatch.context() as off:
        off.setenv("NEXT_SCALE_KERNELS", "torch")
        quantizer = quantizer_for(schedule)
    latent = torch.randn(3, 4, *schedule.grid)
    with_kernels = quantizer.encode(latent)
    assert kernels == {"split_codes": 1, "pyramid_tokens": 1}  # all scales in one launch
    monkeypatch.setenv("NEXT_SCALE_KERNELS", "torch")
    without = quantizer.encode(latent)
    assert torch.equal(with_kernels, without)
    torch.testing.assert_close(quantizer.decode(with_kernels), quantizer.decode(without))
