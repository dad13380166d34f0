"""`audio-var fit tokenizer|next-scale|evaluator`: training from a YAML recipe, with all of Lightning's options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from next_scale.errors import UserError

USAGE = """usage: audio-var fit {tokenizer,next-scale,evaluator} --config RECIPE.yaml [--trainer.OPTION VALUE ...]
                     [--ckpt_path FILE]

Train one of the two stages of a model, or the judge of its report, from a recipe. Every value in the recipe, and every
option of Lightning's Trainer, can be set on the command line after it.

  tokenizer    waveforms -> token pyramids: codec and multi-scale quantizer
  next-scale   token pyramids: the transformer that generates them, on a trained tokenizer
  evaluator    instrument family and pitch of a note, which judges generated ones

examples:
  audio-var fit tokenizer --config recipes/audio_notes/tokenizer.yaml
  audio-var fit next-scale --config recipes/audio_notes/next_scale.yaml --trainer.max_steps 2000
  audio-var fit tokenizer --config recipes/audio_notes/tokenizer.yaml \\
      --ckpt_path runs/audio_notes/tokenizer/checkpoints/last.ckpt

all options of a stage: audio-var fit tokenizer --help
progress in a browser:  tensorboard --logdir runs"""


def run(arguments: Sequence[str]) -> int:
    """Run with the arguments after ``fit``."""
    stages = {"tokenizer": _fit_tokenizer, "next-scale": _fit_next_scale, "evaluator": _fit_evaluator}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] not in stages:
        raise UserError(f"unknown stage '{arguments[0]}'; choose one of {', '.join(stages)}")
    stages[arguments[0]](list(arguments[1:]))
    return 0


def _cli(module, data, arguments: list[str], links: Sequence[tuple[str, str]] = ()) -> None:
    import logging
    import warnings

    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.cli import LightningCLI

    from audio_var.callbacks import AudioPreview
    from next_scale.training import ExponentialAverage, Export

    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        "LightningCLI's args parameter",  # this command's own arguments are given, not the process's
        ".*LeafSpec",  # Lightning on a newer torch
        "Found .* eval mode",  # the frozen tokenizer, on purpose
    ):
        warnings.filterwarnings("ignore", message)

    class RecipeCLI(LightningCLI):
        def parse_arguments(self, parser, args) -> None:
            super().parse_arguments(parser, args)
            _check_resumable(self.config["fit"].get("ckpt_path"))

        def after_instantiate_classes(self) -> None:
            if not self.model.automatic_optimization and self.trainer.gradient_clip_val is not None:
                raise UserError("adversarial training clips by model.clip: leave out trainer.gradient_clip_val")

        def add_arguments_to_parser(self, parser) -> None:
            # the order matters: Export and the previews look at the averaged weights
            parser.add_lightning_class_args(AudioPreview, "preview")
            parser.add_lightning_class_args(Export, "export")
            parser.add_lightning_class_args(ExponentialAverage, "average")
            parser.add_lightning_class_args(LearningRateMonitor, "lr_monitor")
            parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
            # last.ckpt is always the newest, also where an earlier training left one
            parser.set_defaults({"checkpoint.save_last": True, "checkpoint.enable_version_counter": False})
            for source, target in links:
                parser.link_arguments(source, target, apply_on="instantiate")

    RecipeCLI(
        module,
        data,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "audio-var"},
        args=["fit", *arguments],
    )


def _check_resumable(path: str | None) -> None:
    """Raise UserError where `--ckpt_path` names a file that is no training checkpoint."""
    import zipfile

    if path is None or path in ("best", "last", "hpc") or path.startswith("registry"):
        return
    if not zipfile.is_zipfile(path):
        cause = "is not a whole checkpoint of a training" if Path(path).exists() else "does not exist"
        raise UserError(f"--ckpt_path {path} {cause}; give a .ckpt file such as checkpoints/last.ckpt")


def _fit_tokenizer(arguments: list[str]) -> None:
    from audio_var.data.datamodule import AudioDataModule
    from next_scale.training import TokenizerModule

    _cli(TokenizerModule, AudioDataModule, arguments)


def _fit_next_scale(arguments: list[str]) -> None:
    import audio_var.codecs  # noqa: F401 - registers the codecs that checkpoints name
    from next_scale.tokens import TokenDataModule
    from next_scale.training import PredictorModule

    _cli(PredictorModule, TokenDataModule, arguments, [("data.condition_spec", "model.condition_spec")])


def _fit_evaluator(arguments: list[str]) -> None:
    from audio_var.data.datamodule import AudioDataModule
    from audio_var.evaluator import EvaluatorModule

    _cli(EvaluatorModule, AudioDataModule, arguments, [("data.condition_spec", "model.condition_spec")])
