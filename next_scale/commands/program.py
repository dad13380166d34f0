"""A program of subcommands, each imported only when it is the one asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from next_scale.cli import Parser, run_program


@dataclass(frozen=True)
class Program:
    """A command line program.

    A command's module has ``add_parser(subparsers)``, which adds its parser (or parsers) with the default ``run``, a
    function from the parsed arguments to an exit code or None. What takes long to import is imported inside ``run``.

    Args:
        name: as typed in a shell.
        package: where the modules of the commands are.
        commands: name -> module in the package, and a summary for ``--help``.
        raw: commands that read their own arguments: their module has ``run(arguments)`` and no ``add_parser``.
        description, epilog: of ``--help``.
    """

    name: str
    package: str
    commands: Mapping[str, tuple[str, str]]
    description: str
    epilog: str
    raw: tuple[str, ...] = ("fit",)

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run with `argv`, `sys.argv` by default. Returns the exit code: 2 after a mistake, told in one line."""
        return run_program(self.name, self._main, argv)

    def _main(self, argv: list[str]) -> int | None:
        if argv and argv[0] in self.raw:
            return self._module(argv[0]).run(argv[1:])
        parser = Parser(prog=self.name, description=self.description, epilog=self.epilog)
        commands = parser.add_subparsers(title="commands", metavar="COMMAND")
        if argv and argv[0] in self.commands:
            self._module(argv[0]).add_parser(commands)
        else:
            for name, (_, summary) in self.commands.items():
                commands.add_parser(name, help=summary)
        args, extra = parser.parse_known_args(argv)
        if not hasattr(args, "run"):
            parser.print_help()
            return 2
        if extra and not hasattr(args, "open_options"):
            parser.error(f"unknown argument {extra[0]}")
        args.extra = extra
        return args.run(args)

    def _module(self, command: str):
        return import_module(f"{self.package}.{self.commands[command][0]}")
