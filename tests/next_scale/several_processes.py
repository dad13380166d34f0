"""Small trainings that one process or several do alike; run by torchrun, each process writes what it saw to a folder.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/next_scale/several_processes.py FOLDER
"""

import json
import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from next_scale import ranks
from next_scale.checkpoint import save_pretrained
from next_scale.exact import HeldOutLoader, RandomState, TrainingLoader
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule
from next_scale.sharding import FullySharded
from next_scale.tokenizer import Tokenizer
from next_scale.training import ExponentialAverage, Export, PredictorModule, TokenizerModule
from tests.next_scale.test_training import SCHEDULES, Patches, Record, Squared

STEPS, WHOLE_BATCH, SPEC = 20, 8, {"kind": [0, 1, 2, 3]}


class Pyramids(Dataset):
    """Random tokens that lean on their condition, and latents."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(count)
        self.kind = torch.arange(count) % 4
        noise = torch.randint(0, 4, (count, 15), generator=generator)
        self.tokens = (noise + 4 * self.kind[:, None]) % 16
        self.latents = torch.randn(count, 6, 8, generator=generator) + self.kind[:, None, None]

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        condition = {"kind": int(self.kind[index])}
        return {"tokens": self.tokens[index], "latent": self.latents[index], "condition": condition}


class Noise(Dataset):
    """Samples without any order: k-means has no ties among them, which rounding would decide."""

    def __init__(self, count):
        self.samples = torch.randn(count, 1, 32, generator=torch.Generator().manual_seed(count))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {"sample": self.samples[index], "condition": {}}


def predictor_module(folder, family, options=None, **more):
    checkpoint = folder / f"tokenizer-{ranks.rank()}"
    if not checkpoint.exists():
        torch.manual_seed(0)
        quantizer = MultiScaleQuantizer(Schedule.parse(SCHEDULES[1]), 6, 16, phis=2)
        save_pretrained(Tokenizer(Patches(1), quantizer), checkpoint)
    torch.manual_seed(0)
    chance = {"condition_dropout": 0.2, "field_dropout": 0.1, "drop_path": 0.2} if options is None else options
    sizes = {"width": 16, "depth": 2, "heads": 2, "qk_norm": True}
    return PredictorModule(str(checkpoint), SPEC, {**sizes, **chance}, family=family, lr=3e-3, warmup=5, **more)


def tokenizer_module():
    torch.manual_seed(0)
    quantizer = {"codebook_size": 8, "phis": 2, "revive": 0.4, "scale_dropout": 0.3, "decay": 0.8}
    return TokenizerModule(
        Patches(1), Squared(), SCHEDULES[1], quantizer, quantize_after=4, start_samples=50, lr=1e-2, warmup=5
    )


def build(name, folder):
    """The module of a training, and its two data sets."""
    if name == "tokenizer":
        return tokenizer_module(), Noise(61), Noise(13)
    data = Pyramids(33 if name == "accumulated" else 37), Pyramids(13)
    if name == "accumulated":
        return predictor_module(folder, "next_scale", {"condition_dropout": 0.0}), *data
    more = {"checkpointing": True} if name == "next_scale" and ranks.count() > 1 else {}
    options = {"condition_dropout": 0.2, "field_dropout": 0.1} if name in ("masked", "flow") else None
    return predictor_module(folder, name, options, **more), *data


def train(name, folder, strategy="auto", resume=None):
    """Train, and give what was logged: the training's losses, the last validation, and the chances still to come."""
    module, learned, held_out = build(name, folder)
    processes = ranks.count()
    strategy = FullySharded() if strategy == "fsdp" else strategy
    record, export = Record(), Export(str(folder / "export"), half=False)
    keep = ModelCheckpoint(folder / "kept", "{step}", every_n_train_steps=10, save_top_k=-1)
    accumulate = 2 if name == "accumulated" and processes > 1 else 1
    trainer = L.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=processes, strategy=strategy, logger=False, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, gradient_clip_val=1.0,
        val_check_interval=10 * accumulate, check_val_every_n_epoch=None, accumulate_grad_batches=accumulate,
        default_root_dir=folder, callbacks=[export, ExponentialAverage(0.9), RandomState(), record, keep],
    )  # fmt: skip
    size = WHOLE_BATCH // processes // accumulate
    loaders = TrainingLoader(learned, size, 3), HeldOutLoader(held_out, size)
    trainer.fit(module, *loaders, ckpt_path=resume)
    values = {f"val/{key[4:]}": float(value) for key, value in trainer.callback_metrics.items() if key[:4] == "val/"}
    losses = torch.tensor([step["train/loss"] for step in record.values])
    losses = losses.view(-1, accumulate).mean(1).tolist()  # of a step
    found = {"losses": losses, "val": values, "chance": torch.rand(4).tolist()}
    own = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters() if p.requires_grad]
    found["share"] = sum(map(torch.numel, own)) / sum(p.numel() for p in module.parameters() if p.requires_grad)
    if name == "tokenizer":
        found["revived"] = sum(int((usage == 0.5).sum()) for usage in record.usage)
        found["perplexity"] = [step.get("train/perplexity") for step in record.values]
    return found


# name of a run: the training, its strategy, and the run whose checkpoint it goes on with, if any
TOGETHER = {
    "ddp": ("next_scale", "ddp", None),
    "ddp resumed": ("next_scale", "ddp", "ddp"),
    "fsdp": ("next_scale", "fsdp", None),
    "fsdp resumed": ("next_scale", "fsdp", "fsdp"),
    "fsdp from one": ("next_scale", "fsdp", "one"),
    "accumulated": ("accumulated", "ddp", None),
    "masked": ("masked", "ddp", None),
    "flow": ("flow", "ddp", None),
    "tokenizer": ("tokenizer", "ddp_find_unused_parameters_true", None),
    "tokenizer resumed": ("tokenizer", "ddp_find_unused_parameters_true", "tokenizer"),
}


def quiet():
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")


def main(folder):
    quiet()
    torch.distributed.init_process_group("gloo")
    for run, (name, strategy, resumed) in TOGETHER.items():
        resume = resumed and folder / resumed / "kept" / "step=10.ckpt"
        found = train(name, folder / run, strategy, resume)
        (folder / run / f"rank{ranks.rank()}.json").write_text(json.dumps(found))
        torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
