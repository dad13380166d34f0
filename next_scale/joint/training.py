"""The LightningModule of a joint model, and what its training shows."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from next_scale.checkpoint import from_pretrained
from next_scale.cli import sample_seed
from next_scale.errors import UserError, printable
from next_scale.joint.data import JointBatch
from next_scale.joint.generator import JointGenerator
from next_scale.joint.model import JointModel
from next_scale.joint.parts import TEXT, Filled, parse_layout
from next_scale.joint.trunk import build_trunk
from next_scale.model import tokenizer_of
from next_scale.sampling import SamplingOptions
from next_scale.schedule import StrideSchedule
from next_scale.tokenizer import Tokenizer
from next_scale.training import Options, ScheduledModule


class JointModule(ScheduledModule):
    """Trains a joint model on the tokens of frozen tokenizers and on what is said of them.

    Args:
        tokenizers: name of a pyramid, as layouts have it -> checkpoint of its tokenizer.
        layouts: orders of parts to learn; recipes link them to the data's.
        trunk: ``kind: blocks`` with the arguments of :class:`next_scale.joint.trunk.Blocks`, or ``kind: language`` with
            those of :class:`next_scale.joint.language.LanguageTrunk`.
        text_length: most symbols of a text: bytes, or a language model's own tokens.
        text_weight: see :class:`next_scale.joint.model.JointModel`.
        scale_power: see :class:`next_scale.joint.parts.PyramidPart`.
        sampling: name of a part -> options to store with the model as its defaults.
        lr, betas, weight_decay, warmup, final_lr: see :class:`next_scale.training.ScheduledModule`.

    Raises:
        UserError: a tokenizer without a fixed length, or what the model's classes refuse.
    """

    def __init__(
        self,
        tokenizers: dict[str, str],
        layouts: list[str],
        trunk: dict[str, Any] | None = None,
        text_length: int = 48,
        text_weight: float = 1.0,
        scale_power: float = 1.0,
        sampling: dict[str, Options] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        warmup: int = 200,
        final_lr: float = 0.02,
    ):
        super().__init__(lr, betas, weight_decay, warmup, final_lr)
        used = {name for layout in layouts for name in parse_layout(layout)}
        self.frozen = torch.nn.ModuleDict()
        for name, source in tokenizers.items():
            if name in used:
                self.frozen[name] = self._tokenizer(name, source)
        self.frozen.requires_grad_(False)
        pyramids = {
            name: {
                "schedule": tokenizer.quantizer.schedule,
                "codes": tokenizer.quantizer.codebook_size,
                "channels": tokenizer.quantizer.channels,
                "scale_power": scale_power,
            }
            for name, tokenizer in self.frozen.items()
        }
        built = build_trunk(trunk or {})
        codec = built.text_codec(text_length) if TEXT in used else None
        self.joint = JointModel(layouts, pyramids, built, codec, text_weight)
        self.joint.start_from({name: tokenizer.quantizer for name, tokenizer in self.frozen.items()})
        self.sampling = {name: SamplingOptions(**options) for name, options in (sampling or {}).items()}

    @staticmethod
    def _tokenizer(name: str, source: str) -> Tokenizer:
        tokenizer = tokenizer_of(from_pretrained(source))
        if isinstance(tokenizer.quantizer.schedule, StrideSchedule):
            raise UserError(f"the tokenizer of '{name}' has no fixed length: train one without strides")
        return tokenizer

    @property
    def model(self) -> JointGenerator:
        """What is exported."""
        sampling = {name: options for name, options in self.sampling.items() if name in self.joint.parts}
        return JointGenerator(dict(self.frozen.items()), self.joint, sampling)

    def configure_optimizers(self):
        return self.optimizer_for(list(self.joint.parameters()))

    def sequence(self, batch: JointBatch) -> list[Filled]:
        """A batch as parts with their contents."""
        self.frozen.eval()
        last = len(batch.layout) - 1
        return [
            self.joint.fill(name, content, None if name == TEXT else self.frozen[name].quantizer, place < last)
            for place, (name, content) in enumerate(zip(batch.layout, batch.contents, strict=True))
        ]

    def training_step(self, batch: JointBatch, batch_idx: int) -> Tensor:
        out = self.joint.loss(self.sequence(batch))
        self.log("loss", out.loss.detach(), prog_bar=True, logger=False, batch_size=batch.size)
        self.log("train/loss", out.loss.detach(), batch_size=batch.size)
        self._log("train", batch, out.nats, out.accuracy)
        return out.loss

    def validation_step(self, batch: JointBatch, batch_idx: int) -> None:
        sequence = self.sequence(batch)
        out = self.joint.loss(sequence)
        self.log("val/loss", out.loss, prog_bar=True, batch_size=batch.size)
        self._log("val", batch, out.nats, out.accuracy)
        bits = -self.joint.log_prob(sequence).mean(0) / math.log(2)
        for name, value in zip(_names(batch), bits, strict=True):
            self.log(f"val_bits/{name}", value, batch_size=batch.size)

    def _log(self, stage: str, batch: JointBatch, nats: list[Tensor], accuracy: list[Tensor]) -> None:
        for name, loss, hits in zip(_names(batch), nats, accuracy, strict=True):
            self.log(f"{stage}_nats/{name}", loss.detach(), batch_size=batch.size)
            self.log(f"{stage}_accuracy/{name}", hits, batch_size=batch.size)


def _names(batch: JointBatch) -> list[str]:
    """What each part's figures are called: the part, and in brackets the stream that it stands in."""
    return [f"{name}_of_{batch.stream.replace(' ', '_')}_{place}" for place, name in enumerate(batch.layout)]


class JointPreview(L.Callback):
    """Logs texts that the model says of held-out samples after every validation, beside what was said.

    Args:
        count: texts of each stream that ends in text.
    """

    def __init__(self, count: int = 4):
        self.count = count
        self.batches: dict[str, JointBatch] = {}

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch.layout[-1] == TEXT and len(batch.layout) > 1:
            self.batches.setdefault(batch.stream, batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: JointModule) -> None:
        logger = getattr(trainer.logger, "experiment", None)
        if not hasattr(logger, "add_text"):
            return
        for stream, batch in self.batches.items():
            count = min(self.count, batch.size)
            prompt = [
                module.model.fill(name, content[:count])
                for name, content in zip(batch.layout[:-1], batch.contents[:-1], strict=True)
            ]
            (made,) = module.model.generate(prompt, [TEXT], [sample_seed(0, i) for i in range(count)])
            lines = [
                f"- {printable(said)} | {printable(real)}"
                for said, real in zip(made.content, batch.contents[-1], strict=False)
            ]
            logger.add_text(stream, "said | real\n" + "\n".join(lines), trainer.global_step)
