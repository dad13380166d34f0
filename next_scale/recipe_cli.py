"""Training from a YAML recipe, with all of Lightning's options: what ``fit`` is in every program."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from next_scale.errors import UserError, first_line

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
    data_base: type | None = None,
    packages: Sequence[str] = (),
) -> None:
    """Train by the recipe and options in `arguments`.

    Args:
        program: name that help and mistakes begin with.
        module, data: classes of the LightningModule and LightningDataModule, whose options are the recipe's ``model``
            and ``data``.
        preview: class of a callback that shows what is made, the recipe's ``preview``.
        data_base: of the classes that ``data`` may name as ``class_path``, or the command line as ``--data``; `data` is
            the one where neither does. None: there is no other.
        links: (source, target) values that one part of the recipe takes from another once that is built.
        packages: whose classes a recipe may name too.

    ``--trust`` among the arguments lets the recipe name classes of any package, beside `TRUSTED` and the program's own.

    Raises:
        UserError: a value in the recipe or on the command line that cannot work.
    """
    from jsonargparse import ArgumentError, set_parsing_settings
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from next_scale.exact import RandomState
    from next_scale.files import write_whole
    from next_scale.provenance import recipe_of
    from next_scale.quiet import quiet_lightning
    from next_scale.training import ExponentialAverage, Export, Provenance
    from next_scale.whole_checkpoint import keep_whole, resumable
    from next_scale.yaml_limits import limit_yaml

    limit_yaml()

    quiet_lightning()
    trusted = tuple(dict.fromkeys((preview.__module__.partition(".")[0], *packages, *TRUSTED)))
    if "--trust" in arguments:
        arguments = [argument for argument in arguments if argument != "--trust"]
    else:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(trusted))

    class WholeConfig(SaveConfigCallback):
        """Writes the recipe as it was read beside the logs, whole or not at all."""

        def setup(self, trainer, pl_module, stage) -> None:
            folder = Path(trainer.log_dir)  # asked for by all processes, of which the first tells the others
            if trainer.is_global_zero and not self.already_saved:
                folder.mkdir(parents=True, exist_ok=True)
                text = self.parser.dump(self.config, skip_none=False)
                write_whole(folder / self.config_filename, text.encode())
            self.already_saved = True

    class RecipeCLI(LightningCLI):
        def parse_arguments(self, parser, args) -> None:
            try:
                super().parse_arguments(parser, args)
            except (ArgumentError, UserError):
                raise
            except Exception as error:  # whatever jsonargparse meets in values of the wrong kind
                raise UserError(f"the recipe cannot be read: {type(error).__name__}: {first_line(error)}") from error
            given, folder = self.config["fit"].get("ckpt_path"), self.config["fit"]["checkpoint"].get("dirpath")
            self.config["fit"]["ckpt_path"] = resumable(given, folder)

        def before_instantiate_classes(self) -> None:
            trainer = self.config["fit"]["trainer"]
            check_precision(str(trainer.get("precision") or ""), str(trainer.get("accelerator") or "auto"))

        def instantiate_trainer(self, **kwargs):
            try:
                return super().instantiate_trainer(**kwargs)
            except (MisconfigurationException, ValueError) as error:  # devices or a strategy that are not to be had
                raise UserError(f"the recipe's trainer cannot run here: {first_line(error)}") from error

        def after_instantiate_classes(self) -> None:
            keep_whole(self.trainer)
            if not self.model.automatic_optimization and self.trainer.gradient_clip_val is not None:
                raise UserError("adversarial training clips by model.clip: leave out trainer.gradient_clip_val")
            # with it Lightning would start the random numbers of several processes anew, but not those of one
            os.environ.pop("PL_GLOBAL_SEED", None)
            recipe = json.loads(self._parser("fit").dump(self.config["fit"], format="json"))
            self.trainer.callbacks.append(Provenance(recipe_of(recipe)))

        def add_arguments_to_parser(self, parser) -> None:
            # the order matters: Export and the previews look at the averaged weights
            if data_base is not None:
                parser.set_defaults({"data": {"class_path": f"{data.__module__}.{data.__qualname__}"}})
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
            data_base or data,
            subclass_mode_data=data_base is not None,
            seed_everything_default=0,
            save_config_callback=WholeConfig,
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


def check_precision(wanted: str, where: str = "auto") -> None:
    """Raise UserError where bf16 is asked for and a CPU without matrix units for it would compute it.

    Args:
        wanted, where: precision and accelerator, as Lightning names them.
    """
    import torch

    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = where == "cpu" or (where == "auto" and not gpu)
    if "bf16" in wanted and on_cpu and not torch.cpu.get_capabilities().get("amx_bf16", False):
        raise UserError(
            f"the precision is {wanted}, and this would run on a CPU without matrix units for it (amx_bf16), where "
            "bf16 was measured a hundred times slower than float32: leave the precision out, or use a GPU"
        )
