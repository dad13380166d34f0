"""`image-var` as a whole: help, dispatch, start-up, `info`, and the Python interface."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import image_var
from image_var.cli import COMMANDS, main
from next_scale.checkpoint import save_pretrained
from next_scale.errors import UserError

HEAVY = {"lightning", "pytorch_lightning", "torchvision", "matplotlib", "scipy", "torchmetrics", "audio_var"}
SHARED = ["generate", "reconstruct", "tokenize", "detokenize", "info"]


def run(*argv, code="import sys; from image_var.cli import main; c = main(sys.argv[1:]); ", after="sys.exit(c)"):
    """A fresh interpreter: (exit code, stdout, stderr)."""
    env = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", code + after, *map(str, argv)], capture_output=True, text=True, env=env
    )
    return done.returncode, done.stdout, done.stderr


def test_help_lists_the_commands(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out and summary in out for name, (_, summary) in COMMANDS.items())


@pytest.mark.parametrize("command", SHARED)
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"image-var {command}" in out[out.index("example") :] and len(out) > 300


def test_both_programs_have_the_same_commands_and_options():
    import audio_var.cli
    from next_scale.cli import Parser

    def options(package):
        found = {}
        for name in SHARED:
            subparsers = Parser(prog="x").add_subparsers()
            __import__(f"{package}.cli.{COMMANDS[name][0]}", fromlist=["x"]).add_parser(subparsers)
            found[name] = set(subparsers.choices[name]._option_string_actions)
        return found

    assert {*SHARED, "data", "fit", "evaluate"} <= set(COMMANDS) & set(audio_var.cli.COMMANDS)
    images, sounds = options("image_var"), options("audio_var")
    for name in SHARED:
        only_sounds = {"--plot", "--pitch", "--velocity", "--max-seconds", "--batch-size", "--seconds"}
        only_sounds |= {"--stream", "--prompt-audio", "--clap-model"}
        assert sounds[name] - images[name] <= only_sounds and images[name] - sounds[name] <= {"--grid", "--scale"}


def test_help_is_fast_and_light():
    after = "print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)), file=sys.stderr)"
    code = "import sys; from image_var.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    started = time.monotonic()
    _, out, err = run("generate", "--help", code=code, after=after)
    assert err == "[]\n" and "--label" in out
    assert time.monotonic() - started < 10


def test_commands_import_no_training_code(tiny_checkpoint, tmp_path):
    Image.new("L", (40, 40)).save(tmp_path / "in.png")
    checkpoint = ["--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    commands = [
        ["info", str(tiny_checkpoint)],
        ["generate", "--label", "bag", "--out", str(tmp_path / "images"), "--grid", *checkpoint],
        ["tokenize", str(tmp_path / "in.png"), str(tmp_path / "o.nst"), *checkpoint],
        ["detokenize", str(tmp_path / "o.nst"), str(tmp_path / "o.png"), *checkpoint],
        ["reconstruct", str(tmp_path / "in.png"), str(tmp_path / "o.png"), *checkpoint],
    ]
    code = f"import sys; from image_var.cli import main; c = [main(argv) for argv in {commands}]; "
    _, out, err = run(code=code, after=f"print(c, sorted({HEAVY} & set(sys.modules)))")
    assert err == "" and out.splitlines()[-1] == "[0, 0, 0, 0, 0] []"


def test_module(tmp_path):
    done = subprocess.run([sys.executable, "-m", "image_var", "info", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr.startswith("image-var: error: no model.safetensors in the folder") and done.stderr.count("\n") == 1
    )


def test_no_command(capsys):
    assert main([]) == 2
    assert "generate" in capsys.readouterr().out


def test_mistakes(fails):
    assert "'genrate'" in fails("genrate")
    assert "unknown argument --frobnicate" in fails("info", "--frobnicate")
    assert "IN, OUT" in fails("reconstruct")


def test_fit_gets_its_arguments_untouched(monkeypatch):
    import image_var.cli.fit

    seen = []
    monkeypatch.setattr(image_var.cli.fit, "run", lambda argv: seen.extend(argv))
    assert main(["fit", "tokenizer", "--config", "x.yaml", "--trainer.max_steps=3", "--help"]) == 0
    assert seen == ["tokenizer", "--config", "x.yaml", "--trainer.max_steps=3", "--help"]


# Info


def test_info(works, tiny_checkpoint):
    out = works("info", tiny_checkpoint)
    for text in ("generator", "32 x 32, gray", "4 times down", "1x1 2x2 4x4 8x8", "85 tokens, 340 bits an image"):
        assert text in out
    assert "0.33 bits a pixel" in out and "t-shirt, sneaker, bag, ankle-boot" in out


def test_info_of_numbered_classes(works, other_checkpoint):
    out = works("info", other_checkpoint)
    assert "32 x 32, RGB" in out and "0 to 999" in out


def test_info_json(works, tiny_checkpoint, tiny_generator):
    facts = json.loads(works("info", tiny_checkpoint, "--json"))
    assert facts["parameters"]["total"] == sum(t.numel() for t in tiny_generator.state_dict().values())
    assert facts["conditions"] == tiny_generator.condition_spec
    assert (facts["height"], facts["width"], facts["channels"]) == (32, 32, 1)
    assert facts["tokens_per_image"] == 85 and facts["bits_per_image"] == 340
    assert facts["file_bytes"] == (tiny_checkpoint / "model.safetensors").stat().st_size
    assert len(facts["fingerprint"]) == 16 and facts["sampling"]["top_k"] == 8


def test_info_of_a_tokenizer_of_any_size(works, tokenizer_checkpoint):
    facts = json.loads(works("info", tokenizer_checkpoint / "model.safetensors", "--json"))
    assert facts["kind"] == "tokenizer" and "conditions" not in facts
    assert facts["schedule"] == "16x16 32x32 64x64" and facts["height"] == 256


def test_no_shipped_model(fails, monkeypatch, tmp_path):
    monkeypatch.setattr("image_var.cli.models.SHIPPED", tmp_path / "nothing")
    assert "train one as recipes/image_fashion/README.md says" in fails("info")


# Checkpoints of the other program


@pytest.fixture
def spoken(tmp_path_factory):
    """A checkpoint of audio-var."""
    from audio_var.codecs import build_codec
    from next_scale.quantizer import MultiScaleQuantizer
    from next_scale.schedule import Schedule
    from next_scale.tokenizer import Tokenizer

    sizes = {"fft_size": 256, "hop": 64, "latent_channels": 4, "width": 16, "encoder_depth": 1, "decoder_depth": 1}
    codec = build_codec("spectral", sample_rate=16_000, **sizes)
    quantizer = MultiScaleQuantizer(Schedule.parse("1 2"), 4, codebook_size=16, phis=2)
    return save_pretrained(Tokenizer(codec, quantizer), tmp_path_factory.mktemp("spoken"))


@pytest.mark.parametrize(
    "argv", [["info"], ["generate", "--checkpoint"], ["tokenize", "in.png", "o.nst", "--checkpoint"]]
)
def test_checkpoints_for_audio_var(fails, spoken, tmp_path, argv):
    Image.new("L", (32, 32)).save(tmp_path / "in.png")
    assert f"{spoken} is a checkpoint for audio-var; use audio-var" in fails(*argv, spoken)


def test_checkpoints_for_image_var(tiny_checkpoint, tmp_path, capsys):
    from audio_var.cli import main as audio_main

    assert audio_main(["generate", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "clips")]) == 2
    error = f"{tiny_checkpoint} is a checkpoint for image-var; use image-var, or name another checkpoint"
    assert capsys.readouterr() == ("", f"audio-var: error: {error}\n")
    assert not list(tmp_path.iterdir())


def test_each_program_knows_what_the_other_reads():
    from audio_var.cli import models as sounds
    from audio_var.codecs import CODECS
    from image_var.autoencoder import AUTOENCODERS
    from image_var.cli import models as images

    assert set(CODECS) <= set(images._ELSEWHERE) and set(AUTOENCODERS) <= set(sounds._ELSEWHERE)


def test_both_in_fresh_interpreters(tiny_checkpoint, spoken):
    """Where the other program's autoencoders have never been imported."""
    for package, source in (("audio_var", tiny_checkpoint), ("image_var", spoken)):
        code = f"import sys; from {package}.cli import main; c = main(sys.argv[1:]); "
        status, out, err = run("info", source, code=code)
        assert (status, out, err.count("\n")) == (2, "", 1) and "is a checkpoint for" in err


# Python


def test_python_interface(works, tiny_checkpoint, tmp_path):
    model = image_var.load(tiny_checkpoint, "cpu")
    assert model.size == (32, 32) and model.channels == 1 and model.condition_spec["label"][1] == "sneaker"
    images = model(count=2, seed=3, label="sneaker", sampling={"cfg": 2.0})
    assert images.shape == (2, 1, 32, 32) and images.abs().max() <= 1
    works("generate", "--checkpoint", tiny_checkpoint, "--label", "sneaker", "--count", 2, "--seed", 3, "--cfg", 2)
    for number, image in enumerate(images):
        saved = np.asarray(Image.open(tmp_path / "images" / f"sneaker_s3_00{number}.png"), np.float32)
        assert np.abs(saved - ((image[0] + 1) * 127.5).numpy()).max() <= 0.51
    tokens = model.tokenize(images)
    assert tokens.shape == (2, 85) and model.detokenize(tokens, 2).shape == images.shape
    with pytest.raises(UserError, match="did you mean 'sneaker'"):
        model(label="sneakers")


def test_python_interface_names():
    assert isinstance(image_var.load, type(test_python_interface))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = image_var.lode
