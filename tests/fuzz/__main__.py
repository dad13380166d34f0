"""Fuzz for as long as you like: ``python -m tests.fuzz [TARGET ...] --runs 10000 --seconds 60``.

Every target runs in a process of its own, twice: by hypothesis, which bends the structure, and by atheris, which
follows the branches that are taken. What breaks a target is written to `--faults` and told; the exit code then is 1.
Figures of all runs are added to `--log`, a JSON object a line, and ``--sum`` shows their totals.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from next_scale.cli import whole_number
from next_scale.errors import UserError
from tests.fuzz import guard, seeds
from tests.fuzz.targets import TARGETS, Target

_BATCH = 1000  # examples of one run of hypothesis, which slows down as it remembers more
_INSTRUMENTED = ["next_scale", "audio_var", "image_var", "mido", "PIL", "jsonargparse"]


def with_hypothesis(name: str, runs: int, seconds: float, faults: Path, start: int = 0) -> dict:
    """Bend the seeds of a target `runs` times, or for `seconds`; returns counts."""
    import hypothesis as hp

    target = TARGETS[name]
    warm_up(target)
    counts = {"executions": 0, "accepted": 0, "faults": 0}
    began = time.monotonic()
    last = seeds.scratch() / "last"  # the input under test, for whoever looks at a crash of C code

    class Over(Exception):
        pass

    def once(data: bytes) -> None:
        if counts["executions"] >= runs or time.monotonic() - began > seconds:
            raise Over
        counts["executions"] += 1
        last.write_bytes(data)
        try:
            counts["accepted"] += guard.check(target.run, data)
        except guard.Fault:
            counts["faults"] += 1
            keep(faults, name, data)

    for batch in range(start, start + 1 + runs // _BATCH * 2):
        example = hp.given(target.strategy(target.seeds()))(once)
        example = hp.settings(max_examples=_BATCH, database=None, deadline=None, phases=[hp.Phase.generate],
                              suppress_health_check=list(hp.HealthCheck), print_blob=False)(example)  # fmt: skip
        try:
            hp.seed(batch)(example)()
        except Over:
            break
    return counts


def warm_up(target: Target) -> None:
    """Import all that a target needs, which takes longer than an execution may."""
    for data in target.seeds():
        with contextlib.suppress(UserError, SystemExit):
            target.run(data)


def keep(faults: Path, name: str, data: bytes) -> None:
    """Write what broke a target, and how, into a folder; one file a kind of fault."""
    trace = traceback.format_exc()
    error = sys.exception()
    error = error.__cause__ or error
    where = [f"{frame.filename}:{frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-3:]]
    kind = hashlib.sha256(f"{type(error)} {where}".encode()).hexdigest()[:8]
    faults.mkdir(parents=True, exist_ok=True)
    if not (faults / f"{name}-{kind}").exists():
        (faults / f"{name}-{kind}").write_bytes(data)
        (faults / f"{name}-{kind}.txt").write_text(trace)
        print(f"{name}: FAULT {faults / f'{name}-{kind}'}: {trace.strip().splitlines()[-1]}", file=sys.stderr)


def with_atheris(name: str, runs: int, seconds: float, faults: Path) -> None:
    """Follow the branches of a target; never returns."""
    import atheris

    target = TARGETS[name]
    with atheris.instrument_imports(include=_INSTRUMENTED):
        warm_up(target)
    first = target.seeds()
    corpus = seeds.scratch() / "corpus"
    corpus.mkdir()
    for i, data in enumerate(first):
        (corpus / str(i)).write_bytes(data)

    def once(data: bytes) -> None:
        try:
            guard.check(target.run, data)
        except guard.Fault:
            keep(faults, name, data)

    faults.mkdir(parents=True, exist_ok=True)
    options = [f"-runs={runs}", f"-max_total_time={seconds:.0f}", "-timeout=60", "-rss_limit_mb=3072", "-max_len=8192",
               f"-artifact_prefix={faults}/{name}-", "-print_final_stats=1", str(corpus)]  # fmt: skip
    atheris.Setup(["fuzz", *options], once)
    atheris.Fuzz()


def child(arguments: argparse.Namespace, name: str, engine: str) -> dict:
    """One target by one engine, in a process of its own."""
    words = [name, "--engine", engine, "--child", "--runs", arguments.runs, "--seconds", arguments.seconds,
             "--faults", arguments.faults, "--seed", arguments.seed]  # fmt: skip
    began = time.monotonic()
    memory = Path("/dev/shm")  # every execution writes a file
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None) as scratch:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "FUZZ_SCRATCH": scratch}
        command = [sys.executable, "-m", "tests.fuzz", *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    sys.stderr.write("".join(line + "\n" for line in done.stderr.splitlines() if "FAULT" in line))
    record = {"target": name, "engine": engine, "seconds": round(time.monotonic() - began, 1),
              "date": datetime.now(UTC).isoformat(timespec="minutes"), "exit": done.returncode}  # fmt: skip
    if engine == "hypothesis":
        found = re.search(r"^\{.*\}$", done.stdout, re.M)
        record |= json.loads(found[0]) if found else {"executions": 0}
    else:
        found = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        record |= {"executions": int(found[1]) if found else 0, "faults": done.stderr.count("FAULT")}
    if done.returncode:
        record["faults"] = record.get("faults", 0) + 1
        sys.stderr.write(f"{name} by {engine}: exit code {done.returncode}\n{done.stderr[-3000:]}\n")
    return record


def totals(log: Path) -> str:
    """A table of what was done, from the log."""
    counts: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0])
    for line in log.read_text().splitlines():
        record = json.loads(line)
        row = counts[record["target"], record["engine"]]
        for i, key in enumerate(("executions", "seconds", "faults")):
            row[i] += record.get(key, 0)
    lines = ["| target | engine | executions | seconds | faults |", "| --- | --- | ---: | ---: | ---: |"]
    lines += [f"| {t} | {e} | {n:,.0f} | {s:,.0f} | {f:,.0f} |" for (t, e), (n, s, f) in sorted(counts.items())]
    whole = [sum(row[i] for row in counts.values()) for i in range(3)]
    return "\n".join([*lines, f"| all | | {whole[0]:,.0f} | {whole[1]:,.0f} | {whole[2]:,.0f} |"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all by default: {', '.join(TARGETS)}")
    parser.add_argument("--engine", choices=("hypothesis", "atheris"), help="only this one (default: both)")
    parser.add_argument("--runs", type=whole_number(1), default=10_000, metavar="N", help="each (default: 10000)")
    parser.add_argument("--seconds", type=whole_number(1), default=60, metavar="N", help="each at most (default: 60)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of hypothesis (default: 0)")
    parser.add_argument("--faults", type=Path, default=Path("runs/fuzz/faults"), metavar="FOLDER")
    parser.add_argument("--log", type=Path, default=Path("runs/fuzz/log.jsonl"), metavar="FILE")
    parser.add_argument("--sum", action="store_true", help="show the totals of the log, and stop")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.sum:
        print(totals(args.log))
        return 0
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"unknown target {min(unknown)}")
    if args.child:
        guard.limit_memory()
        if args.engine == "atheris":
            with_atheris(args.targets[0], args.runs, args.seconds, args.faults)
        print(json.dumps(with_hypothesis(args.targets[0], args.runs, args.seconds, args.faults, args.seed * 10_000)))
        return 0
    args.log.parent.mkdir(parents=True, exist_ok=True)
    bad = 0
    for name in args.targets or TARGETS:
        for engine in [args.engine] if args.engine else ["hypothesis", "atheris"]:
            if engine == "atheris" and not TARGETS[name].coverage:
                continue
            record = child(args, name, engine)
            bad += bool(record["faults"])
            with args.log.open("a") as log:
                log.write(json.dumps(record) + "\n")
            print(
                f"{name} by {engine}: {record['executions']:,} in {record['seconds']:.0f} s, {record['faults']} faults"
            )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
