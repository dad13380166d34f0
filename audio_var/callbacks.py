"""What an audio training shows while it runs: clips and spectrograms in TensorBoard."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from audio_var.plots import spectrogram_figure
from next_scale.training import PredictorModule, TokenizerModule


class AudioPreview(L.Callback):
    """Logs clips and spectrograms to TensorBoard after every validation.

    A tokenizer shows held-out clips and what it makes of them, with all scales and with the first half; a predictor
    shows clips generated for the conditions of held-out ones.

    Args:
        count: clips.
    """

    def __init__(self, count: int = 4):
        self.count = count
        self.batch: dict | None = None

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx == 0:
            self.batch = batch

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        logger = getattr(trainer.logger, "experiment", None)
        if self.batch is None or not hasattr(logger, "add_audio"):
            return
        for name, clips, sample_rate in self._clips(module):
            for i, clip in enumerate(clips.cpu().clamp(-1, 1)):
                logger.add_audio(f"{name}/{i}", clip, trainer.global_step, sample_rate)
            sheet = [(str(i), clip.cpu().numpy()) for i, clip in enumerate(clips[:, 0])]  # (n, 1, N) -> n x (N,)
            logger.add_figure(
                f"{name}/spectrograms", spectrogram_figure(sheet, sample_rate, len(sheet)), trainer.global_step
            )

    @torch.no_grad()
    def _clips(self, module: L.LightningModule) -> list[tuple[str, Tensor, int]]:
        """Name, clips (n, 1, N) and sample rate of everything to show."""
        if isinstance(module, TokenizerModule):
            tokenizer = module.tokenizer
            rate, real = tokenizer.autoencoder.sample_rate, self.batch["sample"][: self.count]
            if module.step < module.quantize_after:
                return [("autoencoder", tokenizer.autoencoder.decode(tokenizer.autoencoder.encode(real)), rate)]
            tokens = tokenizer.encode(real)
            half = (tokenizer.quantizer.scales + 1) // 2
            made = [("all_scales", tokenizer.decode(tokens)), ("half_the_scales", tokenizer.decode(tokens, half))]
            return [("real", real, rate)] + [(name, clips, rate) for name, clips in made]
        if isinstance(module, PredictorModule):
            condition = {name: values[: self.count] for name, values in self.batch["condition"].items()}
            seeds = range(len(next(iter(condition.values()))) if condition else self.count)
            clips, _ = module.model.generate(condition, list(seeds))
            return [("generated", clips, module.frozen.autoencoder.sample_rate)]
        return []
