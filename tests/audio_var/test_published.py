"""SAT's and AAR's published weights: parity with their code, import of every layout, and files that are not whole."""

import dataclasses
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from audio_var.verify import compare, model_of
from next_scale.checkpoint import from_pretrained
from next_scale.parity import Case, read_case, report

GOLDEN = Path(__file__).parents[1] / "goldens" / "aar_tiny.safetensors"
_OLD_NEW = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))


def official(case: Case) -> tuple[dict, dict]:
    """Both state dicts of a case in full, as the published code would save them."""
    states = []
    for prefix in ("sat.", "aar."):
        state = case.weights(prefix)
        for name, shape in case.unfilled(prefix).items():
            state[name] = torch.full(shape, math.log(4)) if "scale_mul" in name else torch.zeros(shape)
        states.append(state)
    if states[1]:
        lengths = case.config["multi_scale"]
        states[1]["lvl_1L"] = torch.tensor([k for k, length in enumerate(lengths) for _ in range(length)])[None]
    return states[0], states[1]


@pytest.fixture(scope="module")
def tiny() -> Case:
    return read_case(GOLDEN)


@pytest.fixture
def files(tiny, tmp_path) -> tuple[Path, Path]:
    sat, aar = tmp_path / "sat.pth", tmp_path / "aar.pth"
    for path, state in zip((sat, aar), official(tiny), strict=True):
        torch.save(state, path)
    return sat, aar


@pytest.fixture
def imported(files, works, tmp_path) -> Path:
    works("import", "--sat", files[0], "--aar", files[1], "--out", "aar")
    return tmp_path / "aar"


def test_parity_with_the_published_code(tiny):
    differences, others = compare(tiny)
    assert others == []
    assert [item.name for item in differences] == [
        "latent", "tokens", "latent_quantized", "reconstruction", "teacher_forcing_input", "logits",
        "generated_waveform_top1_cfg1.5", "generated_waveform_top1_cfg4.0",
    ]  # fmt: skip
    assert all(item.passes(1e-4) for item in differences), report(differences, 1e-4)


@pytest.mark.parametrize("layout", ["pth", "safetensors", "trainer", "new weight norm"])
def test_import_round_trip(layout, tiny, works, tmp_path):
    """Files in the official layout, imported by the command, make the published clips."""
    sat, aar = official(tiny)
    if layout == "new weight norm":
        for old, new in _OLD_NEW:
            sat = {name.replace(old, new): tensor for name, tensor in sat.items()}
        assert sum("original0" in name for name in sat) > 20
    suffix = "safetensors" if layout == "safetensors" else "pth"
    paths = [tmp_path / f"{kind}.{suffix}" for kind in ("sat", "aar")]
    for path, state, key in zip(paths, (sat, aar), ("generator_state_dict", "model_state_dict"), strict=True):
        if layout == "safetensors":
            save_file(state, path)
        elif layout == "trainer":
            torch.save({"epoch": 3, key: {f"module.{name}": tensor for name, tensor in state.items()}}, path)
        else:
            torch.save(state, path)
    out = works("import", "--sat", paths[0], "--aar", paths[1], "--out", "made")
    assert "clips of 0.12 s at 24,000 Hz, 5 scales (1 2 4 6 9), 22 tokens, codebooks of 1,024" in out
    assert "depth 2, width 128, 2 heads; embeddings of 512" in out
    model = from_pretrained(tmp_path / "made")
    assert (model.condition_spec, model.vectors) == ({}, {"clap": 512})
    assert (model.sampling.cfg, model.sampling.top_k, model.sampling.top_p) == (4.0, 200, 0.95)
    greedy = dataclasses.replace(model.sampling, temperature=0.0)
    made, _ = model.generate({"clap": tiny.tensors["clap_embedding"]}, [0, 1], greedy)
    torch.testing.assert_close(made, tiny.tensors["generated_waveform_top1_cfg4.0"], atol=1e-4, rtol=0)


def test_import_of_the_tokenizer_alone(files, works, fails, tmp_path):
    works("import", "--sat", files[0], "--out", "sat", "--scales", "1", "2", "4", "6", "9")
    tokenizer = from_pretrained(tmp_path / "sat")
    assert tokenizer.encode(torch.zeros(1, 1, 2880)).shape == (1, 22)
    assert "codebooks of 5 scales, not of 16" in fails("import", "--sat", files[0], "--out", "published")
    assert "22 tokens in 5 scales" in fails("import", "--sat", files[0], "--aar", files[1], "--out", "x", "--scales",
                                            1, 2, 4, 6, 8)  # fmt: skip


def test_embeddings_of_a_file(imported, tiny, works, tmp_path):
    embeddings = tiny.tensors["clap_embedding"].numpy()
    np.save(tmp_path / "dog.npy", embeddings[0])
    np.save(tmp_path / "many.npy", embeddings)
    save_file({"embedding": tiny.tensors["clap_embedding"][1]}, tmp_path / "one.safetensors")
    out = works(
        "generate", "--checkpoint", "aar", "--condition", "dog.npy", "many.npy", "one.safetensors", "--out", "c"
    )
    names = ["dog_s0_000.wav", "many-000_s0_000.wav", "many-001_s0_000.wav", "one_s0_000.wav"]
    assert sorted(os.listdir(tmp_path / "c")) == names
    assert "4 clips of 0.12 s in c: clap dog, many-000, many-001, one (seed 0)" in out
    clips = [soundfile.read(tmp_path / "c" / name)[0] for name in names]
    assert np.array_equal(clips[0], clips[1]) and np.array_equal(clips[2], clips[3])  # by condition and seed alone
    assert not np.allclose(clips[0], clips[2], atol=1e-3)
    works("generate", "--checkpoint", "aar", "--out", "d")  # none given
    assert os.listdir(tmp_path / "d") == ["any_s0_000.wav"]
    assert "a vector of 512" in works("info", "aar")


def test_embeddings_that_do_not_fit(imported, fails, tmp_path):
    command = ["generate", "--checkpoint", "aar", "--out", "c", "--condition"]
    for name, value in (("small", np.zeros(8)), ("nan", np.full(512, np.nan)), ("text", np.array(["a"])),
                        ("object", np.array([{}]))):  # fmt: skip
        np.save(tmp_path / f"{name}.npy", value, allow_pickle=True)
    assert "small.npy has shape (8,)" in fails(*command, "small.npy")
    assert "not finite" in fails(*command, "nan.npy")
    for name in ("text", "object"):
        assert f"{name}.npy is no .npy or .safetensors file of numbers" in fails(*command, f"{name}.npy")
    assert "there is no file none.npy" in fails(*command, "none.npy")
    assert "takes FIELD=VALUE, got 'flute'" in fails(*command, "flute")
    assert "the prompt is empty" in fails(*command[:-1], "--prompt", " ")


def test_models_without_embeddings_say_so(tiny_checkpoint, fails):
    message = fails("generate", "--checkpoint", tiny_checkpoint, "--prompt", "a dog")
    assert "this model was trained on labels, not words, and takes no prompt: ask for --label, --pitch" in message
    for option in (("--condition", "a.npy"), ("--prompt-audio", "a.wav")):
        message = fails("generate", "--checkpoint", tiny_checkpoint, *option)
        assert "this model takes no embedding, and so no prompt; its conditions: --label, --pitch" in message


@pytest.fixture(scope="module")
def clap(tmp_path_factory) -> Path:
    """A tiny CLAP model with random weights, in the hub's layout."""
    transformers = pytest.importorskip("transformers", reason="the transformers package is an extra")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "dog", "barking"]
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
            "vocab_size": len(words), "projection_dim": 512, "max_position_embeddings": 40}  # fmt: skip
    audio = {"patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 32,
             "projection_dim": 512, "num_mel_bins": 64, "spec_size": 256, "window_size": 8}  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=512)
    transformers.ClapModel(config).save_pretrained(folder)
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder


def test_prompts_by_text_and_by_audio(imported, clap, works, tmp_path):
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(24_000) / 10), 24_000)
    works("generate", "--checkpoint", "aar", "--prompt", "dog barking", "dog", "--prompt-audio", "tone.wav",
          "--clap-model", clap, "--out", "c")  # fmt: skip
    names = ["dog-barking_s0_000.wav", "dog_s0_000.wav", "tone_s0_000.wav"]
    assert sorted(os.listdir(tmp_path / "c")) == names


def test_where_there_is_no_clap_model(imported, fails, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    message = fails("generate", "--checkpoint", "aar", "--prompt", "dog", "--clap-model", "empty")
    assert "no CLAP model at empty" in message and "--clap-model" in message


# Files that are not whole


def damaged(state: dict, change: str) -> dict:
    state = dict(state)
    if change == "missing":
        for name in ("blocks.1.attn.proj.bias", "pos_start"):
            del state[name]
    elif change == "extra":
        state["blocks.0.attn.gate"] = torch.zeros(3)
    elif change == "shape":
        state["blocks.1.ffn.fc2.weight"] = torch.zeros(512, 128)
    elif change == "codes":
        state |= {"head.weight": torch.zeros(32, 128), "head.bias": torch.zeros(32)}
    elif change == "scales":
        del state["lvl_1L"]
    return state


@pytest.mark.parametrize(
    "change, message",
    [
        ("missing", "it lacks blocks.1.attn.proj.bias, pos_start"),
        ("extra", "has the unknown blocks.0.attn.gate"),
        ("shape", "blocks.1.ffn.fc2.weight has shape (512, 128), expected (128, 512)"),
        ("codes", "1024 codes and"),
        ("scales", "has codebooks of 5 scales, not of 16"),
    ],
)
def test_transformers_that_do_not_fit(change, message, files, tiny, fails):
    torch.save(damaged(official(tiny)[1], change), files[1])
    assert message in fails("import", "--sat", files[0], "--aar", files[1], "--out", "made")


@pytest.mark.parametrize(
    "name",
    ["encoder.model.3.conv.conv.weight_v", "decoder.model.1.lstm.weight_hh_l0", "quantizer.vq.project_out.bias",
     "encoder.model.4.shortcut.conv.conv.bias", "quantizer.vq.layers.4._codebook.embed"],
)  # fmt: skip
@pytest.mark.parametrize("change", ["gone", "renamed", "cut"])
def test_tokenizers_that_do_not_fit(name, change, files, tiny, fails):
    sat = official(tiny)[0]
    tensor = sat.pop(name)
    if change == "renamed":
        sat[name + "_"] = tensor
    elif change == "cut":
        sat[name] = tensor[..., :-1].contiguous()
    torch.save(sat, files[0])
    message = fails("import", "--sat", files[0], "--aar", files[1], "--out", "made")
    assert name in message or "has codebooks of 4 scales, not of 5" in message


def test_swapped_and_other_files(files, tmp_path, fails):
    sat, aar = files
    message = fails("import", "--sat", aar, "--aar", sat, "--out", "made")
    assert "aar.pth is a AAR transformer, not a SAT tokenizer; give it as --aar" in message.replace("an AAR", "a AAR")
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    assert "holds no AAR transformer" in fails("import", "--sat", sat, "--aar", other, "--out", "made")
    assert "there is no file" in fails("import", "--sat", sat, "--aar", "none.pth", "--out", "made")
    assert "is a file; name a folder" in fails("import", "--sat", sat, "--out", sat)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_truncated_files(legacy, share, tmp_path, files, tiny, fails):
    path = tmp_path / "cut.pth"
    torch.save(official(tiny)[1], path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = fails("import", "--sat", files[0], "--aar", path, "--out", "made")
    assert "cut.pth" in message and re.search("truncated|damaged|neither", message)


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_never_run(legacy, tmp_path, files, fails):
    path = tmp_path / "evil.pth"
    torch.save({"pos_1LC": Exploit()}, path, _use_new_zipfile_serialization=not legacy)
    message = fails("import", "--sat", files[0], "--aar", path, "--out", "made")
    assert "holds code" in message and "mkdir" in message and "not run" in message
    assert not (tmp_path / "exploited").exists()


# Cases of other sizes


OTHERS = [  # dimension, latent width, ratios, residual layers, LSTM layers, lengths, phis, depth, heads, l2
    (8, 8, (4, 2), 2, 0, (1, 2, 3), 0, 1, 1, False),
    (12, 4, (2, 3, 4), 1, 1, (1, 4, 4, 8), 2, 3, 2, True),
]


@pytest.fixture(params=OTHERS)
def other_case(request, tiny, tmp_path) -> Path:
    """A case of another size in the same format, its shapes from the package's modules and the published layout."""
    from encodec.modules import SEANetDecoder, SEANetEncoder

    dimension, latent, ratios, layers, lstm, lengths, phis, depth, heads, l2 = request.param
    sizes = {"dimension": dimension, "n_filters": 4, "ratios": list(ratios), "n_residual_layers": layers, "lstm": lstm,
             "norm": "weight_norm", "causal": False}  # fmt: skip
    shapes = {}
    for part, kind in (("encoder", SEANetEncoder), ("decoder", SEANetDecoder)):
        shapes |= {f"sat.{part}.{name}": list(tensor.shape) for name, tensor in kind(**sizes).state_dict().items()}
    quantizer = "sat.quantizer.vq."
    if latent != dimension:
        for name, out, inside in (("project_in", latent, dimension), ("project_out", dimension, latent)):
            shapes |= {f"{quantizer}{name}.weight": [out, inside], f"{quantizer}{name}.bias": [out]}
    phi = [f"quant_resi.qresi_ls.{i}" for i in range(phis)] or [f"quant_resi.{i}" for i in range(len(lengths))]
    for name in phi:
        shapes |= {f"{quantizer}{name}.weight": [latent, latent, 5], f"{quantizer}{name}.bias": [latent]}
    for k in range(len(lengths)):
        shapes[f"{quantizer}layers.{k}._codebook.embed"] = [24, latent]
    width = 64 * heads
    aar = {name: shape for name, shape in tiny.shapes.items() if name.startswith("aar.") and "blocks.1" not in name}
    changed = {128: width, 384: 3 * width, 512: 4 * width, 768: 6 * width, 256: 2 * width, 16: latent, 1024: 24,
               22: sum(lengths), 5: len(lengths)}  # fmt: skip
    for name, shape in aar.items():
        shape = [512 if name.endswith(("fc1.weight", "uncond_embedding")) and "class" in name + "class" and side == 512
                 and "blocks" not in name else changed.get(side, side) for side in shape]  # fmt: skip
        if "scale_mul" in name:
            shape = [1, heads, 1, 1]
        for i in range(depth if "blocks.0" in name else 1):
            shapes[name.replace("blocks.0", f"blocks.{i}")] = shape
    if not l2:
        shapes = {name: shape for name, shape in shapes.items() if "scale_mul" not in name}
    kept = ("scale_mul", "zero_k", "lvl_1L", "attn_bias_for_masking")
    filled = {name: shape for name, shape in shapes.items() if not any(mark in name for mark in kept)}
    config = {"multi_scale": lengths, "num_heads": heads, "quant_resi": 0.25, "sample_rate": 8000}
    metadata = {
        "config": json.dumps(config), "filled_keys": json.dumps(filled), "state_dict_keys": json.dumps(shapes),
    }  # fmt: skip
    path = tmp_path / "other.safetensors"
    waveform = torch.rand(2, 1, math.prod(ratios) * lengths[-1]) * 2 - 1
    embedding = torch.randn(2, 512) / 512**0.5
    save_file({"waveform": waveform}, path, metadata)
    model = model_of(read_case(path))
    with torch.no_grad():
        latent = model.tokenizer.autoencoder.encode(waveform)
        tokens = model.tokenizer.quantizer.encode(latent)
        inputs = model.tokenizer.quantizer.teacher_forcing(tokens)
        logits = model.predictor(inputs, {"clap": embedding})
    tensors = {"waveform": waveform, "clap_embedding": embedding, "latent": latent, "logits": logits,
               **{f"tokens.{k}": part for k, part in enumerate(tokens.split(lengths, 1))}}  # fmt: skip
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def test_verify_reads_cases_of_any_size(other_case, works):
    out = works("verify", other_case)
    assert re.findall(r"^\w+", out, re.M) == ["latent", "tokens", "logits"] and out.count("  ok") == 3


def test_verify_tells_what_differs(tmp_path, works, capsys):
    from audio_var.cli import main

    tensors, path = load_file(GOLDEN), tmp_path / "case.safetensors"
    with safe_open(GOLDEN, "pt") as file:
        metadata = file.metadata()
    tensors["logits"][0, 3, 5] += 0.01
    save_file(tensors, path, metadata)
    assert main(["verify", str(path)]) == 1
    out = capsys.readouterr().out
    assert re.search(r"logits .*1\.0\de-02.*TOO LARGE", out) and out.count("TOO LARGE") == 1
