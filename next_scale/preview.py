"""What a training shows while it runs: samples in its logger after every validation."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import lightning as L
import torch
from torch import Tensor

from next_scale.sharding import gathered
from next_scale.training import PredictorModule, TokenizerModule


class Preview(L.Callback):
    """Logs samples after every validation; a backend says how.

    A tokenizer shows held-out samples and what it makes of them, with all scales and with the first half; a predictor
    shows samples generated for the conditions of held-out ones.

    Args:
        count: samples.
    """

    ability = ""  # method of the logger's experiment that `show` needs

    def __init__(self, count: int):
        self.count = count
        self.batch: dict | None = None

    @abstractmethod
    def show(self, logger: Any, name: str, samples: Tensor, autoencoder: torch.nn.Module, step: int) -> None:
        """Log samples (n, C, ...), which `autoencoder` decoded or could, under a name."""

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx == 0:
            self.batch = batch

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        logger = getattr(trainer.logger, "experiment", None)
        if self.batch is None or not hasattr(logger, self.ability):
            return
        if isinstance(module, TokenizerModule):
            autoencoder, shown = module.tokenizer.autoencoder, self._reconstructed(module)
        elif isinstance(module, PredictorModule):
            with gathered(module.predictor):
                autoencoder, shown = (
                    module.frozen.autoencoder,
                    self._generated(module) if trainer.is_global_zero else {},
                )
        else:
            return
        for name, samples in shown.items():
            self.show(logger, name, samples, autoencoder, trainer.global_step)

    @torch.no_grad()
    def _reconstructed(self, module: TokenizerModule) -> dict[str, Tensor]:
        tokenizer, real = module.tokenizer, self.batch["sample"][: self.count]
        if module.step < module.quantize_after:
            return {"autoencoder": tokenizer.autoencoder.decode(tokenizer.autoencoder.encode(real))}
        tokens = tokenizer.encode(real)
        half = (tokenizer.quantizer.scales + 1) // 2
        return {
            "real": real,
            "all_scales": tokenizer.decode(tokens),
            "half_the_scales": tokenizer.decode(tokens, half),
        }

    def _generated(self, module: PredictorModule) -> dict[str, Tensor]:
        condition = {name: values[: self.count] for name, values in self.batch["condition"].items()}
        seeds = range(len(next(iter(condition.values()))) if condition else self.count)
        samples, _ = module.model.generate(condition, list(seeds))
        return {"generated": samples}
