"""Checkpoints: what was saved comes back, and what is no checkpoint is refused in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from next_scale.checkpoint import CONFIG, WEIGHTS, from_pretrained, save_pretrained
from next_scale.errors import UserError
from next_scale.model import Generator, fingerprint
from next_scale.tokenizer import Tokenizer

CONDITION = {"label": torch.tensor([0, 2]), "pitch": torch.tensor([3, -1])}


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def rewrite(folder, config=None, change=None):
    """Save the weights of a checkpoint again, with another configuration or changed tensors."""
    state = load_file(folder / WEIGHTS)
    if change:
        change(state)
    config = config if config is not None else json.loads((folder / CONFIG).read_text())
    save_file(state, folder / WEIGHTS, metadata={"config": json.dumps(config)})
    return folder


def refused(source):
    with pytest.raises(UserError) as caught:
        from_pretrained(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("as_file", [False, True])
def test_round_trip(tiny_generator, tiny_checkpoint, as_file):
    again = from_pretrained(tiny_checkpoint / WEIGHTS if as_file else tiny_checkpoint)
    assert isinstance(again, Generator) and not again.training
    assert again.sampling == tiny_generator.sampling and again.condition_spec == tiny_generator.condition_spec
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tiny_generator.state_dict().items())
    assert fingerprint(again.tokenizer) == fingerprint(tiny_generator.tokenizer)
    made, tokens = tiny_generator.generate(CONDITION, [1, 2])
    again_made, again_tokens = again.generate(CONDITION, [1, 2])
    assert torch.equal(tokens, again_tokens) and torch.equal(made, again_made)


def test_tokenizer_alone(tokenizer_checkpoint):
    tokenizer = from_pretrained(tokenizer_checkpoint)
    assert isinstance(tokenizer, Tokenizer)
    tokens = tokenizer.encode(torch.randn(2, 1, 512))
    assert tokens.shape == (2, 1 + 2 + 4 + 8)
    assert tokenizer.decode(tokens, grid=(8,)).shape == (2, 1, 512)


def test_half_precision(tiny_generator, tiny_checkpoint, tmp_path):
    half = save_pretrained(tiny_generator, tmp_path / "half", torch.float16)
    assert (half / WEIGHTS).stat().st_size < 0.7 * (tiny_checkpoint / WEIGHTS).stat().st_size
    model = from_pretrained(half)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), tiny_generator.state_dict(), atol=2e-3, rtol=1e-3)


def test_config_lies_beside_the_weights(tiny_checkpoint):
    config = json.loads((tiny_checkpoint / CONFIG).read_text())
    assert config["format"] == "next-scale" and config["kind"] == "generator"
    assert sorted(path.name for path in tiny_checkpoint.iterdir()) == [CONFIG, WEIGHTS]


def test_fingerprint_tells_tokenizers_apart(tiny_generator, other_checkpoint):
    assert fingerprint(tiny_generator.tokenizer) != fingerprint(from_pretrained(other_checkpoint).tokenizer)


def test_missing(tmp_path):
    assert "no checkpoint at" in refused(tmp_path / "nowhere")
    assert "no model.safetensors" in refused(tmp_path)
    assert "no checkpoint at nowhere" in refused("nowhere")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated(copy, keep):
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a whole safetensors file" in refused(copy)


def test_not_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"RIFF" + bytes(1000))
    assert "not a whole safetensors file" in refused(path)
    torch.save({"weight": torch.zeros(3)}, path)  # a pickle is never opened
    assert "not a whole safetensors file" in refused(path)


def test_not_ours(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    assert "not a checkpoint of this project" in refused(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"config": "[1]"})
    assert "not a checkpoint of this project" in refused(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(version=2), "checkpoint version 2"),
        (lambda c: c["autoencoder"].update(name="other"), "needs the autoencoder 'other'"),
        (lambda c: c["autoencoder"].update(colour=1), "cannot be built"),
        (lambda c: c["quantizer"].update(schedule=[[2], [1]]), "may not shrink"),
        (lambda c: c.pop("quantizer"), "does not build a model"),
        (lambda c: c["sampling"].update(temperature=-1), "temperature must be"),
        (lambda c: c["predictor"].update(width=64), "expected"),
    ],
)
def test_wrong_configuration(copy, change, message):
    config = json.loads((copy / CONFIG).read_text())
    change(config)
    assert message in refused(rewrite(copy, config))


def test_wrong_tensors(copy):
    name = "tokenizer.quantizer.codebooks.0.weight"
    assert f"lacks the tensor {name}" in refused(rewrite(copy, change=lambda s: s.pop(name)))
    assert "has shape (3,)" in refused(rewrite(copy, change=lambda s: s.update({name: torch.zeros(3)})))


def test_surplus_tensor(copy):
    assert "the model does not: extra" in refused(rewrite(copy, change=lambda s: s.update(extra=torch.zeros(1))))


def test_failed_save_leaves_the_old_one(tiny_generator, copy, monkeypatch):
    before = (copy / WEIGHTS).read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("next_scale.checkpoint.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_pretrained(tiny_generator, copy)
    assert (copy / WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in copy.iterdir()) == [CONFIG, WEIGHTS]


def test_save_to_a_file(tiny_generator, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        save_pretrained(tiny_generator, tmp_path / "file")
