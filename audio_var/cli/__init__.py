"""The command `audio-var`. Every subcommand is a module here, imported only when it is the one asked for.

A module has ``add_parser(subparsers)``, which adds its parser (or parsers) with the default ``run``, a function from
the parsed arguments to an exit code or None. What takes long to import is imported inside ``run``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from next_scale.cli import Parser, run_program

COMMANDS = {
    "generate": ("generate", "make clips with a trained model"),
    "reconstruct": ("reconstruct", "pass audio through a tokenizer and back"),
    "tokenize": ("tokens", "audio file -> compact token file"),
    "detokenize": ("tokens", "token file -> audio file"),
    "info": ("info", "what a checkpoint is and holds"),
    "data": ("data", "make and inspect data sets"),
    "fit": ("fit", "train a tokenizer or a next-scale model from a recipe"),
    "evaluate": ("evaluate", "measure a tokenizer or a model on held-out audio"),
}

_DESCRIPTION = "Audio by next-scale prediction: coarse-to-fine token pyramids, drawn one whole scale a step."

_EPILOG = """example:
  audio-var generate --label flute --pitch 60 --count 4 --out clips

audio-var COMMAND --help explains a command, with an example that works"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit code: 2 after a mistake, told in one line."""
    return run_program("audio-var", _main, argv)


def _main(argv: list[str]) -> int | None:
    if argv[:1] == ["fit"]:  # LightningCLI reads its own arguments
        return import_module("audio_var.cli.fit").run(argv[1:])
    parser = Parser(prog="audio-var", description=_DESCRIPTION, epilog=_EPILOG)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    if argv and argv[0] in COMMANDS:
        import_module(f"audio_var.cli.{COMMANDS[argv[0]][0]}").add_parser(commands)
    else:
        for name, (_, summary) in COMMANDS.items():
            commands.add_parser(name, help=summary)
    args, extra = parser.parse_known_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    if extra and not hasattr(args, "open_options"):
        parser.error(f"unknown argument {extra[0]}")
    args.extra = extra
    return args.run(args)
