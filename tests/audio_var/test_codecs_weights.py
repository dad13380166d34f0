"""Checkpoints that hold or name a codec's weights, and files of weights that are not what they should be."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

import audio_var.codecs  # noqa: F401 - registers the codecs
from audio_var.codecs import build_codec
from audio_var.codecs.encodec import EncodecCodec
from audio_var.codecs.pretrained import native_tokenizer
from audio_var.codecs.weights import need, read_state
from next_scale.checkpoint import from_pretrained, save_pretrained
from next_scale.errors import UserError
from next_scale.model import fingerprint
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import StrideSchedule
from next_scale.tokenizer import Tokenizer
from tests.audio_var.test_codecs_native import ENCODEC, HF_DAC, SNAC, encodec_package, noise, seeded


@pytest.fixture
def weights(tmp_path):
    """A file of EnCodec weights as the package saves them."""
    codec = seeded(lambda: EncodecCodec("24khz", architecture=ENCODEC))
    path = tmp_path / "encodec.th"
    torch.save(encodec_package(codec).state_dict(), path)
    return path


def opened(path, **options) -> EncodecCodec:
    return EncodecCodec("24khz", weights=str(path), architecture=ENCODEC, **options)


class Command:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_weights_of_a_file_and_what_a_checkpoint_holds(weights, tmp_path):
    codec = opened(weights)
    x = noise(1, 1, 800)
    tokenizer = native_tokenizer(codec, strides=(4, 2, 1))
    tokens = tokenizer.encode(x)
    save_pretrained(tokenizer, tmp_path / "own")
    weights.unlink()
    again = from_pretrained(tmp_path / "own")
    assert torch.equal(again.encode(x), tokens)
    assert torch.equal(again.decode(tokens, grid=(100,)), tokenizer.decode(tokens, grid=(100,)))
    assert fingerprint(again) == fingerprint(tokenizer)
    with pytest.raises(UserError, match="a checkpoint keeps no codebooks of 'encodec'"):
        native_tokenizer(again.autoencoder)


def test_checkpoint_that_names_its_weights(weights, tmp_path):
    codec = opened(weights, embed=False)
    quantizer = MultiScaleQuantizer(StrideSchedule((4, 2, 1)), codec.latent_channels, codebook_size=32, phis=1)
    tokenizer = Tokenizer(codec, quantizer).eval()
    x = noise(1, 1, 800)
    tokens = tokenizer.encode(x)
    path = save_pretrained(tokenizer, tmp_path / "named")
    assert (path / "model.safetensors").stat().st_size < weights.stat().st_size / 3
    again = from_pretrained(path)
    assert torch.equal(again.encode(x), tokens) and fingerprint(again) == fingerprint(tokenizer)
    other = seeded(lambda: EncodecCodec("24khz", architecture={**ENCODEC}))
    state = encodec_package(other).state_dict()
    state["encoder.model.0.conv.conv.bias"] += 1
    torch.save(state, weights)
    with pytest.raises(UserError, match="not those that this checkpoint was made with"):
        from_pretrained(path)
    weights.unlink()
    with pytest.raises(UserError, match="there is no file"):
        from_pretrained(path)


def test_random_weights_cannot_be_named():
    with pytest.raises(UserError, match="set embed, or name its weights"):
        EncodecCodec("24khz", architecture=ENCODEC, embed=False)


class TestFuzz:
    def test_truncated(self, weights):
        whole = weights.read_bytes()
        for size in (0, 10, len(whole) // 2, len(whole) - 30):
            weights.write_bytes(whole[:size])
            with pytest.raises(UserError, match="truncated or damaged|nor a whole safetensors file") as told:
                opened(weights)
            assert "\n" not in str(told.value)

    def test_renamed_missing_misshapen_and_infinite_tensors_are_named(self, weights):
        state = torch.load(weights, weights_only=True)
        name = "decoder.model.0.conv.conv.bias"
        tensor = state.pop(name)
        changes = (
            ({}, f"lacks the tensor {name}"),
            ({name: tensor[:3]}, rf"{name} has shape \(3,\), expected \(16,\)"),
            ({name: tensor * float("nan")}, f"{name} has values that are not finite"),
            ({name: tensor, "decoder.extra": tensor}, "does not: decoder.extra"),
            ({name: [1, 2]}, f"the entry '{name}' is no tensor"),
        )
        for change, message in changes:
            torch.save(state | change, weights)
            with pytest.raises(UserError, match=message):
                opened(weights)

    def test_pickles_are_not_run(self, weights, tmp_path):
        victim = tmp_path / "victim"
        torch.save({"encoder.model.0.conv.conv.bias": Command(victim)}, weights)
        with pytest.raises(UserError, match="holds code .* it was not run"):
            opened(weights)
        weights.write_bytes(pickle.dumps(Command(victim)))
        with pytest.raises(UserError, match="holds code|damaged"):
            opened(weights)
        assert not victim.exists()

    def test_other_things_than_weights(self, tmp_path):
        path = tmp_path / "a.th"
        for value in ([1, 2], {}, {1: torch.zeros(1)}, "text"):
            torch.save(value, path)
            with pytest.raises(UserError):
                read_state(path)

    def test_snac_folder(self, tmp_path):
        package = pytest.importorskip("snac", reason="the snac package is an extra")
        model = package.SNAC(**SNAC)
        (tmp_path / "config.json").write_text(json.dumps(SNAC))
        with pytest.raises(UserError, match="holds no pytorch_model.bin"):
            build_codec("snac", weights=str(tmp_path))
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        x = noise(1, 1, 512)
        codec = build_codec("snac", weights=str(tmp_path))
        assert torch.equal(native_tokenizer(codec).encode(x), torch.cat(model.eval().encode(x), 1))
        for change, message in (
            ({"vq_strides": [4, 2, 1]}, "pytorch_model.bin has a tensor that the model does not: quantizer"),
            ({"codebook_dim": 8}, "quantizer.quantizers.0.* has shape"),
            ({"encoder_dim": "many"}, "makes no codec 'snac'"),
            ({"unheard_of": 1}, "makes no codec 'snac'.*unheard_of"),
        ):
            (tmp_path / "config.json").write_text(json.dumps(SNAC | change))
            with pytest.raises(UserError, match=message):
                build_codec("snac", weights=str(tmp_path))
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(UserError, match="no readable JSON"):
            build_codec("snac", weights=str(tmp_path))

    def test_transformers_folder(self, tmp_path):
        pytest.importorskip("transformers", reason="the transformers package is an extra")
        from transformers import DacConfig, DacModel

        model = DacModel(DacConfig.from_dict(HF_DAC)).eval()
        model.save_pretrained(tmp_path)
        codec = build_codec("transformers", weights=str(tmp_path))
        x = noise(1, 1, 800)
        with torch.no_grad():
            codes = model.encode(x).audio_codes
        assert torch.equal(native_tokenizer(codec).encode(x), codes.flatten(1))
        state = model.state_dict()
        name = "encoder.conv1.bias"
        tensor = state.pop(name)
        for change, message in (
            ({}, f"lacks the tensor {name}"),
            ({name: tensor, "extra": tensor.clone()}, "does not: extra"),
            ({name: tensor[:1]}, name),
        ):
            save_file({k: v.contiguous() for k, v in (state | change).items()}, tmp_path / "model.safetensors",
                      metadata={"format": "pt"})  # fmt: skip
            with pytest.raises(UserError, match=message) as told:
                build_codec("transformers", weights=str(tmp_path))
            assert "\n" not in str(told.value)
        whole = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="gives no whole model") as told:
            build_codec("transformers", weights=str(tmp_path))
        assert "\n" not in str(told.value)


def test_damaged_checkpoints_of_ours(weights, tmp_path):
    path = save_pretrained(native_tokenizer(opened(weights), 2), tmp_path / "own") / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        from_pretrained(path)
    for old, new, message in (
        (b"24khz", b"99khz", "no variant '99khz'"),
        (b"n_filters", b"n_falters", "no size 'n_falters'"),
        (b'bins\\\\\\": 64', b'bins\\\\\\": 65', "power of 2"),
    ):
        if old in whole:
            path.write_bytes(whole.replace(old, new))
            with pytest.raises(UserError, match=message) as told:
                from_pretrained(path)
            assert "\n" not in str(told.value)


def test_missing_extra_names_the_command():
    with pytest.raises(UserError, match="pip install some-package"):
        need("no_such_module_here", "some-package")
