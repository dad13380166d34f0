import dataclasses
import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from image_var.autoencoder import ConvAutoencoder
from image_var.cli import main
from image_var.published import (
    SIDES_512,
    VAE,
    VAR,
    build_generator,
    build_predictor,
    schedule_of,
)
from image_var.verify import compare, model_of
from next_scale.checkpoint import from_pretrained
from next_scale.errors import UserError
from next_scale.parity import Case, read_case, report
from next_scale.published import Weights, read_weights

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = ("var_tiny", "var_tiny_shared_aln")


def official(case: Case) -> tuple[dict, dict]:
    """Both state dicts of a case in full, as the published code would save them."""
    states = []
    for prefix in ("vae.", "var."):
        state = case.weights(prefix)
        for name, shape in case.unfilled(prefix).items():
            state[name] = torch.full(shape, math.log(4)) if "scale_mul" in name else torch.zeros(shape)
        states.append(state)
    sides = case.config["patch_nums"]
    states[1]["lvl_1L"] = torch.tensor([k for k, side in enumerate(sides) for _ in range(side * side)])[None]
    return states[0], states[1]


@pytest.fixture(scope="module")
def tiny() -> Case:
    return read_case(GOLDENS / "var_tiny.safetensors")


@pytest.fixture
def files(tiny, tmp_path) -> tuple[Path, Path]:
    vae, var = tmp_path / "vae.pth", tmp_path / "var.pth"
    for path, state in zip((vae, var), official(tiny), strict=True):
        torch.save(state, path)
    return vae, var


@pytest.mark.parametrize("name", NAMES)
def test_parity_with_the_published_code(name):
    differences, others = compare(read_case(GOLDENS / f"{name}.safetensors"))
    assert others == []
    assert [item.name for item in differences] == [
        "latent", "tokens", "latent_quantized", "reconstruction", "teacher_forcing_input", "logits",
        "generated_image_top1_cfg1.5", "generated_image_top1_cfg4.0",
    ]  # fmt: skip
    assert all(item.passes(1e-4) for item in differences), report(differences, 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["pth", "safetensors", "trainer"])
def test_import_round_trip(name, layout, tmp_path, works):
    """Files in the official layout, imported by the command, make the published images."""
    case = read_case(GOLDENS / f"{name}.safetensors")
    vae, var = official(case)
    if layout == "safetensors":
        paths = [tmp_path / f"{kind}.safetensors" for kind in ("vae", "var")]
        save_file(vae, paths[0])
        save_file(var, paths[1])
    elif layout == "pth":
        paths = [tmp_path / f"{kind}.pth" for kind in ("vae", "var")]
        torch.save(vae, paths[0])
        torch.save(var, paths[1])
    else:
        paths = [tmp_path / "checkpoint.pth"] * 2
        trainer = {"config": {"depth": 2}, "vae_local": vae, "var_wo_ddp": var, "var_opt": {"state": {}}}
        torch.save({"epoch": 3, "trainer": trainer, "args": {"tblr": 1e-4}}, paths[0])
    out = works("import", "--vae", paths[0], "--var", paths[1], "--out", "made")
    assert "64x64 pixels, 4 scales (1, 2, 3, 4), 64 codes" in out and "depth 2, width 128, 2 heads" in out
    assert ("shared" in out) == case.config["shared_aln"]
    model = from_pretrained(tmp_path / "made")
    assert model.condition_spec == {"label": list(range(10))}
    assert (model.sampling.cfg, model.sampling.top_k, model.sampling.top_p) == (1.5, 900, 0.96)
    greedy = dataclasses.replace(model.sampling, temperature=0.0)
    made, _ = model.generate({"label": case.tensors["labels"]}, [0, 1], greedy)
    expected = case.tensors["generated_image_top1_cfg1.5"]
    torch.testing.assert_close((made + 1) / 2, expected, atol=1e-4, rtol=0)


def test_imported_models_are_ordinary_ones(files, works, fails, tmp_path):
    works("import", "--vae", files[0], "--var", files[1], "--out", "half", "--dtype", "float16")
    works("import", "--vae", files[0], "--var", files[1], "--out", "full")
    half, full = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full"))
    assert half < 0.52 * full
    works("generate", "--checkpoint", "half", "--label", "7", "--out", "images")
    assert list((tmp_path / "images").glob("*7*.png"))
    assert "from 0 to 9" in fails("generate", "--checkpoint", "full", "--label", "207", "--out", "more")


def test_import_of_the_tokenizer_alone(files, works, fails, tmp_path):
    works("import", "--vae", files[0], "--out", "tokenizer", "--scales", "1", "2", "4")
    tokenizer = from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 21)
    works("import", "--vae", files[0], "--out", "published")
    assert from_pretrained(tmp_path / "published").quantizer.schedule.length == 680
    assert "30 tokens in 4 scales" in fails("import", "--vae", files[0], "--var", files[1], "--out", "x", "--scales", 1)


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
        ("codes", "64 codes and"),
        ("scales", "30 tokens in 4 scales, not those of 1 2 3 4 5 6 8 10 13 16; give"),
    ],
)
def test_transformers_that_do_not_fit(change, message, files, tiny, fails):
    torch.save(damaged(official(tiny)[1], change), files[1])
    assert message in fails("import", "--vae", files[0], "--var", files[1], "--out", "made")


@pytest.mark.parametrize(
    "name", ["encoder.conv_in.weight", "decoder.up.1.upsample.conv.bias", "quantize.embedding.weight"]
)
def test_autoencoders_that_lack_something(name, files, tiny, fails):
    vae = official(tiny)[0]
    del vae[name]
    torch.save(vae, files[0])
    message = fails("import", "--vae", files[0], "--var", files[1], "--out", "made")
    assert name in message and "lacks" in message and "VAR autoencoder" in message


def test_swapped_and_other_files(files, tmp_path, fails):
    vae, var = files
    message = fails("import", "--vae", var, "--var", vae, "--out", "made")
    assert "var.pth is a VAR transformer, not a VAR autoencoder; give it as --var" in message
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    assert "holds no VAR transformer" in fails("import", "--vae", vae, "--var", other, "--out", "made")
    assert "there is no file" in fails("import", "--vae", vae, "--var", "none.pth", "--out", "made")
    assert "is a folder" in fails("import", "--vae", tmp_path, "--out", "made")
    assert "is a file; name a folder" in fails("import", "--vae", vae, "--out", vae)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_truncated_files(legacy, share, tmp_path, files, tiny, fails):
    path = tmp_path / "cut.pth"
    torch.save(official(tiny)[1], path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = fails("import", "--vae", files[0], "--var", path, "--out", "made")
    assert "cut.pth" in message and re.search("truncated|damaged|neither", message)


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_never_run(legacy, tmp_path, files, fails):
    path = tmp_path / "evil.pth"
    torch.save({"pos_1LC": Exploit()}, path, _use_new_zipfile_serialization=not legacy)
    message = fails("import", "--vae", files[0], "--var", path, "--out", "made")
    assert "holds code" in message and "mkdir" in message and "not run" in message
    assert not (tmp_path / "exploited").exists()


# Cases of other sizes, from the published layout written out


def layout(depth, width, heads, classes, sides, codes, channels, shared, l2, vae) -> dict[str, list[int]]:
    """Keys and shapes of both published models."""
    length, shapes = sum(side * side for side in sides), {}

    def linear(name, out, inside, bias=True):
        shapes[f"{name}.weight"] = [out, inside]
        shapes.update({f"{name}.bias": [out]} if bias else {})

    shapes["pos_start"], shapes["pos_1LC"] = [1, sides[0] ** 2, width], [1, length, width]
    shapes |= {"class_emb.weight": [classes + 1, width], "lvl_embed.weight": [len(sides), width]}
    linear("word_embed", width, channels)
    if shared:
        linear("shared_ada_lin.1", 6 * width, width)
    for i in range(depth):
        name = f"blocks.{i}"
        shapes.update({f"{name}.attn.scale_mul_1H11": [1, heads, 1, 1]} if l2 else {})
        shapes |= {f"{name}.attn.{bias}": [width] for bias in ("q_bias", "v_bias", "zero_k_bias")}
        linear(f"{name}.attn.mat_qkv", 3 * width, width, bias=False)
        linear(f"{name}.attn.proj", width, width)
        linear(f"{name}.ffn.fc1", 4 * width, width)
        linear(f"{name}.ffn.fc2", width, 4 * width)
        if shared:
            shapes[f"{name}.ada_gss"] = [1, 1, 6, width]
        else:
            linear(f"{name}.ada_lin.1", 6 * width, width)
    linear("head_nm.ada_lin.1", 2 * width, width)
    linear("head", codes, width)
    shapes = {f"var.{name}": shape for name, shape in shapes.items()}
    return shapes | {f"vae.{name}": shape for name, shape in vae.items()}


def logits_of(state, sides, heads, inputs, labels):
    """VAR's transformer under teacher forcing, written out on its state dict."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    level = torch.tensor([k for k, side in enumerate(sides) for _ in range(side * side)])
    condition = state["class_emb.weight"][labels]
    x = torch.cat([condition[:, None] + state["pos_start"], linear(inputs, "word_embed")], dim=1)
    x = x + state["lvl_embed.weight"][level] + state["pos_1LC"]
    mask = level[:, None] >= level
    six = lambda name: linear(F.silu(condition), name).unflatten(-1, (1, 6, -1))  # noqa: E731
    for i in range(sum(name.endswith("mat_qkv.weight") for name in state)):
        name = f"blocks.{i}"
        shared = f"{name}.ada_gss" in state
        parts = state[f"{name}.ada_gss"] + six("shared_ada_lin.1") if shared else six(f"{name}.ada_lin.1")
        gamma1, gamma2, scale1, scale2, shift1, shift2 = parts.unbind(2)
        qkv = linear(norm(x) * (1 + scale1) + shift1, f"{name}.attn.mat_qkv").unflatten(-1, (3, -1))
        zero = torch.zeros_like(state[f"{name}.attn.q_bias"])
        qkv = qkv + torch.stack([state[f"{name}.attn.q_bias"], zero, state[f"{name}.attn.v_bias"]])
        q, k, v = qkv.unflatten(-1, (heads, -1)).permute(2, 0, 3, 1, 4)
        if (logit_scale := state.get(f"{name}.attn.scale_mul_1H11")) is not None:
            q = F.normalize(q, dim=-1) * logit_scale.clamp(max=math.log(100)).exp()
            scores = q @ F.normalize(k, dim=-1).transpose(2, 3)
        else:
            scores = q @ k.transpose(2, 3) * 0.25 / math.sqrt(q.shape[-1])
        h = scores.masked_fill(~mask, -math.inf).softmax(-1) @ v
        x = x + gamma1 * linear(h.transpose(1, 2).flatten(2), f"{name}.attn.proj")
        h = F.gelu(linear(norm(x) * (1 + scale2) + shift2, f"{name}.ffn.fc1"), approximate="tanh")
        x = x + gamma2 * linear(h, f"{name}.ffn.fc2")
    scale, shift = linear(F.silu(condition), "head_nm.ada_lin.1")[:, None].chunk(2, dim=-1)
    return linear(norm(x) * (1 + scale) + shift, "head")


OTHERS = [  # depth, heads, classes, sides, phis, shared, l2
    (3, 3, 5, (1, 2, 4), 4, False, True),
    (1, 2, 1, (2, 3, 4), 2, False, False),
    (2, 1, 17, (1, 4, 4, 4), 1, True, False),
    (1, 1, 3, (1, 4), 0, True, True),
]


@pytest.fixture(params=OTHERS)
def other_case(request, tmp_path):
    """A case of another size in the same format: expected logits from the layout written out, the rest from us."""
    depth, heads, classes, sides, phis, shared, l2 = request.param
    width, codes, channels = 64 * heads, 24, 6
    autoencoder = ConvAutoencoder(3, 32, (1, 2, 1), 1, 2, attention=phis > 1, latent_channels=channels)
    vae = {name: list(tensor.shape) for name, tensor in autoencoder.state_dict().items()}
    vae["quantize.embedding.weight"] = [codes, channels]
    phi_names = [f"quant_resi.qresi_ls.{i}" for i in range(phis)] if phis > 1 else ["quant_resi.qresi"]
    phi_names = [f"quant_resi.{i}" for i in range(len(sides))] if phis == 0 else phi_names
    for name in phi_names:
        vae |= {f"quantize.{name}.weight": [channels, channels, 3, 3], f"quantize.{name}.bias": [channels]}
    filled = layout(depth, width, heads, classes, sides, codes, channels, shared, l2, vae)
    unfilled = {name: filled.pop(name) for name in list(filled) if "scale_mul" in name or "zero_k" in name}
    config = {"patch_nums": sides, "num_heads": heads, "quant_resi": 0.25}
    path = tmp_path / "other.safetensors"
    metadata = {
        "config": json.dumps(config),
        "filled_keys": json.dumps(filled),
        "state_dict_keys": json.dumps(filled | unfilled),
    }
    save_file({"image": torch.rand(3, 3, 16, 16) * 2 - 1}, path, metadata)
    case = read_case(path)
    model = model_of(case)
    with torch.no_grad():
        image, labels = case.tensors["image"], torch.tensor([0, classes - 1, classes])
        latent = model.tokenizer.autoencoder.encode(image)
        tokens = model.tokenizer.quantizer.encode(latent)
        inputs = model.tokenizer.quantizer.teacher_forcing(tokens)
        state = case.weights("var.") | {
            name: torch.full(shape, math.log(4)) for name, shape in case.unfilled("var.").items() if "scale_mul" in name
        }
        tensors = {
            "image": image, "labels": labels, "latent": latent, "teacher_forcing_input": inputs,
            "logits": logits_of(state, sides, heads, inputs, labels),
            **{f"tokens.{k}": part.contiguous() for k, part in enumerate(tokens.split([s * s for s in sides], 1))},
        }  # fmt: skip
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def test_verify_reads_cases_of_any_size(other_case, works):
    out = works("verify", other_case)
    assert re.findall(r"^\w+", out, re.M) == ["latent", "tokens", "teacher_forcing_input", "logits"]
    assert out.count("  ok") == 4
    logits = re.search(r"logits +(\S+)", out)[1]
    assert float(logits) < 1e-4


def test_verify_tells_what_differs(tmp_path, capsys):
    golden = GOLDENS / "var_tiny.safetensors"
    tensors, path = load_file(golden), tmp_path / "case.safetensors"
    with safe_open(golden, "pt") as file:
        metadata = file.metadata()
    for name, change in (
        ("logits", 2e-3),
        ("tokens.2", 1),
        ("latent", math.nan),
        ("generated_image_top1_cfg4.0", 0.01),
    ):
        changed = tensors | {name: tensors[name].clone(), "mystery": torch.zeros(2)}
        changed[name].flatten()[5] += change
        save_file(changed, path, metadata)
        assert main(["verify", str(path)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines if "TOO LARGE" in line] == [name.removesuffix(".2")]
        assert lines[-1] == "not compared: mystery"
    changed = {name: tensors[name] for name in ("labels", "generated_image_top1_cfg1.5")}
    save_file(changed, path, metadata)
    assert main(["verify", str(path), str(golden)]) == 0
    assert str(path) in capsys.readouterr().out


def test_cases_that_cannot_be_compared(tmp_path, fails):
    path = tmp_path / "case.safetensors"
    save_file({"image": torch.zeros(2)}, path)
    assert "not a case" in fails("verify", path)
    path.write_bytes(b"abc")
    assert "whole safetensors file" in fails("verify", path)
    assert "no VAR autoencoder" in fails("verify", GOLDENS / "aar_tiny.safetensors")
    assert "No such file" in fails("verify", "none.safetensors")


# Sizes of the released models


def test_released_schedules():
    def stand_in(sides):
        shapes = layout(1, 64, 1, 2, sides, 8, 4, True, True, {})
        return Weights(VAR, "file", {name.removeprefix("var."): torch.zeros(shape) for name, shape in shapes.items()})

    assert schedule_of(stand_in(SIDES_512)).grid == (32, 32)
    model = build_predictor(stand_in(SIDES_512), schedule_of(stand_in(SIDES_512)))
    assert model.transformer.shared_modulation and model.schedule.length == 2240
    with pytest.raises(UserError, match="--scales"):
        schedule_of(stand_in((1, 2, 5)))
    assert schedule_of(stand_in((1, 2, 5)), [1, 2, 5]).grid == (5, 5)


@pytest.mark.parametrize("depth", [16, 20, 24, 30, 36])
def test_released_depths(depth):
    """Names and shapes of a transformer of every released depth, at a 64th of its width."""
    shapes = layout(depth, depth, depth, 1000, (1, 2, 3), 8, 4, depth == 36, True, {})
    var = Weights(VAR, "file", {name.removeprefix("var."): torch.zeros(shape) for name, shape in shapes.items()})
    model = build_predictor(var, schedule_of(var, (1, 2, 3)))
    transformer = model.transformer
    assert (transformer.depth, transformer.heads, transformer.shared_modulation) == (depth, depth, depth == 36)


def test_models_of_different_files_are_told_apart(tiny, files):
    vae = read_weights(files[0], VAE)
    var = dict(read_weights(files[1], VAR).tensors)
    var["word_embed.weight"] = torch.zeros(128, 9)
    with pytest.raises(UserError, match="8 latent channels"):
        build_generator(vae, Weights(VAR, "other", var))
