"""``tokenize-dataset``: a data set to shards of tokens, on any number of processes."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from next_scale.cli import DEFAULT, as_tokenizer, progress, whole_number
from next_scale.commands.backend import Backend
from next_scale.errors import UserError
from next_scale.splits import SPLITS


def add_tokenize_dataset(
    subparsers: argparse._SubParsersAction, backend: Backend, data: str, description: str, epilog: str
) -> None:
    """Add ``tokenize-dataset`` for a backend; `data` says what data sets it takes."""
    parser = subparsers.add_parser("tokenize-dataset", description=description, epilog=epilog)
    parser.add_argument("data", metavar="DATA", help=data)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="gets a folder a split; what is there is kept")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help=f"folder, .safetensors file, or hub id owner/name (default: {DEFAULT})"
    )
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="all", help="default: %(default)s")
    parser.add_argument(
        "--latents", action="store_true", help="also keep latents, half precision, which the family 'flow' learns"
    )
    parser.add_argument(
        "--passes", type=whole_number(1), default=1, metavar="N",
        help="tokenize the training split N times, where its samples are random crops (default: 1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole_number(0, 2**63), default=0, metavar="N", help="of crops (default: 0)")
    backend.add_data_options(parser)
    group = parser.add_argument_group("shards (they decide the bytes, beside data, tokenizer and seed)")
    group.add_argument(
        "--shard-samples", type=whole_number(1, 1 << 24), default=4096, metavar="N", help="default: %(default)s"
    )
    group.add_argument(
        "--batch-size", type=whole_number(1), default=64, metavar="N", help="computed at once (default: %(default)s)"
    )
    group = parser.add_argument_group("processes (they do not)")
    group.add_argument(
        "--devices", type=whole_number(1), metavar="N",
        help="a process each, on this node (default: as many as torchrun or SLURM started, else all GPUs, else 1)",
    )  # fmt: skip
    group.add_argument("--nodes", type=whole_number(1), metavar="N", help="default: as many as were started, else 1")
    group.add_argument("--accelerator", default="auto", help="of Lightning: cpu, gpu, ... (default: auto)")
    group.add_argument(
        "--workers", type=whole_number(0), default=0, metavar="N", help="reading processes for each (default: 0)"
    )
    parser.set_defaults(run=partial(tokenize_dataset, backend=backend))


def tokenize_dataset(args: argparse.Namespace, backend: Backend) -> None:
    """Data set to folders of shards."""
    from next_scale.shards.predict import first_process, predict_shards
    from next_scale.shards.writer import ShardWriter, plan_shards

    out = Path(args.out)
    tokenizer = as_tokenizer(backend.open_model(args.checkpoint, "cpu"))
    data = backend.data(args.data, tokenizer, args)
    writers = []
    for split in SPLITS if args.split == "all" else (args.split,):
        try:
            dataset = data.dataset(split)
        except UserError as error:
            if split in ("train", args.split):
                raise
            if first_process():  # a small folder may leave a held-out split empty
                print(f"no {split} shards: {error}")
            continue
        plan = plan_shards(
            dataset, dataset.condition_spec, tokenizer, split, name=data.name,
            passes=args.passes if split == "train" else 1, latents=args.latents, shard_samples=args.shard_samples,
            batch_size=args.batch_size, seed=args.seed,
        )  # fmt: skip
        writers.append(ShardWriter(out / split, plan, dataset))
    total = sum(writer.plan.samples for writer in writers)
    with progress("tokenizing", total) if first_process() else nullcontext() as advance:
        indices = predict_shards(
            writers, tokenizer, devices=args.devices, nodes=args.nodes, accelerator=args.accelerator,
            workers=args.workers, advance=advance,
        )  # fmt: skip
    for writer, index in zip(writers, indices or (), strict=bool(indices)):
        size = sum(shard.bytes for shard in index.shards)
        tokens = index.samples * index.schedule.length
        print(
            f"{writer.folder}: {index.samples:,} {backend.samples}, {tokens:,} tokens of the tokenizer "
            f"{index.fingerprint}, {size:,} bytes in {len(index.shards)} files"
        )
