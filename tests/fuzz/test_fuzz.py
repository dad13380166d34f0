"""A short run of every target, the same each time; `python -m tests.fuzz` runs as long as one likes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import hypothesis as hp
import pytest

from tests.fuzz import guard
from tests.fuzz.__main__ import warm_up
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_a_result_or_a_refusal(name):
    target = TARGETS[name]
    warm_up(target)

    @hp.given(target.strategy(target.seeds()))
    @hp.settings(
        max_examples=target.short, derandomize=True, database=None, deadline=None, phases=[hp.Phase.generate],
        suppress_health_check=list(hp.HealthCheck),
    )  # fmt: skip
    def run(data):
        guard.check(target.run, data)

    run()


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is an extra: pip install -e .[fuzz]")
def test_atheris(tmp_path):
    """The runner itself, by the engine that follows branches."""
    command = [sys.executable, "-m", "tests.fuzz", "melody", "--engine", "atheris", "--runs", "500", "--log",
               str(tmp_path / "log.jsonl"), "--faults", str(tmp_path / "faults")]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    record = json.loads((tmp_path / "log.jsonl").read_text())
    assert record["executions"] >= 500 and record["faults"] == 0


def test_the_guard_sees_faults():
    """An exception, an endless loop, a refusal of two lines, an exit code."""
    from next_scale.errors import UserError

    def raises(error):
        def run(data):
            raise error

        return run

    def endless(data):
        while True:
            pass

    assert guard.check(len, b"a") and not guard.check(raises(UserError("one line")), b"")
    for run in (raises(KeyError("a")), raises(UserError("two\nlines")), raises(SystemExit(1)), raises(MemoryError())):
        with pytest.raises(guard.Fault):
            guard.check(run, b"")
    with pytest.raises(guard._Hang), guard.alarm(0.2):
        endless(b"")
