"""`audio-var fit tokenizer|next-scale|evaluator`: training from a YAML recipe, with all of Lightning's options."""

from __future__ import annotations

from collections.abc import Sequence

from next_scale.recipe_cli import CONDITION_LINK, fit, run_stage

USAGE = """usage: audio-var fit {tokenizer,next-scale,evaluator} --config RECIPE.yaml [--trainer.OPTION VALUE ...]
                     [--ckpt_path FILE] [--trust]

Train one of the two stages of a model, or the judge of its report, from a recipe. Every value in the recipe, and every
option of Lightning's Trainer, can be set on the command line after it. A recipe may name classes of this project,
lightning, torch.optim, torch.nn and torchmetrics; of anything else only with --trust, for importing it runs it.

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
    return run_stage(stages, USAGE, arguments)


def _fit_tokenizer(arguments: list[str]) -> None:
    from audio_var.callbacks import AudioPreview
    from audio_var.data.datamodule import AudioDataModule
    from next_scale.training import TokenizerModule

    fit("audio-var", TokenizerModule, AudioDataModule, AudioPreview, arguments)


def _fit_next_scale(arguments: list[str]) -> None:
    import audio_var.codecs  # noqa: F401 - registers the codecs that checkpoints name
    from audio_var.callbacks import AudioPreview
    from next_scale.tokens import TokenData, TokenDataModule
    from next_scale.training import PredictorModule

    fit("audio-var", PredictorModule, TokenDataModule, AudioPreview, arguments, [CONDITION_LINK], TokenData)


def _fit_evaluator(arguments: list[str]) -> None:
    from audio_var.callbacks import AudioPreview
    from audio_var.data.datamodule import AudioDataModule
    from audio_var.evaluator import EvaluatorModule

    fit("audio-var", EvaluatorModule, AudioDataModule, AudioPreview, arguments, [CONDITION_LINK])
