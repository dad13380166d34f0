"""What the command line programs share: one-line errors, common options, output that appears whole or not at all."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import hashlib
import itertools
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from next_scale.errors import UserError, first_line, printable

if TYPE_CHECKING:  # torch takes seconds to import: only what computes imports it
    import torch

    from next_scale.condition import ConditionSpec
    from next_scale.model import Generator
    from next_scale.sampling import SamplingOptions
    from next_scale.tokenizer import Tokenizer

MOST_SAMPLES = 100_000  # that one command makes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: of the disk, of the user, of one file
_MOST_PROMPT_BYTES = 1 << 24  # of a file of prompts
DEFAULT = "the model that comes with the package"  # what commands use where no checkpoint is named


# Programs


def run_program(program: str, main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run ``main(argv)`` and return the exit code: 2 after a user's mistake, told in one line on stderr; 130 after ^C.

    Args:
        program: name that the error line starts with.
        argv: arguments; those of the process by default.
    """
    code = 0
    with _terminated_cleanly():
        try:
            code = main(list(sys.argv[1:] if argv is None else argv)) or 0
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader left, as `head` does: not an error. The interpreter must not flush into the pipe again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            code = _complain(program, "interrupted", 130)
        except UserError as error:
            code = _complain(program, f"error: {error}", 2)
        except OSError as error:
            mend = "; free space or write elsewhere" if error.errno in _FULL else ""
            code = _complain(program, f"error: {error.filename or 'output'}: {error.strerror or error}{mend}", 2)
        except (MemoryError, RuntimeError) as error:
            # torch.OutOfMemoryError, named without importing torch
            if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
                raise
            code = _complain(program, "error: out of memory; lower --batch-size or give a shorter input", 2)
    return code


def _complain(program: str, message: str, code: int) -> int:
    print(printable(f"{program}: {' '.join(message.split())}"), file=sys.stderr)
    return code


@contextmanager
def _terminated_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that what is half written is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fills paragraphs to the width of the terminal and leaves those with indented lines, such as examples, alone."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=min(100, shutil.get_terminal_size().columns - 2))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        filled = (p if "\n  " in p else textwrap.fill(" ".join(p.split()), width) for p in paragraphs)
        return "\n\n".join(filled)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError` and whose help keeps the line breaks of examples."""

    def __init__(self, *args, **options):
        super().__init__(*args, allow_abbrev=False, formatter_class=_HelpFormatter, **options)

    def error(self, message: str) -> None:
        raise UserError(f"{message}; see {self.prog} --help")


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument type: a whole number from `least` to `most`."""
    limits = f"{least} or more" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, {limits}, got '{text}'") from None
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"must be {limits}, got {number}")
        return number

    return parse


def real_number(above: float, most: float) -> Callable[[str], float]:
    """An argument type: a number above `above`, up to `most`."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not above < number <= most:
            raise argparse.ArgumentTypeError(f"must be a number above {above:g}, up to {most:g}, got '{text}'")
        return number

    return parse


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr where that is a terminal, and nothing elsewhere; yields a function that advances it."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


# Models


def add_model_options(parser: argparse.ArgumentParser, default: str = DEFAULT, batched: bool = True) -> None:
    """``--checkpoint``, ``--device`` and ``--batch-size``.

    Args:
        default: says which checkpoint is used without the option.
        batched: whether there may be several samples to compute at once; else there is no ``--batch-size``.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint", metavar="PATH", help=f"folder, .safetensors file, or hub id owner/name (default: {default})"
    )
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: auto, a GPU where there is one)"
    )
    if batched:
        group.add_argument(
            "--batch-size",
            type=whole_number(1),
            default=16,
            metavar="N",
            help="computed at once (default: %(default)s)",
        )
    else:
        parser.set_defaults(batch_size=1)


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where it works and the CPU elsewhere.

    Raises:
        UserError: no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"the device '{name}' does not work here ({first_line(error)}); use --device cpu") from error
    return device


def shipped_or(given: str | None, shipped: Path, recipe: str) -> str:
    """The checkpoint that was given, or the shipped one.

    Raises:
        UserError: neither is there; the message names the recipe to train one by.
    """
    if given is not None:
        return given
    if not (shipped / "model.safetensors").is_file():
        raise UserError(
            f"no model came with this installation ({shipped} is missing); train one as {recipe} says and name it "
            "with --checkpoint"
        )
    return str(shipped)


def load_model(
    source: str | Path, device: str, elsewhere: Mapping[str, str] = MappingProxyType({})
) -> Tokenizer | Generator:
    """Load a checkpoint onto the device of that name.

    Args:
        elsewhere: autoencoder -> the program that its checkpoints are for, where that is another one.

    Raises:
        UserError: either does not work, or the checkpoint is for another program.
    """
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries would be many lines, ours is one
    from next_scale.checkpoint import autoencoder_name, from_pretrained

    place = resolve_device(device)
    if program := elsewhere.get(autoencoder_name(source)):
        raise UserError(f"{source} is a checkpoint for {program}; use {program}, or name another checkpoint")
    return from_pretrained(source, place)


def as_generator(model: Tokenizer | Generator, source: str | Path) -> Generator:
    """The model itself. Raises UserError where it is a tokenizer only."""
    from next_scale.model import Generator

    if not isinstance(model, Generator):
        raise UserError(f"{source} holds a tokenizer only, which cannot generate; give a next-scale checkpoint")
    return model


def as_tokenizer(model: Tokenizer | Generator) -> Tokenizer:
    """The tokenizer of a model of either kind."""
    from next_scale.model import tokenizer_of

    return tokenizer_of(model)


# Sampling


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """``--seed`` and the fields of `SamplingOptions`; those not given are the checkpoint's own."""
    group = parser.add_argument_group("sampling (defaults: those stored in the checkpoint)")
    group.add_argument("--seed", type=whole_number(0), default=0, help="same seed, same result (default: %(default)s)")
    group.add_argument("--cfg", type=float, metavar="T", help="classifier-free guidance strength; 0 is off")
    group.add_argument(
        "--cfg-ramp",
        action=argparse.BooleanOptionalAction,
        help="let guidance grow from 0 at the coarsest scale to T at the finest, or use T throughout",
    )
    group.add_argument(
        "--cfg-scales", type=int, metavar="N", help="guide the N coarsest scales only, which is faster; 0 is all"
    )
    group.add_argument("--temperature", type=float, metavar="X", help="above 1 more varied, 0 the most likely token")
    group.add_argument("--top-k", type=int, metavar="K", help="draw among the K most likely tokens; 0 is all")
    group.add_argument("--top-p", type=float, metavar="P", help="draw among tokens of joint probability P; 0 is all")
    group.add_argument(
        "--smooth",
        action=argparse.BooleanOptionalAction,
        help="mix codes instead of drawing one, the less the finer the scale: smoother to the eye, less varied",
    )


def add_int8_option(parser: argparse.ArgumentParser) -> None:
    """``--int8``, for :meth:`next_scale.model.Generator.pack`."""
    parser.add_argument(
        "--int8",
        action="store_true",
        help="compute in 8-bit integers: on the CPU faster and in less memory, at the cost of slightly other results",
    )


def sampling_options(args: argparse.Namespace, base: SamplingOptions) -> SamplingOptions:
    """`base` with what the user gave in its place. Raises UserError for a value out of range."""
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(base)}
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def sample_seed(seed: int, index: int) -> int:
    """Seed of sample `index` under the user's `seed`: 63 bits of a hash, so that neighbouring seeds share nothing."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "big") >> 1


# Conditions


def add_condition_options(parser: argparse.ArgumentParser, fields: Mapping[str, str]) -> None:
    """An option a field (name -> help), and ``--condition FIELD=VALUE`` for fields that only a checkpoint knows."""
    group = parser.add_argument_group(
        "conditions", "Each may be left out, or given several values: --FIELD A B, or --FIELD A,B"
    )
    for name, text in fields.items():
        group.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar=name.upper(), help=text)
    group.add_argument(
        "--condition",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="any condition of the checkpoint; a field without an option above also works as --FIELD VALUE",
    )
    parser.set_defaults(named_fields=tuple(fields), open_options=parser)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """``--prompt`` and ``--prompt-file``, for :func:`requested_prompts`."""
    group = parser.add_argument_group(
        "words", "for models that take prompts; without --checkpoint, the shipped one that does is used"
    )
    group.add_argument(
        "--prompt", nargs="+", action="extend", default=[], metavar="TEXT", help="what to make, each prompt in quotes"
    )
    group.add_argument("--prompt-file", metavar="FILE", help="prompts, one a line, in UTF-8")


def requested_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts asked for, as they were given, each once.

    Raises:
        UserError: the file cannot be read, is no text, or holds no prompt, or too many.
    """
    from next_scale.files import check_readable

    prompts = list(args.prompt)
    if args.prompt_file is not None:
        path = Path(args.prompt_file)
        check_readable(path, "a file of prompts", "write a prompt a line into it")
        if path.stat().st_size > _MOST_PROMPT_BYTES:
            raise UserError(f"{path} is larger than {_MOST_PROMPT_BYTES:,} bytes: split it")
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no text in UTF-8 (byte {error.start}): save it as UTF-8") from error
        found = [line.strip("\r") for line in lines if line.strip()]
        if not found:
            raise UserError(f"{path} holds no prompt: write one a line into it")
        prompts += found
    if len(prompts) > MOST_SAMPLES:
        raise UserError(f"more than {MOST_SAMPLES:,} prompts; give fewer")
    return list(dict.fromkeys(prompts))


def requested_conditions(args: argparse.Namespace, spec: ConditionSpec) -> list[dict[str, int]]:
    """Every combination of the values asked for: field -> index in the spec, -1 where left out.

    Args:
        args: of a parser with `add_condition_options`; ``args.extra`` holds the arguments that it did not know.

    Raises:
        UserError: unknown option, field or value.
    """
    from next_scale.condition import NOT_GIVEN, encode_condition

    wanted: dict[str, list[str]] = {name: list(getattr(args, name)) for name in args.named_fields}
    for text in args.condition:
        field, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--condition takes FIELD=VALUE, got '{text}'; fields: {', '.join(spec) or 'none'}")
        wanted.setdefault(field, []).append(value)
    for field, values in _extra_fields(args, spec).items():
        wanted.setdefault(field, []).extend(values)
    choices = {name: [NOT_GIVEN] for name in spec}
    for field, texts in wanted.items():
        known = {str(value) for value in spec.get(field, ())}
        values = [part.strip() for text in texts for part in ([text] if text in known else text.split(","))]
        if values:
            indices = [encode_condition(spec, {field: value})[field] for value in values]
            choices[field] = list(dict.fromkeys(indices))
    return [dict(zip(choices, combination, strict=True)) for combination in itertools.product(*choices.values())]


def _extra_fields(args: argparse.Namespace, spec: ConditionSpec) -> dict[str, list[str]]:
    """Values of fields that have no option of their own, from what the parser did not know."""
    parser = Parser(add_help=False)
    fields = [name for name in spec if name not in args.named_fields and re.fullmatch(r"[A-Za-z][\w-]*", name)]
    for name in fields:
        parser.add_argument(f"--{name}", dest=name, nargs="+", action="extend", default=[])
    found, unknown = parser.parse_known_args(args.extra)
    if unknown:
        options = re.findall(r"--[\w-]+", args.open_options.format_usage()) + [f"--{name}" for name in fields]
        close = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        fields = ", ".join(spec) or "none"
        raise UserError(f"unknown argument {unknown[0]}; conditions of this checkpoint: {fields}{hint}")
    return vars(found)


def condition_values(spec: ConditionSpec, condition: Mapping[str, int]) -> dict[str, str | int]:
    """Indices back to values; fields left out are left out."""
    return {name: values[condition[name]] for name, values in spec.items() if condition[name] >= 0}


def condition_stem(spec: ConditionSpec, condition: Mapping[str, int]) -> str:
    """A file name that tells a condition, ``flute_p060_v080``: names as they are, numbers after the field's initial.

    Where there is one field only, its numbers follow its name: ``label207``.
    """
    from next_scale.condition import is_numeric

    initials = [name[:1] for name in spec if is_numeric(spec[name])] if len(spec) > 1 else []
    parts = []
    for name, value in condition_values(spec, condition).items():
        if isinstance(value, str):
            slug = re.sub(r"[^\w.+-]+", "-", value)[:60].strip("-.")
            alike = sum(re.sub(r"[^\w.+-]+", "-", other)[:60].strip("-.") == slug for other in spec[name])
            parts.append(slug if slug and alike == 1 else f"{slug}{condition[name]}")
        else:
            prefix = re.sub(r"\W+", "-", name[:1] if initials.count(name[:1]) == 1 else name[:60])
            parts.append(f"{prefix}{value:03}")
    return "_".join(parts) or "any"


# Output


class Outputs:
    """Files that appear all together at the end, or not at all.

    Used as a context: whatever is asked for is written into hidden folders beside the targets, moved to them when the
    block ends well, and removed otherwise, with the folders that were created for it::

        with Outputs() as outputs:
            outputs.folder("made")
            Path(outputs.file("made/a.txt")).write_text("a")

    Raises:
        UserError: on a target that cannot be written, a full disk, or any `OSError` within the block.
    """

    def __init__(self) -> None:
        self._scratch: dict[Path, Path] = {}  # folder -> hidden folder inside it
        self._moves: dict[Path, Path] = {}  # target -> where it is written
        self._created: list[Path] = []

    def __enter__(self) -> Outputs:
        return self

    def folder(self, path: str | Path) -> Path:
        """Create a folder, and the folders above it, where missing."""
        path = Path(path)
        missing = list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
        try:
            for folder in reversed(missing):
                folder.mkdir()
                self._created.append(folder)
        except OSError as error:
            raise _cannot_write(path, error) from error
        if not path.is_dir():
            raise UserError(f"{path} is a file; name a folder to write into")
        return path

    def file(self, target: str | Path) -> Path:
        """Where to write what shall become `target`. Its folder must exist."""
        target = Path(target)
        if target.is_dir():
            raise UserError(f"{target} is a folder; name a file to write")
        if not target.parent.is_dir():
            raise UserError(f"there is no folder {target.parent}; create it or write elsewhere")
        if target in self._moves:
            raise UserError(f"two outputs would be written to {target}; give them different names")
        try:
            if target.parent not in self._scratch:
                self._scratch[target.parent] = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
        except OSError as error:
            raise _cannot_write(target.parent, error) from error
        self._moves[target] = self._scratch[target.parent] / target.name
        return self._moves[target]

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        done = False
        try:
            if error is None:
                self._move()
                done = True
            elif isinstance(error, UserError):
                raise UserError(self._renamed(str(error))) from error
            elif isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise _cannot_write(self._renamed(str(error.filename or "the output")), error) from error
        finally:
            for scratch in self._scratch.values():
                shutil.rmtree(scratch, ignore_errors=True)
            for folder in [] if done else reversed(self._created):
                try:
                    folder.rmdir()
                except OSError:  # somebody else has put something there
                    break

    def _move(self) -> None:
        moved: list[Path] = []
        try:
            for target, source in self._moves.items():
                os.replace(source, target)
                moved.append(target)
        except OSError as error:
            for done in moved:
                done.unlink(missing_ok=True)
            raise _cannot_write(target, error) from error

    def _renamed(self, message: str) -> str:
        """A message about the file that was meant, not about where it is written first."""
        for folder, scratch in self._scratch.items():
            message = message.replace(str(scratch), str(folder))
        return message


def _cannot_write(path: str | Path, error: OSError) -> UserError:
    if error.errno in _FULL:
        mend = "free space or write elsewhere"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        mend = "a part of this path is a file; name a folder"
    else:
        mend = "write to another folder"
    return UserError(f"cannot write {path}: {error.strerror or error}; {mend}")
