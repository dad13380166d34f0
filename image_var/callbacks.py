"""What an image training shows while it runs: grids of images in TensorBoard."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor
from torchvision.utils import make_grid

from next_scale.training import PredictorModule, TokenizerModule


class ImagePreview(L.Callback):
    """Logs grids of images to TensorBoard after every validation.

    A tokenizer shows held-out images and what it makes of them, with all scales and with the first half; a predictor
    shows images generated for the conditions of held-out ones.

    Args:
        count: images.
    """

    def __init__(self, count: int = 16):
        self.count = count
        self.batch: dict | None = None

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx == 0:
            self.batch = batch

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        logger = getattr(trainer.logger, "experiment", None)
        if self.batch is None or not hasattr(logger, "add_image"):
            return
        for name, images in self._images(module):
            columns = round(len(images) ** 0.5 + 0.5)
            # (n, C, H, W) in -1 .. 1 -> (3, rows H, columns W) in 0 .. 1
            grid = make_grid(images.cpu().clamp(-1, 1) / 2 + 0.5, nrow=columns, padding=1)
            logger.add_image(name, grid, trainer.global_step)

    @torch.no_grad()
    def _images(self, module: L.LightningModule) -> list[tuple[str, Tensor]]:
        """Name and images (n, C, H, W) of everything to show."""
        if isinstance(module, TokenizerModule):
            tokenizer, real = module.tokenizer, self.batch["sample"][: self.count]
            if module.step < module.quantize_after:
                return [("autoencoder", tokenizer.autoencoder.decode(tokenizer.autoencoder.encode(real)))]
            tokens = tokenizer.encode(real)
            half = (tokenizer.quantizer.scales + 1) // 2
            return [
                ("real", real),
                ("all_scales", tokenizer.decode(tokens)),
                ("half_the_scales", tokenizer.decode(tokens, half)),
            ]
        if isinstance(module, PredictorModule):
            condition = {name: values[: self.count] for name, values in self.batch["condition"].items()}
            seeds = range(len(next(iter(condition.values()))) if condition else self.count)
            images, _ = module.model.generate(condition, list(seeds))
            return [("generated", images)]
        return []
