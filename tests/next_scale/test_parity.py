import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from next_scale.errors import UserError
from next_scale.parity import difference, fill, read_case, report

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_weights_follow_from_their_keys():
    """The same numbers as the cases' own program makes."""
    spec = importlib.util.spec_from_file_location("fill_weights", GOLDENS / "fill_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for key, shape in (
        ("vae.encoder.conv_in.weight", (32, 3, 3, 3)), ("vae.quantize.embedding.weight", (64, 8)),
        ("var.blocks.0.attn.q_bias", (128,)), ("vae.encoder.norm_out.weight", (5,)), ("var.pos_start", (1, 1, 7)),
        ("sat.encoder.model.0.conv.conv.weight_g", (32, 1, 1)), ("sat.quantizer.vq.layers.1._codebook.embed", (9, 4)),
    ):  # fmt: skip
        assert (fill(key, shape) == module.fill(key, shape)).all() and fill(key, shape).dtype == "float32"


def test_differences():
    zeros = torch.zeros(2, 3)
    assert difference("a", zeros + 1e-5, zeros).passes(1e-4) and not difference("a", zeros + 1e-3, zeros).passes(1e-4)
    assert not difference("a", zeros, torch.zeros(3, 2)).passes(1e9)
    assert not difference("a", zeros + math.nan, zeros).passes(1e9)
    assert not difference("a", zeros.int() + 1, zeros.int()).passes(1e9)
    table = report([difference("tokens", torch.arange(6), torch.tensor([0, 1, 2, 3, 5, 5]))], 1)
    assert table.split() == ["tokens", "1", "of", "6", "differ", "TOO", "LARGE"]


def test_a_case_is_weights_by_name_and_tensors(tmp_path):
    path = tmp_path / "case.safetensors"
    metadata = {
        "config": json.dumps({"depth": 2}),
        "filled_keys": json.dumps({"a.weight": [4, 2], "b.weight": [3]}),
        "state_dict_keys": json.dumps({"a.weight": [4, 2], "b.weight": [3], "a.scale": [1]}),
        "note": "text",
    }
    save_file({"input": torch.ones(2)}, path, metadata)
    case = read_case(path)
    assert (case.config, case.metadata, list(case.tensors)) == ({"depth": 2}, {"note": "text"}, ["input"])
    weights = case.weights("a.")
    assert list(weights) == ["weight"] and case.unfilled("a.") == {"scale": (1,)}
    assert torch.equal(weights["weight"], torch.from_numpy(fill("a.weight", (4, 2))))


@pytest.mark.parametrize("change", [{"config": "{"}, {"filled_keys": "[1]"}, {"filled_keys": '{"a": ["x"]}'}])
def test_files_that_are_no_cases(change, tmp_path):
    path = tmp_path / "case.safetensors"
    save_file({"input": torch.ones(2)}, path, {"config": "{}", "filled_keys": "{}"} | change)
    with pytest.raises(UserError, match="not a case"):
        read_case(path)
