"""The fixed judge of images: a small network that tells classes apart.

Its embedding is the feature space of the Frechet distance and of precision and recall. It is trained once, on real
training images, and shipped, so that figures of different models compare.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.cli import progress
from next_scale.errors import UserError
from next_scale.judge import load_judge, save_judge
from next_scale.training import ScheduledModule, made_by

SHIPPED = Path(__file__).parent / "models" / "evaluator"
FORMAT = "image-evaluator"

_PLACES = 4  # rows and columns of the last feature map that the embedding sees
_SHIFT = 2  # most rows and columns by which training images are moved


class Seen(NamedTuple):
    """embedding: (B, E) float32. label: (B, number of labels) logits."""

    embedding: Tensor
    label: Tensor


class Judgement(NamedTuple):
    """embedding: (B, E) float32. label: (B,) int64 indices."""

    embedding: Tensor
    label: Tensor


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


class Evaluator(nn.Module):
    """Classes of images.

    A 5 x 5 convolution of stride 2, then for every further width a 3 x 3 convolution of stride 2 and one of stride 1,
    each with batch norm and ReLU; the last feature map, averaged to 4 x 4 places, makes the embedding.

    Args:
        labels: names of the classes.
        image_channels: C.
        size: height and width of the images, H and W.
        channels: of the convolutions.
        embedding: size of the embedding, E.
        dropout: of the embedding before the classes, in training.

    Shape notation: B batch, C channels, H W image, E embedding.
    """

    def __init__(
        self,
        labels: list[str],
        image_channels: int = 1,
        size: Sequence[int] = (32, 32),
        channels: Sequence[int] = (24, 48, 96),
        embedding: int = 96,
        dropout: float = 0.2,
    ):
        super().__init__()
        self.labels, self.image_channels, self.size = list(labels), image_channels, tuple(size)
        self.config = {
            "labels": self.labels, "image_channels": image_channels, "size": list(size), "channels": list(channels),
            "embedding": embedding, "dropout": dropout,
        }  # fmt: skip
        layers = [_convolution(image_channels, channels[0], 5, 2)]
        for before, after in zip(channels, channels[1:], strict=False):
            layers += [_convolution(before, after, 3, 2), _convolution(after, after, 3, 1)]
        self.layers = nn.Sequential(*layers)
        self.embed = nn.Linear(channels[-1] * _PLACES**2, embedding)
        self.dropout = nn.Dropout(dropout)
        self.label_head = nn.Linear(embedding, len(self.labels))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Seen:
        """(B, C, H, W) float in -1 .. 1 -> embedding and logits."""
        features = self.layers(images.contiguous(memory_format=torch.channels_last))
        places = F.adaptive_avg_pool2d(features, _PLACES).flatten(1)  # (B, D, h, w) -> (B, D * 16)
        embedding = F.gelu(self.embed(places))
        return Seen(embedding, self.label_head(self.dropout(embedding)))

    @torch.no_grad()
    def judge(self, images: Tensor, batch_size: int = 256, description: str = "judging") -> Judgement:
        """(B, C, H, W) float -> what is seen."""
        parts = []
        with progress(description, len(images)) as advance:
            for part in images.split(batch_size):
                seen = self(part)
                parts.append(Judgement(seen.embedding, seen.label.argmax(1)))
                advance(len(part))
        return Judgement(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def describe(self) -> str:
        """What features are taken from it, in words."""
        count = sum(parameter.numel() for parameter in self.parameters())
        size = self.config["embedding"]
        return f"embedding of the image evaluator, {size} features, {count:,} parameters"

    def check(self, labels: Sequence[str], shape: Sequence[int]) -> None:
        """Raise UserError unless images of these classes and this shape (C, H, W) are what this network knows."""
        if self.labels != list(labels):
            raise UserError("the evaluator knows other classes than these images have: train one on them")
        if (self.image_channels, *self.size) != tuple(shape):
            own, theirs = (" x ".join(map(str, x)) for x in ((self.image_channels, *self.size), shape))
            raise UserError(f"the evaluator sees images of {own}, these have {theirs} (channels x height x width)")


def save_evaluator(model: Evaluator, folder: str | os.PathLike, provenance: dict | None = None) -> None:
    """Writes ``model.safetensors`` (float16) and ``config.json``. Raises UserError where that fails."""
    save_judge(model, folder, FORMAT, provenance)


def load_evaluator(folder: str | os.PathLike = SHIPPED) -> Evaluator:
    """The evaluator of a folder, by default the shipped one, in eval mode. Raises UserError where it is not whole."""
    return load_judge(Evaluator, folder, FORMAT, "image-var")


def degrade(images: Tensor) -> Tensor:
    """What training images go through, so that the artefacts of a codec do not decide: (B, C, H, W) -> (B, C, H, W).

    Every image is moved by up to 2 pixels, its edge repeated. Half of them are blurred by a 3 x 3 kernel of random
    width; half get white noise of up to a tenth of the range. Uses the global random state.
    """
    batch, _, height, width = images.shape
    device = images.device
    down, right = torch.randint(0, 2 * _SHIFT + 1, (2, batch, 1, 1), device=device)
    rows = down + torch.arange(height, device=device).view(1, -1, 1)
    columns = right + torch.arange(width, device=device)
    padded = F.pad(images, [_SHIFT] * 4, mode="replicate")
    samples = torch.arange(batch, device=device).view(-1, 1, 1)
    moved = padded[samples, :, rows, columns].permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
    # weights of the kernel: a, 1 - 2 a, a in both directions
    side = 0.15 * torch.rand(batch, 1, 1, 1, device=device) * (torch.rand(batch, 1, 1, 1, device=device) < 0.5)
    wide = F.pad(moved, [1] * 4, mode="replicate")
    wide = torch.lerp(wide[:, :, 1:-1], (wide[:, :, :-2] + wide[:, :, 2:]) / 2, 2 * side)
    blurred = torch.lerp(wide[..., 1:-1], (wide[..., :-2] + wide[..., 2:]) / 2, 2 * side)
    level = 0.2 * torch.rand(batch, 1, 1, 1, device=device) * (torch.rand(batch, 1, 1, 1, device=device) < 0.5)
    return blurred + level * torch.randn_like(blurred)


class EvaluatorModule(ScheduledModule):
    """Trains the evaluator on real images.

    Args:
        condition_spec: fields and values of the data's conditions, `label` among them.
        evaluator: further arguments of :class:`Evaluator`.
        folder: where to save the evaluator at the end; nothing is saved where it is None.
        lr, betas, weight_decay, warmup, final_lr: see :class:`next_scale.training.ScheduledModule`.
    """

    def __init__(
        self,
        condition_spec: dict,
        evaluator: dict | None = None,
        folder: str | None = None,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.05,
        warmup: int = 100,
        final_lr: float = 0.01,
    ):
        super().__init__(lr, betas, weight_decay, warmup, final_lr)
        if "label" not in condition_spec:
            raise UserError("the data has no label: the evaluator is trained on images of classes")
        self.evaluator = Evaluator(condition_spec["label"], **(evaluator or {}))
        self.folder = folder

    def configure_optimizers(self):
        return self.optimizer_for(list(self.evaluator.parameters()))

    def loss(self, images: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of the class: (B, C, H, W) and (B,) int64 -> scalar."""
        return F.cross_entropy(self.evaluator(images).label, label, label_smoothing=0.05)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        loss = self.loss(degrade(batch["sample"]), batch["condition"]["label"])
        self.log("train/label", loss.detach())
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        label = batch["condition"]["label"]
        hits = (self.evaluator(batch["sample"]).label.argmax(1) == label).float().mean()
        self.log("val/label_accuracy", hits, prog_bar=True, batch_size=len(label))

    def on_fit_end(self) -> None:
        if self.folder is not None and self.trainer.is_global_zero:
            save_evaluator(self.evaluator, self.folder, made_by(self.trainer))
