"""Lightning modules that train tokenizers and predictors, whatever the modality."""

from __future__ import annotations

import math

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from next_scale import ranks
from next_scale.checkpoint import from_pretrained, save_pretrained
from next_scale.conditioning import PROMPT
from next_scale.errors import UserError, first_line
from next_scale.exact import TrainingLoader
from next_scale.model import Generator, tokenizer_of
from next_scale.morph import MorphTraining
from next_scale.predictors import AnyLength, LossOutput, predictor_class
from next_scale.provenance import KEY, training_provenance
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.sampling import SamplingOptions
from next_scale.schedule import StrideSchedule, parse_schedule
from next_scale.sharding import ShardedAveraging, shard, whole_state
from next_scale.tokenizer import Tokenizer
from next_scale.transformer import Block

# what a recipe may set: typed, so that values on the command line are read as numbers
Options = dict[str, bool | int | float | str | None]


class ExponentialAverage(ShardedAveraging):
    """Exponential moving average of the weights: validation, checkpoints and the exported model use it.

    Args:
        decay: of the average; early on min(decay, (1 + n) / (10 + n)) after n steps, so that it forgets the start.
    """

    def __init__(self, decay: float = 0.999):
        def average(mean: Tensor, new: Tensor, n: Tensor) -> Tensor:
            if not mean.is_floating_point():  # masks and indices among the buffers
                return new
            return mean + (new - mean) * (1 - min(decay, float((1 + n) / (10 + n))))

        super().__init__(avg_fn=average)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # weight norm by hooks leaves computed weights among a layer's attributes, which cannot be copied as they are
        for part in pl_module.modules():
            for name, value in vars(part).items():
                if isinstance(value, Tensor) and not value.is_leaf:
                    vars(part)[name] = value.detach()
        super().setup(trainer, pl_module, stage)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the average in place also where a resumed training had no step left, which `on_train_end` misses."""
        self.adopt(module)

    def adopt(self, module: L.LightningModule) -> None:
        """Go on from the average: the module takes its weights."""
        self._copy_average_to_current(module)

    def restart(self) -> None:
        """Forget: the next update takes the module's weights as they are."""
        self._average_model.n_averaged.zero_()


class ScheduledModule(L.LightningModule):
    """AdamW with linear warm-up and cosine decay, shared by all trainings.

    Args:
        lr: peak learning rate.
        betas, weight_decay: of AdamW; decay applies to matrices and kernels only.
        warmup: steps of linear warm-up.
        final_lr: share of `lr` left at the end.
    """

    def __init__(self, lr: float, betas: tuple[float, float], weight_decay: float, warmup: int, final_lr: float):
        super().__init__()
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.warmup, self.final_lr = warmup, final_lr

    def configure_model(self) -> None:
        """Raises UserError where weights should be sharded, which predictors alone know how to do."""
        if self.device_mesh is not None or isinstance(self.trainer.strategy, FSDPStrategy):
            raise UserError(
                "only predictors train with sharded weights: use the strategy ddp_find_unused_parameters_true"
            )

    def log_means(self, values: dict[str, Tensor], batch_size: int) -> None:
        """Log what training tells of a batch, of all processes' batches together; ``train/loss`` also while it runs."""
        values, whole = ranks.mean_of(values, batch_size)
        self.log_dict(values, batch_size=whole)
        self.log("loss", values["train/loss"], prog_bar=True, logger=False)

    def log_held_out(self, values: dict[str, Tensor], batch: dict, batch_size: int) -> None:
        """Log what validation tells of a batch; with several processes each sample counts once."""
        values, whole = ranks.mean_of(values, batch.get("counts", batch_size))
        loss = {"val/loss": values.pop("val/loss")}
        self.log_dict(loss, prog_bar=True, batch_size=whole, sync_dist=True)  # equal in all processes already
        self.log_dict(values, batch_size=whole, sync_dist=True)

    def optimizer_for(self, parameters: list[nn.Parameter], after: int = 0) -> dict:
        """AdamW and its schedule over the trainer's whole length, or what is left of it `after` so many steps."""
        parameters = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=tuple(self.betas))
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError("the learning rate needs a length of training: set trainer.max_steps or trainer.max_epochs")
        steps = max(1, int(steps) - after)
        warmup = max(1, min(self.warmup, steps // 2))

        def share(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, (step - warmup) / max(1, steps - warmup))
            return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))

        # a function of the step alone: a run resumed with another length follows that length's curve
        schedule = LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TokenizerModule(ScheduledModule):
    """Trains an autoencoder and its multi-scale quantizer.

    The first steps train the autoencoder alone; then k-means places all codebooks on real latents, and both train
    together. From `settle_at` on, encoder and quantizer stay as they are, with their codebooks placed once more on the
    final latents, so that codes are evenly used; the rest trains the decoder on them. Adversarial training, where the
    objective has a discriminator, starts at `adversarial_after`.

    Args:
        autoencoder: see :class:`next_scale.tokenizer.Tokenizer`.
        objective: ``objective(autoencoder, x, latent) -> (loss, logs)`` and ``discriminator`` (a module or None); with
            one also ``adversarial(autoencoder, x, latent) -> (loss, logs, fake)``, the same loss with the judgement of
            ``fake`` added, and ``discriminator_loss(x, fake)``.
        schedule: scales, such as ``"1 2 4 8"`` or ``"1x1 2x2"``, or ``"strides 8 4 2 1"`` for any length.
        quantizer: further arguments of :class:`next_scale.quantizer.MultiScaleQuantizer`.
        start_from: checkpoint of a tokenizer, whose weights this training starts from: all of them where the quantizer
            is the same, and those of the autoencoder, which must have the same sizes, where it is another.
        quantize_after: steps before the quantizer starts.
        start_samples: samples whose latents place the codebooks.
        settle_at: step from which only the decoder trains; None never.
        settle_samples: samples whose latents place the codebooks then.
        adversarial_after: steps before the discriminator starts.
        lr, betas, weight_decay, warmup, final_lr: see :class:`ScheduledModule`.
        clip: gradient norm limit of adversarial training, where Lightning leaves clipping to the module.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        objective: nn.Module,
        schedule: str,
        quantizer: Options | None = None,
        start_from: str | None = None,
        quantize_after: int = 500,
        start_samples: int = 2048,
        settle_at: int | None = None,
        settle_samples: int = 16384,
        adversarial_after: int = 0,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
        warmup: int = 200,
        final_lr: float = 0.02,
        clip: float = 1.0,
    ):
        super().__init__(lr, betas, weight_decay, warmup, final_lr)
        if settle_at is not None and settle_at <= quantize_after:
            raise UserError(f"settle_at {settle_at} must come after quantize_after {quantize_after}")
        quantizer = MultiScaleQuantizer(parse_schedule(schedule), autoencoder.latent_channels, **(quantizer or {}))
        self.tokenizer = Tokenizer(autoencoder, quantizer)
        if start_from is not None:
            self._start_from(start_from)
        self.objective = objective
        self.quantize_after, self.start_samples = quantize_after, start_samples
        self.settle_at, self.settle_samples = settle_at, settle_samples
        self.adversarial_after, self.clip = adversarial_after, clip
        self.automatic_optimization = objective.discriminator is None
        self._placed_at: int | None = None

    def _start_from(self, source: str) -> None:
        other, own = tokenizer_of(from_pretrained(source)), self.tokenizer
        sizes = [{k: v.shape for k, v in tokenizer.quantizer.state_dict().items()} for tokenizer in (other, own)]
        if sizes[0] != sizes[1] or other.quantizer.schedule != own.quantizer.schedule:
            other, own = other.autoencoder, own.autoencoder
        try:
            own.load_state_dict(other.state_dict())
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"cannot start from {source}, a tokenizer of other sizes: {reason}") from error

    @property
    def model(self) -> nn.Module:
        """What is exported."""
        return self.tokenizer

    def configure_optimizers(self):
        own = self.optimizer_for(list(self.tokenizer.parameters()))
        if self.automatic_optimization:
            return own
        other = self.optimizer_for(list(self.objective.discriminator.parameters()), self.adversarial_after)
        return [own["optimizer"], other["optimizer"]], [own["lr_scheduler"], other["lr_scheduler"]]

    @torch.no_grad()
    def start_quantizer(self, samples: int) -> None:
        """Place all codebooks by k-means over latents of this many training samples; all processes do the same."""
        latents, seen = [], 0
        self.tokenizer.eval()
        own = self.trainer.train_dataloader
        # a loader of its own: the trainer's is in the middle of an epoch, and its workers may be kept
        ours = isinstance(own, TrainingLoader)
        dataset, size = (own.samples, own.size) if ours else (own.dataset, own.batch_size or 1)
        loader = DataLoader(dataset, size, shuffle=True, collate_fn=None if ours else own.collate_fn)
        while seen < samples:
            for i, batch in enumerate(loader, 1):
                latents.append(self.tokenizer.autoencoder.encode(batch["sample"].to(self.device)))
                seen += latents[-1].shape[0]
                if seen >= samples and i % ranks.count() == 0:  # whole batches of all processes
                    break
        self.tokenizer.quantizer.start(torch.cat(latents))
        ranks.draw_together()
        self.tokenizer.train()

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        if self.step not in (self.quantize_after, self.settle_at) or self._placed_at == self.step:
            return
        self._placed_at = self.step  # gradients may be accumulated over several batches of one step
        averages = [c for c in self.trainer.callbacks if isinstance(c, ExponentialAverage)]
        if self.settled:
            for average in averages:
                average.adopt(self)
        self.start_quantizer(self.settle_samples if self.settled else self.start_samples)
        for average in averages:  # codes before and after have nothing to do with each other
            average.restart()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep how often each code was used, which no exported checkpoint needs but a resumed training does."""
        checkpoint["codebook_usage"] = [book.usage.clone() for book in self.tokenizer.quantizer.codebooks]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Inverse of :meth:`on_save_checkpoint`."""
        for book, usage in zip(self.tokenizer.quantizer.codebooks, checkpoint.get("codebook_usage", ()), strict=False):
            book.usage.copy_(usage)

    @property
    def settled(self) -> bool:
        """Whether only the decoder still trains."""
        return self.settle_at is not None and self.step >= self.settle_at

    @property
    def step(self) -> int:
        """Steps of the tokenizer's optimizer so far."""
        return self.trainer.global_step

    def training_step(self, batch: dict, batch_idx: int):
        x = batch["sample"]
        with torch.set_grad_enabled(not self.settled):
            latent = self.tokenizer.autoencoder.encode(x)
            logs = {}
            extra = latent.new_zeros(())
            if self.step >= self.quantize_after:
                out = self.tokenizer.quantizer(latent, learn=not self.settled)
                latent, extra = out.quantized, out.loss
                out.share = ranks.mean(out.share)
                logs |= {"quantizer": out.loss.detach(), "perplexity": out.perplexity.mean()}
        if self.automatic_optimization:
            loss, terms = self.objective(self.tokenizer.autoencoder, x, latent)
            loss = loss + extra
        else:
            loss, terms = self._adversarial_step(x, latent, extra)
        logs |= terms | {"loss": loss.detach()}
        self.log_means({f"train/{name}": value for name, value in logs.items()}, x.shape[0])
        return loss if self.automatic_optimization else None

    def _adversarial_step(self, x: Tensor, latent: Tensor, extra: Tensor) -> tuple[Tensor, dict]:
        """One step of the tokenizer, then one of the discriminator."""
        own, other = self.optimizers()
        own_schedule, other_schedule = self.lr_schedulers()
        judged = self.step >= self.adversarial_after
        if judged:
            loss, logs, fake = self.objective.adversarial(self.tokenizer.autoencoder, x, latent)
        else:
            loss, logs = self.objective(self.tokenizer.autoencoder, x, latent)
        loss = loss + extra
        self._backward(own, loss)
        own.step()
        own_schedule.step()
        if judged:
            term = self.objective.discriminator_loss(x, fake.detach())
            logs["discriminator"] = term.detach()
            self._backward(other, term)
            # past Lightning's counter: a step is one of the tokenizer, so that max_steps and intervals mean batches
            self.trainer.strategy.optimizer_step(other.optimizer, lambda: None, model=self)
            other_schedule.step()
        return loss, logs

    def _backward(self, optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        x = batch["sample"]
        latent = self.tokenizer.autoencoder.encode(x)
        logs = {}
        if self.step >= self.quantize_after:
            out = self.tokenizer.quantizer(latent)
            latent, out.share = out.quantized, ranks.mean(out.share)
            logs |= {f"perplexity/{k}": value for k, value in enumerate(out.perplexity)}
        loss, terms = self.objective(self.tokenizer.autoencoder, x, latent)
        logs |= {f"val/{name}": value for name, value in terms.items()}
        self.log_held_out(logs | {"val/loss": loss}, batch, x.shape[0])


class PredictorModule(ScheduledModule):
    """Trains a predictor on the tokens of a frozen tokenizer.

    Args:
        tokenizer: checkpoint of the tokenizer; it gives the schedule, the codebook size and the predictor's inputs.
        condition_spec: fields and values of the conditions; recipes link it to the data's.
        family: name of a class of :mod:`next_scale.predictors`, or of one that another package brings. On a tokenizer
            of strides "next_scale" means :class:`next_scale.predictors.any_length.AnyLength`.
        predictor: further arguments of that class.
        sampling: options to store with the model as its defaults, see :class:`next_scale.sampling.SamplingOptions`.
        checkpointing: keep only what enters each block for the backward pass, which computes the rest again.
        compile: compile the blocks with ``torch.compile``.
        lr, betas, weight_decay, warmup, final_lr: see :class:`ScheduledModule`.
        words: what prompts are read by, see :func:`next_scale.conditioning.build_words`; for data with captions.
        morph: share of the samples whose pyramid begins with that of their drawn prompt, see :mod:`next_scale.morph`.
    """

    def __init__(
        self,
        tokenizer: str,
        condition_spec: dict,
        predictor: Options | None = None,
        sampling: Options | None = None,
        family: str = "next_scale",
        checkpointing: bool = False,
        compile: bool = False,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        warmup: int = 200,
        final_lr: float = 0.02,
        words: Options | None = None,
        morph: float = 0.0,
    ):
        super().__init__(lr, betas, weight_decay, warmup, final_lr)
        self.frozen = tokenizer_of(from_pretrained(tokenizer))
        self.frozen.requires_grad_(False)
        quantizer = self.frozen.quantizer
        if family == "next_scale" and isinstance(quantizer.schedule, StrideSchedule):
            family = "any_length"
        options = {**(predictor or {}), **({"words": words} if words else {})}
        try:
            self.predictor = predictor_class(family).for_quantizer(quantizer, condition_spec, **options)
        except TypeError as error:  # an option of another family
            raise UserError(f"the predictor '{family}' cannot be built: {first_line(error)}") from error
        self.predictor.start_from(quantizer)
        self.sampling = SamplingOptions(**(sampling or {}))
        self.morph = MorphTraining(self.frozen, self.predictor, morph) if morph else None
        self.compile_blocks, self._arranged = compile, False
        for block in self._blocks():
            block.checkpointing = checkpointing

    def _blocks(self) -> list[Block]:
        return [module for module in self.predictor.modules() if isinstance(module, Block)]

    def configure_model(self) -> None:
        """Compile the blocks and shard the weights, where asked for. Raises UserError for FSDP's first version."""
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise UserError("for sharded weights set trainer.strategy.class_path to next_scale.sharding.FullySharded")
        if self._arranged:
            return
        self._arranged = True
        if self.compile_blocks:
            for block in self._blocks():
                block.compile()
        if self.device_mesh is not None:
            shard(self.predictor, self.device_mesh["data_parallel"])

    @property
    def model(self) -> Generator:
        """What is exported."""
        return Generator(self.frozen, self.predictor, self.sampling)

    def configure_optimizers(self):
        return self.optimizer_for(list(self.predictor.parameters()))

    def _loss(self, batch: dict, morphed: bool = False) -> LossOutput:
        self.frozen.eval()
        tokens, condition = batch["tokens"], batch["condition"]
        self._check_prompts(condition)
        if isinstance(self.predictor, AnyLength):  # what it generates where it is asked for no length
            self.predictor.grid = self.predictor.strides.of_length(tokens.shape[1]).grid
        given = {}
        with torch.autocast(tokens.device.type, enabled=False):  # the frozen tokenizer, exact in mixed precision too
            if morphed:
                tokens, given["given"] = self.morph.pyramids(tokens, batch.get("latent"), condition, self.training)
            inputs = self.predictor.inputs(self.frozen.quantizer, tokens, batch.get("latent"))
        return self.predictor.loss(tokens, inputs, condition, **given)

    def _check_prompts(self, condition: dict) -> None:
        reads = self.predictor.conditioner.words is not None
        if reads and PROMPT not in condition:
            raise UserError("model.words reads prompts, and the data has none: set data.captions")
        if not reads and PROMPT in condition:
            raise UserError("the data has prompts, and nothing reads them: set model.words, such as {kind: rendered}")

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        out = self._loss(batch, self.morph is not None)
        self.log_means(self._named("train", out), len(batch["tokens"]))
        return out.loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        values = self._named("val", self._loss(batch))
        if self.morph is not None:
            values["val/morph_loss"] = self._loss(batch, morphed=True).loss
        self.log_held_out(values, batch, len(batch["tokens"]))

    @staticmethod
    def _named(stage: str, out: LossOutput) -> dict[str, Tensor]:
        """Mean loss, and loss and accuracy of every scale."""
        values = {f"{stage}/loss_scale_{k}": value for k, value in enumerate(out.per_scale)}
        values |= {f"{stage}/accuracy_scale_{k}": value for k, value in enumerate(out.accuracy)}
        return values | {f"{stage}/loss": out.loss.detach()}


class Provenance(L.Callback):
    """Puts where a training comes from into its checkpoints; :class:`Export` does so into what it writes.

    Args:
        recipe: see :func:`next_scale.provenance.training_provenance`.
    """

    def __init__(self, recipe: dict | None = None):
        self.recipe = recipe

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict) -> None:
        checkpoint[KEY] = training_provenance(trainer, self.recipe)


def made_by(trainer: L.Trainer) -> dict:
    """Where what a trainer trains comes from, see :func:`next_scale.provenance.training_provenance`."""
    recipe = next((part.recipe for part in trainer.callbacks if isinstance(part, Provenance)), None)
    return training_provenance(trainer, recipe)


class Export(L.Callback):
    """Writes the model as a checkpoint of :mod:`next_scale.checkpoint` after every validation and at the end.

    Stands before :class:`ExponentialAverage` in the list of callbacks: at the end of a validation epoch the average is
    still in place then, and it is again once fitting has ended.

    Args:
        folder: where to; nothing is written where it is None.
        half: store float16, half the size; models always load as float32.
    """

    def __init__(self, folder: str | None = None, half: bool = True):
        self.folder, self.dtype = folder, torch.float16 if half else None

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._save(trainer, module)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for average in trainer.callbacks:
            if isinstance(average, ExponentialAverage):  # whose turn comes after this one's
                average.adopt(module)
        self._save(trainer, module)

    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.folder is None:
            return
        state = whole_state(module.model)
        if trainer.is_global_zero:
            save_pretrained(module.model, self.folder, self.dtype, state, made_by(trainer))
