"""The comparison as a user runs it, with a modality and a family of predictors from outside the project."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from next_scale.compare.cells import read_plan
from next_scale.compare.cli import main
from next_scale.compare.record import append_record, read_records
from next_scale.compare.runner import missing_cells
from next_scale.errors import UserError

ROOT = Path(__file__).parents[1]
PLAN = """
data: {ramps: {count: 64}}
tokenizers:
  line:
    modality: ramps
    dimension: 1d
    schedule: natural
    scales: "1 2 4 8"
    autoencoder: {latent_channels: 4}
    quantizer: {codebook_size: 8}
    training: {quantize_after: 40, start_samples: 64, lr: 0.02, warmup: 5}
    steps: 100
    batch_size: 16
sizes: {tiny: {width: 16, depth: 1, heads: 2}}
predictors: {next_scale: {family: next_scale}, marginal: {family: marginal}}
training: {steps: 150, batch_size: 16, lr: 0.01, warmup: 5, average: 0.9}
evaluation: {samples: 32, guidance: [0.0], batch_size: 32, runs: 1, shown: 1}
cells: [{tokenizers: [line], predictors: [next_scale, marginal], sizes: [tiny], seeds: [0]}]
"""
NEXT_SCALE, MARGINAL = "line-next_scale-tiny-s0-steps", "line-marginal-tiny-s0-steps"


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder that Python imports from, in which a distribution brings a modality and a predictor."""
    folder = tmp_path_factory.mktemp("outside")
    for path in (ROOT / "tests" / "plugin").glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    info = folder / "ramps-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ramps\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[next_scale.predictors]\nmarginal = marginal:Marginal\n[next_scale.modalities]\nramps = ramps:RampModality\n"
    )
    return folder


def start(outside, *words, **options):
    path = os.pathsep.join([str(outside), str(ROOT)])
    command = [sys.executable, "-m", "next_scale.compare.cli", "compare", "run", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def run(outside, *words):
    process = start(outside, *words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_from_outside_interrupted_and_failing(outside, tmp_path):
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(PLAN)
    # killed when the first cell is done, with all processes of the run
    process = start(outside, plan, "--out", out, start_new_session=True)
    for _ in range(3000):
        if NEXT_SCALE in read_records(out) or process.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    first = read_records(out)
    assert NEXT_SCALE in first and MARGINAL not in first

    # it goes on where it was; a cell that cannot work is recorded, and the others are done
    text = PLAN.replace(
        "marginal: {family: marginal}", "marginal: {family: marginal}, bad: {family: masked, options: {x: 1}}"
    )
    plan.write_text(text.replace("[next_scale, marginal]", "[bad, next_scale, marginal]"))
    code, said, err = run(outside, plan, "--out", out)
    assert code == 1 and "3 cells" not in said and "2 cells, 1 failed" in said, said + err
    found = read_records(out)
    assert "unexpected keyword argument 'x'" in found["line-bad-tiny-s0-steps"]["error"]
    assert found[NEXT_SCALE]["finished"] == first[NEXT_SCALE]["finished"] and "sampling" in found[NEXT_SCALE]
    assert found["tokenizer line"]["tokenizer"]["floor"]["distortion"]["squared error"] < 0.04

    # what the figures must be
    marginal, next_scale = found[MARGINAL], found[NEXT_SCALE]
    assert marginal["sampling"]["steps"] == 1 and next_scale["sampling"]["steps"] == 4
    assert (
        marginal["model"]["parameters"] >= 15 * 8
        and marginal["training"]["flops"] == 0 < next_scale["training"]["flops"]
    )
    for record in (marginal, next_scale):
        likelihood = record["likelihood"]
        assert sum(likelihood["per_scale"]) == pytest.approx(likelihood["bits_per_sample"]) and likelihood["exact"]
        assert likelihood["bits_per_token"] < 3 and len(likelihood["bits_resampled"]) == 64
        assert record["training"]["curve"][-1][0] == 150 and record["quality"]["n"] == 32
        assert (out / record["samples"][0]["file"]).is_file()
    # labels decide whether a ramp falls or rises, which one predictor knows and the other does not
    assert next_scale["likelihood"]["bits_per_sample"] < marginal["likelihood"]["bits_per_sample"] - 2
    assert next_scale["quality"]["class_accuracy"] > 0.75 > marginal["quality"]["class_accuracy"]
    assert main(["compare", "report", str(out)]) == 0 and "marginal" in (out / "report.html").read_text()

    # a changed plan asks for new results, of the changed cells alone
    plan.write_text(PLAN)
    assert [cell.id for cell in missing_cells(read_plan(plan), out)] == []
    plan.write_text(PLAN.replace("tiny: {width: 16", "tiny: {width: 24"))
    assert [cell.id for cell in missing_cells(read_plan(plan), out)] == [NEXT_SCALE, MARGINAL]
    assert [cell.id for cell in missing_cells(read_plan(plan), out, "next_scale")] == [NEXT_SCALE]

    # other samples to measure with: the trained model is there already
    plan.write_text(PLAN.replace("samples: 32", "samples: 16"))
    code, said, err = run(outside, plan, "--out", out, "--only", "next_scale")
    assert code == 0, said + err
    again = read_records(out)[NEXT_SCALE]
    assert again["quality"]["n"] == 16 and again["training"] == next_scale["training"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("flops_of", "flops_off"), "flops_off"),
        (("average: 0.9", "average: 0.9, flops_of: masked"), "names 'masked', which is no predictor of the plan"),
        (("tokenizers: [line]", "tokenizers: [lines]"), "the plan has no tokenizer 'lines'; it has line"),
        (("steps: 150", "steps: many"), "steps"),
        (("dimension: 1d", "dimension: 3d"), "3d"),
        (("seeds: [0]", "seeds: [0], speed: 1"), "speed"),
        (("sizes: {tiny", "sizes: [{tiny"), "is no plan"),
        (("  line:", "  ../../line:"), "'../../line' names a folder of results"),
        (("  line:", "  yes:"), "'True' names a folder of results"),
    ],
)
def test_bad_plans_are_named(tmp_path, capsys, change, said):
    plan = tmp_path / "plan.yaml"
    text = (
        PLAN.replace("training: {steps", "training: {flops_of: next_scale, steps") if change[0] == "flops_of" else PLAN
    )
    plan.write_text(text.replace(*change))
    assert main(["compare", "run", str(plan), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and not out and not (tmp_path / "out").exists()


def test_missing_things_are_named(tmp_path, capsys):
    assert main(["compare", "run", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "there is no plan" in capsys.readouterr().err
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    assert main(["compare", "run", str(plan), "--out", str(tmp_path / "out"), "--only", "2d"]) == 2
    assert "no cell has '2d' in its name; see --list" in capsys.readouterr().err
    assert main(["compare", "run", str(plan), "--out", str(tmp_path / "out"), "--list"]) == 0
    assert capsys.readouterr().out.split() == [NEXT_SCALE, MARGINAL] and not (tmp_path / "out").exists()
    # the modality of the plan is not installed here
    assert main(["compare", "run", str(plan), "--out", str(tmp_path / "out")]) == 2
    assert "no modality is called 'ramps'; known: audio, image" in capsys.readouterr().err


def test_the_plans_that_ship_are_plans():
    for path in sorted((ROOT / "recipes" / "compare").glob("*.yaml")):
        plan = read_plan(path)
        cells = plan.list_cells()
        assert len({cell.id for cell in cells}) == len(cells) > 10
        assert {cell.predictor for cell in cells} >= {"next_scale", "next_token", "masked", "flow"}
        assert {plan.tokenizers[cell.tokenizer].modality for cell in cells} == {"audio", "image"}
        # the control: as many tokens in every scale
        counts = [
            [eval(size.replace("x", "*")) for size in plan.tokenizers[name].scales.split()]
            for name in ("audio-1d-matched", "image-2d-matched")
        ]
        assert counts[0] == counts[1]


def test_an_unfinished_line_is_passed_over(tmp_path):
    append_record(tmp_path, {"id": "a", "n": 1})
    append_record(tmp_path, {"id": "a", "n": 2})
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"id": "b", "n')
    assert read_records(tmp_path) == {"a": {"id": "a", "n": 2}}
    with pytest.raises(UserError, match="no plan"):
        read_plan(tmp_path / "no.yaml")
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])["n"] == 1
