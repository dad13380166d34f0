"""What a configuration may ask for: values of the right kind, and no more than its weights account for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from next_scale.allowance import Allowance, check_types
from next_scale.checkpoint import from_pretrained
from next_scale.errors import UserError
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import MOST_SCALES, MOST_TOKENS, Schedule, StrideSchedule, parse_schedule


def test_sizes_are_counted_before_anything_is_allocated():
    for build in (
        lambda: torch.empty(1 << 50),
        lambda: nn.Linear(1 << 30, 1 << 30),
        lambda: torch.ones(1 << 20)[:, None] * torch.ones(1 << 20),  # 2^40 elements by broadcasting
        lambda: [torch.zeros(1 << 20) for _ in range(10**9)],
        lambda: [torch.zeros(1) for _ in range(10**9)],  # small, but no end
    ):
        with pytest.raises(UserError, match="file describes a model far larger than its weights"):
            with Allowance([(3, 3)], "file"):
                build()
    with Allowance([(100, 100)], "file"):
        assert nn.Linear(100, 100).weight.square().sum() > 0
        assert torch.repeat_interleave(torch.arange(3), torch.tensor([1, 2, 3])).tolist() == [0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "option, value",
    [
        ("phi_ratio", [False]),
        ("phi_ratio", float("nan")),
        ("codebook_size", 4.0),
        ("codebook_size", True),
        ("codebook_size", 1 << 40),
        ("cosine", 1),
        ("upsampling", 3),
        ("scale_dropout", 2.0),
        ("latent_channels", None),
    ],
)
def test_values_of_the_wrong_kind(option, value):
    with pytest.raises(UserError, match=f"{option} cannot be"):
        check_types({option: value}, MultiScaleQuantizer)


def test_values_of_the_right_kind():
    quantizer = MultiScaleQuantizer(Schedule.parse("1 2 4"), 4, codebook_size=8)
    check_types(quantizer.to_config(), MultiScaleQuantizer)
    check_types({"cfg": 1, "cfg_ramp": True, "top_k": 3}, SamplingOptions)
    check_types({"other": object()}, SamplingOptions)  # left to the constructor


def test_a_predictor_for_other_tokens(tiny_checkpoint, tmp_path):
    """As many tokens, but in other scales: shapes of weights do not tell."""
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    config["quantizer"]["schedule"] = [[1], [2], [4], [12], [12]]
    path = tmp_path / "model.safetensors"
    save_file(load_file(tiny_checkpoint / "model.safetensors"), path, metadata={"config": json.dumps(config)})
    with pytest.raises(UserError, match="a predictor for other tokens than those of its tokenizer"):
        from_pretrained(path)


def test_schedules_are_limited():
    for text in ("1 5000000", "1x1 3000x3000", " ".join(["1"] * (MOST_SCALES + 1)), "1 " * 10**5):
        with pytest.raises(UserError, match="at most 1,024 scales"):
            parse_schedule(text)
    with pytest.raises(UserError, match="at most"):
        StrideSchedule((2, 1)).at((MOST_TOKENS,))
    assert Schedule.parse(f"1 {MOST_TOKENS - 1}").length == MOST_TOKENS
    with pytest.raises(UserError, match="at least 1") as caught:
        parse_schedule("1 -2")
    assert "\n" not in str(caught.value)
