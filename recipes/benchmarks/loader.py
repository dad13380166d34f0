"""How fast token shards are read, beside litdata and webdataset, and which of them resumes exactly.

    pip install -e ".[test]" litdata webdataset "moto[server]" boto3
    python -m recipes.benchmarks.loader

writes one set of random tokens in the three formats and reads it from a folder and from an S3 server on this machine
(moto), and asks each loader for the same order with any number of workers and for the rest of an epoch after an
interruption. A larger set of shards is then read against the plain reading of its files. Written are LOADER.md and
loader.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from audio_var.cli.models import open_generator
from next_scale.cli import Outputs, Parser, progress, run_program, whole_number
from next_scale.errors import UserError
from next_scale.exact import TrainingLoader
from next_scale.report import markdown_table
from next_scale.schedule import Schedule
from next_scale.shards.index import INDEX, ShardIndex
from next_scale.shards.reader import TokenSet
from next_scale.shards.writer import ShardWriter
from recipes.benchmarks.generate import describe_machine, train_predictor

SCHEDULE = Schedule.parse("1 1 1 2 2 4 4 8 8 16 16 32 32 64")  # of the shipped note model
CODES, FIELDS = 1024, {"label": list(range(12)), "pitch": list(range(49)), "velocity": [45, 80, 115]}
BATCH = 32
FILES = 8  # that the set is cut into
WANTED_RATIO, WANTED_SHARE = 20, 0.8  # of what training consumes; of plain reading


class Samples:
    """Random samples, as every format is given them: tokens (N, L) uint16 and conditions (N, F) int32."""

    def __init__(self, count: int):
        random = np.random.default_rng(0)
        self.tokens = random.integers(CODES, size=(count, SCHEDULE.length), dtype=np.uint16)
        columns = [random.integers(len(values), size=count, dtype=np.int32) for values in FIELDS.values()]
        self.condition = np.stack(columns, 1)

    def __len__(self) -> int:
        return len(self.tokens)


class System(ABC):
    """One format and its loader."""

    name: str
    module: str  # whose import is timed
    package: str | None  # that it needs beside those of this project

    @abstractmethod
    def write(self, folder: Path, samples: Samples) -> None: ...

    @abstractmethod
    def loader(self, place: str, workers: int, cache: Path | None = None) -> Iterable: ...

    def tokens(self, batch: object) -> torch.Tensor:
        """Of a batch, (B, L)."""
        return batch["tokens"]


class Shards(System):
    """This project's."""

    name, module, package = "shards", "next_scale.shards.reader", None

    def write(self, folder: Path, samples: Samples) -> None:
        write_shards(folder, samples, -(-len(samples) // FILES))

    def loader(self, place: str, workers: int, cache: Path | None = None) -> TrainingLoader:
        return TrainingLoader(TokenSet(place, cache=cache), BATCH, 0, num_workers=workers)


class LitData(System):
    """litdata's optimized chunks and StreamingDataset."""

    name = module = package = "litdata"

    def write(self, folder: Path, samples: Samples) -> None:
        from litdata.streaming.cache import Cache

        folder.mkdir()
        cache = Cache(str(folder), chunk_size=-(-len(samples) // FILES))
        for i in range(len(samples)):
            cache[i] = {"tokens": samples.tokens[i], "condition": samples.condition[i]}
        cache.done()
        cache.merge()

    def loader(self, place: str, workers: int, cache: Path | None = None) -> Iterable:
        from litdata import StreamingDataLoader, StreamingDataset
        from litdata.streaming import downloader

        options = {}
        if cache is not None:
            bucket, key = re.fullmatch(r"(http://[^/]+)/(.*)", place).groups()
            place = f"s3://{key}"
            downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"  # it has no option for a server without TLS
            options = {"cache_dir": str(cache), "storage_options": {"endpoint_url": bucket}}
        data = StreamingDataset(place, shuffle=True, seed=0, drop_last=False, **options)
        return StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)


class WebDataset(System):
    """webdataset's tar files, shuffled by shards and in a buffer."""

    name = module = package = "webdataset"

    def write(self, folder: Path, samples: Samples) -> None:
        import webdataset

        folder.mkdir()
        count = -(-len(samples) // FILES)
        with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=count, maxsize=1e12, verbose=0) as writer:
            for i in range(len(samples)):
                arrays = {"tokens.npy": samples.tokens[i], "condition.npy": samples.condition[i]}
                writer.write({"__key__": f"{i:09}", **arrays})

    def loader(self, place: str, workers: int, cache: Path | None = None) -> Iterable:
        import webdataset

        urls = [f"{place}/{number:06}.tar" for number in range(FILES)]
        data = webdataset.WebDataset(urls, shardshuffle=FILES, seed=0, empty_check=False)
        data = data.shuffle(5000, seed=0).decode().to_tuple("tokens.npy", "condition.npy").batched(BATCH)
        return webdataset.WebLoader(data, batch_size=None, num_workers=workers)

    def tokens(self, batch: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(batch[0]))


SYSTEMS = (Shards(), LitData(), WebDataset())


def write_shards(folder: Path, samples: Samples, shard_samples: int) -> ShardIndex:
    """Write the samples as shards, without a tokenizer."""
    plan = ShardIndex("train", len(samples), shard_samples, SCHEDULE, CODES, "random", FIELDS)
    writer = ShardWriter(folder, plan, samples)
    for number in writer.begin():
        rows = slice(number * shard_samples, (number + 1) * shard_samples)
        writer.write(number, [{"tokens": samples.tokens[rows], "condition": samples.condition[rows]}])
    return writer.finish()


def followed(loader: Iterable, system: System, skip: int = 0) -> list[int]:
    """What identifies the samples of an epoch, in order."""
    rows = [system.tokens(batch)[:, :4].long() for i, batch in enumerate(loader) if i >= skip]
    return torch.cat(rows).mul(torch.tensor([1, CODES, CODES**2, CODES**3])).sum(1).tolist()


def tokens_per_second(loader: Iterable, system: System) -> float:
    """Of an epoch, from the first wish for a batch."""
    start, count = time.perf_counter(), 0
    for batch in loader:
        count += system.tokens(batch).numel()
    return count / (time.perf_counter() - start)


def resumes(system: System, place: str, workers: int, then: int) -> bool:
    """Whether an epoch that is cut off in the middle, and resumed by another loader, ends as the whole."""
    loader = system.loader(place, workers)
    if not hasattr(loader, "state_dict"):
        return False
    whole = followed(system.loader(place, workers), system)
    half = len(whole) // BATCH // 2
    batches = iter(loader)
    for _ in range(half):
        next(batches)
    state = loader.state_dict()
    other = system.loader(place, then)
    other.load_state_dict(state)
    try:
        return followed(other, system) == whole[half * BATCH :]
    except Exception:  # it says that it cannot
        return False


def first_batch(system: System, place: str) -> float:
    """Seconds from the start of a process that has torch to the first batch: import, opening, reading."""
    code = (
        "import sys, time, torch; start = time.perf_counter(); import importlib; "
        f"importlib.import_module('{system.module}'); imported = time.perf_counter() - start; "
        "from recipes.benchmarks.loader import SYSTEMS; again = time.perf_counter(); "
        f"system = next(s for s in SYSTEMS if s.name == '{system.name}'); "
        f"next(iter(system.loader('{place}', 0))); print(imported + time.perf_counter() - again); "
        "sys.stdout.flush(); import os; os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def weight(package: str | None) -> dict:
    """Packages, and MB on the disk, that an installation of this project lacks."""
    if package is None:
        return {"packages": 0, "megabytes": 0.0}
    lacking = _needed([package]) - _needed(importlib.metadata.requires("next-scale"), extras=False)
    files = [file for name in lacking for file in importlib.metadata.files(name) or ()]
    size = sum(path.stat().st_size for file in files if (path := Path(file.locate())).is_file())
    return {"packages": len(lacking), "megabytes": size / 1e6}


def _needed(requirements: Iterable[str], extras: bool = True) -> set[str]:
    """Names of all installed packages that these need, they themselves included."""
    found, open_ = set(), list(requirements)
    while open_:
        text = open_.pop()
        name = re.match(r"[\w.-]+", text)[0].lower().replace("_", "-")
        if "extra ==" in text or name in found:
            continue
        try:
            open_ += importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:  # for another system
            continue
        found.add(name)
    return found


@contextmanager
def bucket(folders: Iterable[Path]) -> Iterator[str]:
    """An S3 server on this machine with these folders in one bucket; its URL, which also answers plain HTTP."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= keys
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="tokens", ACL="public-read-write")
        for folder in folders:
            for path in folder.iterdir():
                client.upload_file(str(path), "tokens", f"{folder.name}/{path.name}", ExtraArgs={"ACL": "public-read"})
        yield f"http://{host}:{port}/tokens"
    finally:
        server.stop()


def forget(folder: Path) -> None:
    """Have the system forget what it keeps of these files in memory, so that they are read from the disk."""
    os.sync()
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def plain_reading(folder: Path) -> int:
    """Read all files one after the other; returns their bytes."""
    total = 0
    for path in sorted(folder.iterdir()):
        with open(path, "rb", buffering=0) as file:
            while block := file.read(1 << 20):
                total += len(block)
    return total


def against_the_disk(folder: Path, size: int, runs: int, advance) -> dict:
    """MB/s of plain reading and of loaders, on the wall clock and of processor time; both take turns.

    From the disk, and from memory, where the system keeps the files.
    """
    kinds = {
        "plain": lambda: plain_reading(folder),
        "batches of 32": lambda: _read(folder, 32, 0),
        "batches of 256": lambda: _read(folder, 256, 0),
        "batches of 256, 2 workers": lambda: _read(folder, 256, 2),
    }
    found = {name: {"disk": [], "memory": [], "processor": []} for name in kinds}
    for _ in range(runs):
        for name, read in kinds.items():
            for where in ("disk", "memory"):
                if where == "disk":
                    forget(folder)
                start, used = time.perf_counter(), time.process_time()
                read()
                found[name][where].append(size / 1e6 / (time.perf_counter() - start))
                if where == "memory":
                    found[name]["processor"].append(size / 1e6 / (time.process_time() - used))
            advance(1)
    return found


def _read(folder: Path, batch_size: int, workers: int) -> None:
    for _ in TrainingLoader(TokenSet(folder, narrow=True), batch_size, 0, num_workers=workers):
        pass


def measure(args: argparse.Namespace, scratch: Path) -> dict:
    """All figures."""
    for name in ("litdata", "webdataset", "moto", "boto3"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f'{name} is not installed: pip install litdata webdataset "moto[server]" boto3')
    samples = Samples(args.samples)
    results = {"machine": describe_machine("cpu"), "samples": args.samples, "systems": []}
    folders = {system.name: scratch / system.name for system in SYSTEMS}
    with progress("measuring", 3 * len(SYSTEMS) + 4 * args.runs + 2) as advance:
        for system in SYSTEMS:
            system.write(folders[system.name], samples)
        with bucket(folders.values()) as url:
            for system in SYSTEMS:
                place = str(folders[system.name])
                orders = [followed(system.loader(place, workers), system) for workers in (0, 2)]
                advance(1)
                size = sum(path.stat().st_size for path in folders[system.name].iterdir())
                local = [tokens_per_second(system.loader(place, 0), system) for _ in range(args.runs)]
                remote = []
                for run in range(2):
                    cache = scratch / f"cache-{system.name}-{run}"
                    remote.append(tokens_per_second(system.loader(f"{url}/{system.name}", 0, cache), system))
                advance(1)
                results["systems"].append({
                    "name": system.name,
                    "version": None if system.package is None else importlib.metadata.version(system.package),
                    "bytes_per_sample": size / len(samples),
                    "folder": local, "folder_2_workers": tokens_per_second(system.loader(place, 2), system),
                    "url": remote,
                    "first_batch": [first_batch(system, place) for _ in range(2)],
                    "any_workers": orders[0] == orders[1],
                    "resumes": resumes(system, place, 0, 0) and resumes(system, place, 2, 2),
                    "resumes_with_other_workers": resumes(system, place, 2, 0),
                    **weight(system.package),
                })  # fmt: skip
                advance(1)
        large = scratch / "large"
        index = write_shards(large, Samples(args.large), 4096)
        advance(1)
        size = sum(shard.bytes for shard in index.shards) + (large / INDEX).stat().st_size
        results["large"] = {"bytes": size, "shards": len(index.shards)}
        results["disk"] = against_the_disk(large, size, args.runs, advance)
        # or what was measured of it before, where that is more: other work slows it down more than it does the loader
        before = json.loads((Path(__file__).parent / "results.json").read_text())["measures"]
        known = [row["median"] for row in before if row["name"].startswith("training the predictor")]
        now = train_predictor(open_generator(None, "cpu"), torch.device("cpu")).median
        results["training"] = max(now, *known)
        advance(1)
    return results


def write_page(results: dict, command: str) -> str:
    """The figures as Markdown."""
    median = statistics.median

    def said(value: bool) -> str:
        return "yes" if value else "**no**"

    rows = []
    for system in results["systems"]:
        version = f" {system['version']}" if system["version"] else ""
        speeds = median(system["folder"]), system["folder_2_workers"], median(system["url"])
        rows.append((
            system["name"] + version, *(f"{speed / 1e6:.2f}" for speed in speeds),
            f"{min(system['first_batch']):.2f} s",
            said(system["any_workers"]), said(system["resumes"]), said(system["resumes_with_other_workers"]),
            f"{system['bytes_per_sample']:.0f}", f"{system['packages']}, {system['megabytes']:.0f} MB",
        ))  # fmt: skip
    header = [
        "",
        "folder, M tokens/s",
        "with 2 workers",
        "S3 server, first epoch",
        "start",
        "one order for any workers",
    ]
    header += ["resumes exactly", "with other workers", "bytes a sample", "further packages"]
    plain, lines, best = results["disk"]["plain"], [], 0.0
    for name, found in results["disk"].items():
        shares = [a / b for a, b in zip(found["disk"], plain["disk"], strict=True)]
        best = max(best, 0.0 if found is plain else median(shares))
        lines.append((
            name, f"{median(found['disk']):.0f}", f"{100 * median(shares):.0f}%",
            f"{100 * min(shares):.0f}% to {100 * max(shares):.0f}%", f"{median(found['memory']):.0f}",
            f"{median(found['processor']):.0f}" if "workers" not in name else "",
        ))  # fmt: skip
    table = markdown_table(
        ["", "from the disk", "of plain reading", "range", "from memory", "a processor second"], lines
    )
    ratio = median(results["systems"][0]["folder"]) / results["training"]
    machine = "\n".join(f"- {name}: {value}" for name, value in results["machine"].items() if value is not None)
    large = results["large"]
    return f"""# Reading token shards

`{command}`

{machine}

## Which loader

{results["samples"]:,} samples of {SCHEDULE.length} random tokens and three conditions in {FILES} files, batches of
{BATCH} in shuffled order, one system after the other. The S3 server is moto's, on the same machine: it bounds what is
read from it. "Start" is from a process that has torch to its first batch.

{markdown_table(header, rows)}
litdata resumes exactly, but its order is another for every number of workers; webdataset keeps no place in an epoch,
and its order is another too. A training here is to see the same samples in the same order on whatever machine, which
neither gives, and rows of one length need no format of either. So the order is `next_scale.exact`'s, and a shard is a
safetensors file, which that library checks and maps into memory, and fsspec (which torch and Lightning bring) fetches
from a URL.

## Against training

The shipped predictor trains at {results["training"]:,.0f} tokens/s here; shards are read {ratio:,.0f} times as fast in
one process, in batches of {BATCH} (wanted: {WANTED_RATIO} times; {"met" if ratio >= WANTED_RATIO else "**not met**"}).

## Against the disk

MB of files a second, of {large["bytes"] / 1e6:.0f} MB in {large["shards"]} shards; before each reading from the disk
the system was made to forget the files. Plain reading only copies bytes to memory; the loader shuffles samples within
windows of 16 shards and gathers them; tokens stay 16 bits wide, as `ShardDataModule` hands them to the device, which
widens them. All take turns.

{table}
Wanted: {100 * WANTED_SHARE:.0f}% of plain reading from the disk; the best is {100 * best:.0f}%:
{"met" if best >= WANTED_SHARE else "**not met**"}. The clock depends on what else the machine does (see the load
average above), processor seconds hardly do.
"""


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recipes.benchmarks.loader", description=__doc__)
    for name, default, text in (
        ("samples", 4_000, "samples for the comparison"),
        ("large", 1_200_000, "samples for reading from the disk"),
        ("runs", 3, "of each figure"),
    ):
        parser.add_argument(
            f"--{name}", type=whole_number(1), default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )
    parser.add_argument("--scratch", metavar="FOLDER", help="where the sets are written (default: a temporary folder)")
    parser.add_argument("--out", default=str(Path(__file__).parent), metavar="FOLDER", help="default: %(default)s")
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="loader-") as scratch:
        results = measure(args, Path(scratch))
    page = write_page(results, " ".join(["python -m recipes.benchmarks.loader", *argv]))
    with Outputs() as outputs:
        out = outputs.folder(args.out)
        outputs.file(out / "loader.json").write_text(json.dumps(results, indent=1) + "\n")
        outputs.file(out / "LOADER.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    sys.exit(run_program("benchmark", main))
