"""Two processes, with copies of the weights (DDP) or shares of them (FSDP), train as one with the whole batch does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from next_scale.checkpoint import from_pretrained
from next_scale.exact import HeldOutLoader, TrainingLoader
from tests.next_scale import several_processes as work

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process sees: name of the training -> its figures; and the folder of what it keeps."""
    folder, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    work.quiet()
    names = dict.fromkeys(name for name, _, _ in work.TOGETHER.values())
    yield {name: work.train(name, folder / name) for name in names}, folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory):
    """What two processes see: name of the run -> their figures; and the folder of what they keep."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "one").symlink_to(alone[1] / "next_scale")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PL_GLOBAL_SEED", None)  # another test's: Lightning would draw from it anew
    done = subprocess.run(
        [*command, str(ROOT / "tests/next_scale/several_processes.py"), str(folder)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    found = {run: [json.loads((folder / run / f"rank{i}.json").read_text()) for i in range(2)] for run in work.TOGETHER}
    return found, folder


@pytest.mark.parametrize("run", work.TOGETHER)
def test_losses_are_those_of_one_process(run, alone, together):
    name, _, resumed = work.TOGETHER[run]
    want, both = alone[0][name], together[0][run]
    shares = [one.pop("share") for one in both]
    if run.startswith("fsdp"):
        assert sum(shares) == pytest.approx(1) and max(shares) < 0.55
    assert both[0] == both[1]  # what is logged is everyone's
    first = work.STEPS // 2 if resumed else 0
    assert len(both[0]["losses"]) == work.STEPS - first
    assert both[0]["losses"] == pytest.approx(want["losses"][first:], abs=1e-5)
    if name != "tokenizer":  # which reconstructs noise, and with a quantizer from the fifth step on
        assert want["losses"][-1] < want["losses"][0]
    if name not in ("masked", "flow"):  # which validate with the same noise in every batch
        assert both[0]["val"] == pytest.approx(want["val"], abs=1e-5)
    if name != "accumulated":  # which draws for half a batch at a time
        assert both[0]["chance"] == want["chance"]


@pytest.mark.parametrize("run", work.TOGETHER)
def test_exports_are_those_of_one_process(run, alone, together):
    folders = alone[1] / work.TOGETHER[run][0], together[1] / run
    want, got = (from_pretrained(folder / "export").state_dict() for folder in folders)
    assert list(got) == list(want)
    for name, tensor in want.items():
        torch.testing.assert_close(
            got[name], tensor, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_codebooks_were_revived_together(alone, together):
    """The run is one in which codes die: else it would say nothing about their revival."""
    assert together[0]["tokenizer"][0]["revived"] == alone[0]["tokenizer"]["revived"] > 0
    perplexity = alone[0]["tokenizer"]["perplexity"]
    assert perplexity[3] is None and perplexity[4] is not None
    assert together[0]["tokenizer"][0]["perplexity"][4:] == pytest.approx(perplexity[4:], abs=1e-3)


def test_one_process_goes_on_with_sharded_weights(alone, together, tmp_path):
    resumed = work.train("next_scale", tmp_path, resume=together[1] / "fsdp" / "kept" / "step=10.ckpt")
    assert resumed["losses"] == pytest.approx(alone[0]["next_scale"]["losses"][10:], abs=1e-5)


class Places:
    """Place i holds i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        return {"place": index}


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 23])
@pytest.mark.parametrize("processes", [2, 3])
def test_orders_of_several_processes(count, processes, monkeypatch):
    """Their batches together are those of one process; of held-out samples each comes once, in as many batches."""
    from next_scale import ranks

    def epoch(loader_of, size, process=0, of=1):
        monkeypatch.setattr(ranks, "count", lambda: of)
        monkeypatch.setattr(ranks, "rank", lambda: process)
        return [batch for batch in loader_of(Places(count), size)]

    def learned(dataset, size):
        return TrainingLoader(dataset, size, 5)

    whole = epoch(learned, 2 * processes)
    parts = [epoch(learned, 2, process, processes) for process in range(processes)]
    if count >= 2 * processes:
        assert [batch["place"].tolist() for batch in whole] == [
            torch.stack([batch["place"] for batch in step], 1).flatten().tolist() for step in zip(*parts, strict=True)
        ]
    else:
        assert [len(part) for part in parts] == [1] * processes
    rest = [epoch(HeldOutLoader, 2, process, processes) for process in range(processes)]
    assert len({len(part) for part in rest}) == 1
    counted = [place for part in rest for batch in part if "counts" not in batch for place in batch["place"].tolist()]
    assert sorted(counted) == list(range(count))
