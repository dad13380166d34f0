"""The plumbing of command line programs: exit codes, staged output, conditions, seeds, devices."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from next_scale.cli import (
    Outputs,
    Parser,
    add_condition_options,
    add_sampling_options,
    condition_stem,
    condition_values,
    requested_conditions,
    resolve_device,
    run_program,
    sample_seed,
    sampling_options,
    whole_number,
)
from next_scale.errors import UserError
from next_scale.sampling import SamplingOptions

FULL = "No space left on device; free space or write elsewhere"
SPEC = {"label": ["bass", "flute", "french horn, muted"], "pitch": list(range(36, 85)), "velocity": [45, 80, 115]}


def raising(error):
    def main(argv):
        raise error

    return main


class OutOfMemoryError(RuntimeError):
    pass


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("no such\nthing"), 2, "prog: error: no such thing"),
        (KeyboardInterrupt(), 130, "prog: interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, f"prog: error: output: {FULL}"),
        (MemoryError(), 2, "prog: error: out of memory; lower --batch-size or give a shorter input"),
        (OutOfMemoryError("CUDA"), 2, "prog: error: out of memory; lower --batch-size or give a shorter input"),
    ],
)
def test_exit_codes(error, code, line, capsys):
    assert run_program("prog", raising(error), []) == code
    assert capsys.readouterr() == ("", line + "\n")


def test_success_and_bugs(capsys):
    assert run_program("prog", lambda argv: print(*argv), ["a", "b"]) == 0
    assert run_program("prog", lambda argv: 3, []) == 3
    assert capsys.readouterr().out == "a b\n"
    with pytest.raises(RuntimeError):  # a mistake of ours keeps its traceback
        run_program("prog", raising(RuntimeError("bug")), [])


def program(text):
    code = "import sys; from next_scale.cli import *\n" + textwrap.dedent(text)
    return [sys.executable, "-c", code + "\nsys.exit(run_program('prog', main))"]


def test_closed_pipe():
    command = program("def main(argv):\n  for i in range(100_000): print('line', i)")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_standard_output():
    with open("/dev/full", "w") as full:
        done = subprocess.run(program("def main(argv): print('x')"), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == f"prog: error: output: {FULL}\n"


def test_terminated_leaves_nothing(tmp_path):
    command = program(
        f"""
        import time
        def main(argv):
            with Outputs() as outputs:
                outputs.folder({str(tmp_path / "a" / "b")!r})
                outputs.file({str(tmp_path / "a" / "b" / "c")!r}).write_text("half")
                print("ready", flush=True)
                time.sleep(60)
        """
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    process.stdout.close()
    assert not list(tmp_path.iterdir())


def test_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    run_program("prog", lambda argv: None, [])
    assert signal.getsignal(signal.SIGTERM) is before


# Parser


def test_parser_errors():
    parser = Parser(prog="prog")
    parser.add_argument("--count", type=whole_number(1, 9))
    for text, reason in (("0", "must be from 1 to 9, got 0"), ("x", "must be a whole number, from 1 to 9, got 'x'")):
        with pytest.raises(UserError, match=f"argument --count: {reason}; see prog --help"):
            parser.parse_args(["--count", text])
    with pytest.raises(UserError, match="unrecognized"):  # no abbreviations: they break when options are added
        parser.parse_args(["--co", "3"])


def test_help_fills_paragraphs_and_keeps_examples(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    parser = Parser(prog="prog", description="word " * 30 + "\n\nlast", epilog="examples:\n  prog a\n  prog b")
    text = parser.format_help()
    assert max(map(len, text.splitlines())) <= 60
    assert "\n\nlast\n" in text and text.endswith("examples:\n  prog a\n  prog b\n")


# Output


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_outputs_appear_together(tmp_path):
    (tmp_path / "x").write_text("old")
    with Outputs() as outputs:
        out = outputs.folder(tmp_path / "a" / "b")
        outputs.file(out / "y").write_text("new y")
        outputs.file(tmp_path / "x").write_text("new x")
        assert not (out / "y").exists() and (tmp_path / "x").read_text() == "old"
    assert (out / "y").read_text() == "new y" and (tmp_path / "x").read_text() == "new x"
    assert tree(tmp_path) == ["a", "a/b", "a/b/y", "x"]


def test_outputs_may_be_folders(tmp_path):
    with Outputs() as outputs:
        outputs.file(tmp_path / "set").mkdir()
        (outputs._moves[tmp_path / "set"] / "a").write_text("a")
    assert tree(tmp_path) == ["set", "set/a"]


@pytest.mark.parametrize("error", [UserError("x"), KeyboardInterrupt(), ValueError("bug"), OSError(errno.EIO, "I/O")])
def test_nothing_is_left_after_an_error(tmp_path, error):
    (tmp_path / "x").write_text("old")
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        with Outputs() as outputs:
            outputs.file(outputs.folder(tmp_path / "a" / "b") / "y").write_text("y")
            outputs.file(tmp_path / "x").write_text("new")
            raise error
    assert tree(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


def test_folders_of_others_stay(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError), Outputs() as outputs:
        outputs.folder(tmp_path / "a" / "b")
        outputs.folder(tmp_path / "a" / "c")
        (tmp_path / "a" / "b" / "theirs").write_text("")
        raise UserError("x")
    assert tree(tmp_path) == ["a", "a/b", "a/b/theirs"]


def test_messages_name_the_target(tmp_path):
    with pytest.raises(UserError) as caught, Outputs() as outputs:
        partial = outputs.file(tmp_path / "x")
        raise UserError(f"cannot write {partial}: full")
    assert str(caught.value) == f"cannot write {tmp_path / 'x'}: full"
    with pytest.raises(UserError) as caught, Outputs() as outputs:
        partial = outputs.file(tmp_path / "x")
        raise OSError(errno.ENOSPC, "No space left on device", str(partial))
    expected = f"cannot write {tmp_path / 'x'}: No space left on device; free space or write elsewhere"
    assert str(caught.value) == expected


def test_impossible_outputs(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in (("file", "is a file"), ("file/a", "cannot write .*part of this path is a file")):
        with pytest.raises(UserError, match=message), Outputs() as outputs:
            outputs.folder(tmp_path / path)
    for path, message in ((".", "is a folder"), ("no/x", "there is no folder")):
        with pytest.raises(UserError, match=message), Outputs() as outputs:
            outputs.file(tmp_path / path)
    with pytest.raises(UserError, match="two outputs"), Outputs() as outputs:
        outputs.file(tmp_path / "x")
        outputs.file(tmp_path / "x")
    assert tree(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["mkdtemp", "mkdir"])
def test_forbidden_folder(tmp_path, monkeypatch, call):
    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp" if call == "mkdtemp" else "pathlib.Path.mkdir", forbidden)
    with pytest.raises(UserError, match="Permission denied; write to another folder"), Outputs() as outputs:
        outputs.file(tmp_path / "x") if call == "mkdtemp" else outputs.folder(tmp_path / "new")


def test_failed_move_is_undone(tmp_path, monkeypatch):
    replace = os.replace

    def fragile(source, target):
        if target.name == "b":
            raise OSError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr("os.replace", fragile)
    with pytest.raises(UserError, match="cannot write .*b: Permission denied"), Outputs() as outputs:
        for name in "ab":
            outputs.file(outputs.folder(tmp_path / "out") / name).write_text(name)
    assert tree(tmp_path) == []


# Conditions


def parse(*argv, spec=SPEC):
    parser = Parser(prog="prog")
    parser.add_argument("--count", type=int)
    add_condition_options(parser, {"label": "", "pitch": "", "velocity": ""})
    args, args.extra = parser.parse_known_args(argv)
    return requested_conditions(args, spec)


def test_conditions_multiply():
    assert parse() == [{"label": -1, "pitch": -1, "velocity": -1}]
    found = parse("--label", "flute", "bass", "--pitch", "60,61", "--pitch", "36", "--condition", "velocity=45")
    assert [c["label"] for c in found] == [1, 1, 1, 0, 0, 0]
    assert [c["pitch"] for c in found] == [24, 25, 0] * 2
    assert {c["velocity"] for c in found} == {0}


def test_equal_values_count_once():
    assert len(parse("--velocity", "80", "81", "80", "--label", "bass,bass")) == 1


def test_values_with_commas():
    assert parse("--label", "french horn, muted")[0]["label"] == 2


def test_fields_that_only_the_checkpoint_knows():
    spec = {"emotion": ["calm", "angry"], "valence": [-1, 0, 1]}
    found = parse("--emotion", "calm", "angry", "--valence", "-1", "--condition", "valence=1", spec=spec)
    assert sorted((c["emotion"], c["valence"]) for c in found) == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert parse("--emotion=angry", spec=spec)[0]["emotion"] == 1


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--label", "flut"], "unknown label 'flut'; known: bass, flute, .*did you mean 'flute'"),
        (["--label", ""], "unknown label ''"),
        (["--pitch", "20"], "pitch 20 is out of range; give a number from 36 to 84"),
        (["--pitch", "-1"], "pitch -1 is out of range"),
        (["--pitch", "nan"], "pitch nan is out of range"),
        (["--pitch", "c4"], "pitch must be a number"),
        (["--condition", "colour=red"], "unknown condition 'colour'; known: label, pitch, velocity"),
        (["--condition", "label"], "--condition takes FIELD=VALUE, got 'label'"),
        (["--lable", "flute"], "unknown argument --lable.*did you mean --label"),
        (["--cuont=3"], "unknown argument --cuont=3.*did you mean --count"),
        (["stray"], "unknown argument stray"),
    ],
)
def test_wrong_conditions(argv, message):
    with pytest.raises(UserError, match=message):
        parse(*argv)


def test_named_field_that_the_checkpoint_lacks():
    with pytest.raises(UserError, match="unknown condition 'label'; known: emotion"):
        parse("--label", "flute", spec={"emotion": ["calm"]})


def test_stems():
    assert condition_stem(SPEC, {"label": 1, "pitch": 24, "velocity": 1}) == "flute_p060_v080"
    assert condition_stem(SPEC, {"label": -1, "pitch": 24, "velocity": -1}) == "p060"
    assert condition_stem(SPEC, {"label": -1, "pitch": -1, "velocity": -1}) == "any"
    assert condition_values(SPEC, {"label": 1, "pitch": -1, "velocity": 0}) == {"label": "flute", "velocity": 45}
    spec = {"kind": ["a/b", "a b", "../x", "///"], "size": [1], "speed": [-2]}
    stems = [condition_stem(spec, {"kind": i, "size": 0, "speed": 0}) for i in range(4)]
    assert stems == ["a-b0_size001_speed-02", "a-b1_size001_speed-02", "x_size001_speed-02", "3_size001_speed-02"]


# Sampling and devices


def test_seeds():
    seeds = {sample_seed(seed, index) for seed in range(30) for index in range(30)}
    assert len(seeds) == 900 and all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(0, 0) == 6213027144842677344  # clips must stay what they are from version to version


def test_sampling_options():
    parser = Parser()
    add_sampling_options(parser)
    base = SamplingOptions(cfg=2.0, cfg_ramp=True, temperature=0.9, top_k=5, top_p=0.5)
    assert sampling_options(parser.parse_args([]), base) == base
    args = parser.parse_args("--cfg 0 --no-cfg-ramp --temperature 1.5 --top-k 0 --top-p 0.9".split())
    assert sampling_options(args, base) == SamplingOptions(0.0, False, 1.5, 0, 0.9)
    args = parser.parse_args("--smooth --cfg-scales 3".split())
    assert sampling_options(args, base) == dataclasses.replace(base, smooth=True, cfg_scales=3)
    stored = dataclasses.replace(base, smooth=True, cfg_scales=3)
    assert sampling_options(parser.parse_args("--no-smooth --cfg-scales 0".split()), stored) == base
    with pytest.raises(UserError, match="temperature"):
        sampling_options(parser.parse_args(["--temperature", "-1"]), base)


def test_devices():
    assert resolve_device("auto").type in ("cpu", "cuda")
    assert resolve_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(UserError, match=f"the device '{name}' does not work here .*--device cpu"):
            resolve_device(name)


def test_light_imports():
    code = "import sys, next_scale.cli; print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert time.monotonic() - started < 10
