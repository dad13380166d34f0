"""Training from a YAML recipe, with all of Lightning's options: what ``fit`` is in every program."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from next_scale.errors import UserError

# packages whose classes a recipe may name, beside the program's own: it could otherwise import and call anything
TRUSTED = ("next_scale", "lightning", "torch.optim", "torch.nn", "torchmetrics")

_NOISE = re.compile(r"Does not validate|Subtypes:|Errors:|Given value|Expected a (path but|<class 'NoneType'>)")

# the stage's model takes its condition fields from the stage's data
CONDITION_LINK = ("data.condition_spec", "model.condition_spec")


def run_stage(stages: Mapping[str, Callable[[list[str]], None]], usage: str, arguments: Sequence[str]) -> int:
    """Run the stage that the first argument names with the others; its help is `usage`. Returns the exit code.

    Raises:
        UserError: there is no such stage.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    if arguments[0] not in stages:
        raise UserError(f"unknown stage '{arguments[0]}'; choose one of {', '.join(stages)}")
    stages[arguments[0]](list(arguments[1:]))
    return 0


def fit(
    program: str,
    module: type,
    data: type,
    preview: type,
    arguments: Sequence[str],
    links: Sequence[tuple[str, str]] = (),
    packages: Sequence[str] = (),
) -> None:
    """Train by the recipe and options in `arguments`.

    Args:
        program: name that help and mistakes begin with.
        module, data: classes of the LightningModule and LightningDataModule, whose options are the recipe's ``model``
            and ``data``.
        preview: class of a callback that shows what is made, the recipe's ``preview``.
        links: (source, target) values that one part of the recipe takes from another once that is built.
        packages: whose classes a recipe may name too.

    ``--trust`` among the arguments lets the recipe name classes of any package, beside `TRUSTED` and the program's own.

    Raises:
        UserError: a value in the recipe or on the command line that cannot work.
    """
    import logging
    import warnings

    from jsonargparse import ArgumentError, set_parsing_settings
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.cli import LightningCLI

    from next_scale.exact import RandomState
    from next_scale.training import ExponentialAverage, Export

    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        "LightningCLI's args parameter",  # this command's own arguments are given, not the process's
        ".*LeafSpec",  # Lightning on a newer torch
        "Found .* eval mode",  # the frozen tokenizer, on purpose
    ):
        warnings.filterwarnings("ignore", message)

    trusted = tuple(dict.fromkeys((preview.__module__.partition(".")[0], *packages, *TRUSTED)))
    if "--trust" in arguments:
        arguments = [argument for argument in arguments if argument != "--trust"]
    else:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(trusted))

    class RecipeCLI(LightningCLI):
        def parse_arguments(self, parser, args) -> None:
            super().parse_arguments(parser, args)
            _check_resumable(self.config["fit"].get("ckpt_path"))

        def after_instantiate_classes(self) -> None:
            if not self.model.automatic_optimization and self.trainer.gradient_clip_val is not None:
                raise UserError("adversarial training clips by model.clip: leave out trainer.gradient_clip_val")

        def add_arguments_to_parser(self, parser) -> None:
            # the order matters: Export and the previews look at the averaged weights
            parser.add_lightning_class_args(preview, "preview")
            parser.add_lightning_class_args(Export, "export")
            parser.add_lightning_class_args(ExponentialAverage, "average")
            parser.add_lightning_class_args(RandomState, "random_state")
            parser.add_lightning_class_args(LearningRateMonitor, "lr_monitor")
            parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
            # last.ckpt is always the newest, also where an earlier training left one, or one is asked to stop
            defaults = {"save_last": True, "save_on_exception": True, "enable_version_counter": False}
            parser.set_defaults({f"checkpoint.{name}": value for name, value in defaults.items()})
            for source, target in links:
                parser.link_arguments(source, target, apply_on="instantiate")

    try:
        RecipeCLI(
            module,
            data,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": program, "exit_on_error": False, "fit": {"exit_on_error": False}},
            args=["fit", *arguments],
        )
    except ArgumentError as error:
        raise UserError(_one_line(str(error), trusted)) from error


def _one_line(message: str, trusted: Sequence[str]) -> str:
    """What jsonargparse says of a mistake, without the list of all that would have been right."""
    denied = re.search(r"Importing '([\w.]+)' is not allowed", message)
    if denied:
        return (
            f"the recipe names {denied[1]}, which was not imported: it is of none of the packages "
            f"{', '.join(trusted)}; add --trust if you trust the recipe"
        )
    lines = [line.strip(" -") for line in message.splitlines()]
    return " ".join(line for line in lines if line and not _NOISE.match(line))


def _check_resumable(path: str | None) -> None:
    """Raise UserError where `--ckpt_path` names a file that is no training checkpoint."""
    import zipfile

    if path is None or path in ("best", "last", "hpc") or path.startswith("registry"):
        return
    if not zipfile.is_zipfile(path):
        cause = "is not a whole checkpoint of a training" if Path(path).exists() else "does not exist"
        raise UserError(f"--ckpt_path {path} {cause}; give a .ckpt file such as checkpoints/last.ckpt")
