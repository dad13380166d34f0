"""`image-var fit tokenizer|next-scale|evaluator`: training from a YAML recipe, with all of Lightning's options."""

from __future__ import annotations

from collections.abc import Sequence

from next_scale.recipe_cli import CONDITION_LINK, fit, run_stage

USAGE = """usage: image-var fit {tokenizer,next-scale,evaluator} --config RECIPE.yaml [--trainer.OPTION VALUE ...]
                     [--ckpt_path FILE] [--trust]

Train one of the two stages of a model, or the judge of its report, from a recipe. Every value in the recipe, and every
option of Lightning's Trainer, can be set on the command line after it. A recipe may name classes of this project,
lightning, torch.optim, torch.nn and torchmetrics; of anything else only with --trust, for importing it runs it.

  tokenizer    images -> token pyramids: autoencoder and multi-scale quantizer
  next-scale   token pyramids: the transformer that generates them, on a trained tokenizer
  evaluator    the class of an image, which judges generated ones

examples:
  image-var fit tokenizer --config recipes/image_fashion/tokenizer.yaml
  image-var fit next-scale --config recipes/image_fashion/next_scale.yaml --trainer.max_steps 2000
  image-var fit tokenizer --config recipes/image_fashion/tokenizer.yaml \\
      --ckpt_path runs/image_fashion/tokenizer/checkpoints/last.ckpt

all options of a stage: image-var fit tokenizer --help
progress in a browser:  tensorboard --logdir runs"""


def run(arguments: Sequence[str]) -> int:
    """Run with the arguments after ``fit``."""
    stages = {"tokenizer": _fit_tokenizer, "next-scale": _fit_next_scale, "evaluator": _fit_evaluator}
    return run_stage(stages, USAGE, arguments)


def _fit_tokenizer(arguments: list[str]) -> None:
    from image_var.callbacks import ImagePreview
    from image_var.data.datamodule import ImageDataModule
    from next_scale.training import TokenizerModule

    fit("image-var", TokenizerModule, ImageDataModule, ImagePreview, arguments)


def _fit_next_scale(arguments: list[str]) -> None:
    import image_var.autoencoder  # noqa: F401 - registers the autoencoder that checkpoints name
    from image_var.callbacks import ImagePreview
    from next_scale.tokens import TokenData, TokenDataModule
    from next_scale.training import PredictorModule

    fit("image-var", PredictorModule, TokenDataModule, ImagePreview, arguments, [CONDITION_LINK], TokenData)


def _fit_evaluator(arguments: list[str]) -> None:
    from image_var.callbacks import ImagePreview
    from image_var.data.datamodule import ImageDataModule
    from image_var.evaluator import EvaluatorModule

    fit("image-var", EvaluatorModule, ImageDataModule, ImagePreview, arguments, [CONDITION_LINK])
