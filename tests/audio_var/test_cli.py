"""`audio-var` as a whole: help, dispatch, start-up, `info` and `data`."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from audio_var.cli import COMMANDS, main

HEAVY = {"lightning", "pytorch_lightning", "librosa", "torchaudio", "encodec", "matplotlib", "scipy", "torchmetrics"}
HERE = [name for name in COMMANDS if name not in ("fit", "evaluate")]


def run(*argv, code="import sys; from audio_var.cli import main; c = main(sys.argv[1:]); ", after="sys.exit(c)"):
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


@pytest.mark.parametrize("command", [*HERE, "data notes", "data demo", "data inspect"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    example = out[out.index("example") :]
    assert f"audio-var {command.split()[0]}" in example and len(out) > 300


def test_help_is_fast_and_light():
    after = "print(sorted({'torch', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    code = "import sys; from audio_var.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    started = time.monotonic()
    _, out, err = run("generate", "--help", code=code, after=after)
    assert err == "[]\n" and "--label" in out
    assert time.monotonic() - started < 10


def test_generate_imports_no_training_code(tiny_checkpoint, tmp_path):
    argv = ["generate", "--checkpoint", tiny_checkpoint, "--label", "flute", "--out", tmp_path / "clips"]
    after = f"print(c, sorted({HEAVY} & set(sys.modules)))"
    code, out, err = run(*argv, after=after)
    assert (code, err) == (0, "") and out.splitlines()[-1] == "0 []"
    assert (tmp_path / "clips" / "flute_s0_000.wav").is_file()


@pytest.mark.parametrize("command", ["info", "tokenize", "reconstruct"])
def test_other_commands_stay_light_too(command, tiny_checkpoint, tmp_path):
    soundfile.write(tmp_path / "in.wav", np.zeros(2000), 16_000)
    argv = {
        "info": ["info", tiny_checkpoint],
        "tokenize": ["tokenize", tmp_path / "in.wav", tmp_path / "o.nst", "--checkpoint", tiny_checkpoint],
        "reconstruct": ["reconstruct", tmp_path / "in.wav", tmp_path / "o.wav", "--checkpoint", tiny_checkpoint],
    }[command]
    code, out, err = run(*argv, after=f"print(c, sorted({HEAVY} & set(sys.modules)))")
    assert (code, err) == (0, "") and out.splitlines()[-1] == "0 []"


def test_module(tmp_path):
    done = subprocess.run([sys.executable, "-m", "audio_var", "info", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"audio-var: error: no model.safetensors in the folder {tmp_path}; is it a checkpoint?\n"


def test_no_command(capsys):
    assert main([]) == 2
    assert "generate" in capsys.readouterr().out


def test_mistakes(fails):
    assert "'genrate'" in fails("genrate")
    assert "unknown argument --frobnicate" in fails("info", "--frobnicate")
    assert "ACTION" in fails("data")
    assert "IN, OUT" in fails("reconstruct")


def test_fit_gets_its_arguments_untouched(monkeypatch):
    import audio_var.cli.fit

    seen = []
    monkeypatch.setattr(audio_var.cli.fit, "run", lambda argv: seen.extend(argv))
    assert main(["fit", "tokenizer", "--config", "x.yaml", "--trainer.max_steps=3", "--help"]) == 0
    assert seen == ["tokenizer", "--config", "x.yaml", "--trainer.max_steps=3", "--help"]


# info


def test_info(works, tiny_checkpoint):
    out = works("info", tiny_checkpoint)
    for text in ("generator", "16,000 Hz", "1,024 samples", "1 2 4 8 16", "31 tokens", "124 bits", "1.94 kbit/s"):
        assert text in out
    assert "bass, brass, flute" in out and "36 to 84" in out and "45, 80, 115" in out


def test_info_json(works, tiny_checkpoint, tiny_generator):
    facts = json.loads(works("info", tiny_checkpoint, "--json"))
    assert facts["parameters"]["total"] == sum(t.numel() for t in tiny_generator.state_dict().values())
    assert facts["conditions"] == tiny_generator.condition_spec
    assert facts["tokens_per_clip"] == 31 and facts["bits_per_clip"] == 124 and facts["clip_samples"] == 1024
    assert facts["file_bytes"] == (tiny_checkpoint / "model.safetensors").stat().st_size
    assert len(facts["fingerprint"]) == 16 and facts["sampling"]["top_k"] == 8


def test_info_of_a_tokenizer(works, tokenizer_checkpoint):
    facts = json.loads(works("info", tokenizer_checkpoint / "model.safetensors", "--json"))
    assert facts["kind"] == "tokenizer" and "conditions" not in facts
    assert facts["schedule"] == "125 250 500 1000"
    assert "tokenizer" in works("info", tokenizer_checkpoint)


def test_info_of_nothing(fails, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert "no checkpoint at nowhere" in fails("info", "nowhere")
    assert "not a whole safetensors file" in fails("info", "x.safetensors")


def test_no_shipped_model(fails, monkeypatch, tmp_path):
    monkeypatch.setattr("audio_var.cli.models.SHIPPED", tmp_path / "nothing")
    assert "train one as recipes/audio_notes/README.md says" in fails("info")


# data


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            soundfile.write(folder / name / f"{i}.wav", 0.1 * rng.standard_normal(900), 8000)
    (folder / "cat" / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "dog" / "silent.flac", np.zeros(900), 8000)
    return folder


def test_inspect_a_folder(works, recordings):
    out = works("data", "inspect", recordings, "--sample-rate", 8000, "--clip-samples", 512)
    assert "24 clips; 2 skipped" in out
    assert "empty.wav: is empty (0 bytes)" in out and "silent.flac: it is all silence" in out
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    counts = [[int(word) for word in rows[name].split() if word.isdigit()] for name in ("cat", "dog")]
    assert [sum(row) for row in counts] == [12, 12]


def test_inspect_the_demo_notes(works):
    folder = os.path.join(os.path.dirname(__file__), "..", "..", "samples", "demo_notes")
    out = works("data", "inspect", folder)
    assert "300 clips; 0 skipped" in out and "synth_lead" in out


def test_inspect_nothing(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.wav").write_bytes(b"RIFF")
    assert "there is no folder" in fails("data", "inspect", "nowhere")
    assert "holds no usable audio file" in fails("data", "inspect", "empty")
    assert "does not describe a set of notes" in fails("data", "inspect", "bad")
    assert "holds no usable audio file" in fails("data", "inspect", "broken")


def test_notes_without_a_sound_font(fails, tmp_path):
    (tmp_path / "fake.sf2").write_bytes(b"RIFF")
    assert "audio-var: error:" in fails("data", "notes", "--soundfont", "nowhere.sf2", "--out", "notes")
    assert "audio-var: error:" in fails("data", "notes", "--soundfont", "fake.sf2", "--out", "notes")
    assert "must be 1 or more" in fails("data", "notes", "--limit", 0)


def test_demo_needs_notes(fails, tmp_path):
    (tmp_path / "there").mkdir()
    assert "there exists; name a new folder" in fails("data", "demo", "--out", "there")
    assert "holds no manifest.json" in fails("data", "demo", "--notes", "nowhere", "--out", "new/demo")
