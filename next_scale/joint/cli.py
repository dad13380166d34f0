"""The command `next-scale joint`: train a model of text and other kinds, and let it say and draw."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from next_scale.cli import (
    MOST_SAMPLES,
    Outputs,
    add_model_options,
    add_sampling_options,
    resolve_device,
    sample_seed,
    sampling_options,
    whole_number,
)
from next_scale.compare.modality import modality_class, modality_names, modality_packages
from next_scale.errors import UserError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from next_scale.commands.backend import Backend
    from next_scale.joint.generator import JointGenerator

TEXT = "text"

_DESCRIPTION = "One model for text and for the kinds of samples of all installed packages, as parts of one sequence."

_GENERATE = """Give a joint model some parts, and let it go on with others: words to a sample, a sample to words, a
sample to one of another kind. A part is given as KIND:VALUE, in the order in which the model learned them: text as it
is, any other kind as a file. Captions are printed, one a line, with escapes where they do not print; samples are
written."""

FIT_USAGE = """usage: next-scale joint fit --config RECIPE.yaml [--trainer.OPTION VALUE ...]
                            [--ckpt_path FILE] [--trust]

Train a joint model from a recipe, on tokens of trained tokenizers and on captions. Every value in the recipe, and every
option of Lightning's Trainer, can be set on the command line after it. recipes/multimodal/README.md explains recipes.

examples:
  next-scale joint fit --config recipes/multimodal/joint_debug.yaml
  next-scale joint fit --config recipes/multimodal/joint.yaml --trainer.max_steps 2000
  next-scale joint fit --config recipes/multimodal/joint.yaml --ckpt_path runs/multimodal/joint/checkpoints/last.ckpt

all options: next-scale joint fit --print_config"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``joint`` with ``generate`` and ``fit``."""
    joint = subparsers.add_parser("joint", description=_DESCRIPTION).add_subparsers(dest="what", required=True)
    kinds = modality_names()
    parser = joint.add_parser("generate", description=_GENERATE, epilog=_examples(kinds))
    parser.add_argument(
        "--from", dest="given", action="append", default=[], metavar="KIND:VALUE",
        help=f"a part that is given: text:WORDS, or KIND:FILE with a kind of {', '.join(kinds) or 'none installed'}; "
        "may be repeated; without any, the model begins by itself",
    )  # fmt: skip
    parser.add_argument(
        "--to", dest="wanted", action="append", required=True, metavar="KIND",
        help="a part to make; may be repeated, then each is made of all before it",
    )  # fmt: skip
    parser.add_argument(
        "--out", action="append", default=[], metavar="FILE",
        help="where to write, one for each part to make that is not text; of several samples NAME_000, NAME_001, ...",
    )  # fmt: skip
    parser.add_argument(
        "--count", type=whole_number(1, MOST_SAMPLES), default=1, metavar="N", help="samples (default: 1)"
    )
    parser.add_argument(
        "--max-seconds", type=whole_number(1), default=600, metavar="N", help="refuse longer files (default: 600)"
    )
    add_model_options(parser, "none: a joint model must be named")
    add_sampling_options(parser)
    parser.set_defaults(run=generate)
    joint.add_parser("fit", add_help=False)  # which reads its own arguments


def _examples(kinds: Sequence[str]) -> str:
    model = "next-scale joint generate --checkpoint runs/multimodal/joint"
    lines = []
    for kind in kinds:
        lines.append(f'{model} --from text:"WORDS" --to {kind} --out FILE')
        lines.append(f"{model} --from {kind}:FILE --to text")
    for kind, other in zip(kinds, kinds[1:], strict=False):
        lines += [f"{model} --from {a}:FILE --to {b} --out FILE" for a, b in ((kind, other), (other, kind))]
    return "examples:\n" + "\n".join(f"  {line}" for line in lines)


def fit(arguments: Sequence[str]) -> int:
    """Train by the recipe and options in `arguments`, those after ``fit``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(FIT_USAGE)
        return 0 if arguments else 2
    bring_modalities()
    from next_scale.joint.data import JointDataModule
    from next_scale.joint.training import JointModule, JointPreview
    from next_scale.recipe_cli import fit as fit_recipe

    links = [("data.layouts", "model.layouts")]
    fit_recipe("next-scale", JointModule, JointDataModule, JointPreview, arguments, links, packages=modality_packages())
    return 0


def bring_modalities() -> None:
    """Import what installed packages bring, so that checkpoints may name their autoencoders."""
    for name in modality_names():
        modality_class(name)


@dataclass(frozen=True)
class _Given:
    kind: str
    value: str


def generate(args: argparse.Namespace) -> int:
    """Draw what was asked for."""
    from next_scale.conditioning import clean_prompt

    prompt = [_given(text) for text in args.given]
    backends = {kind: modality_class(kind).backend() for kind in _kinds(prompt, args.wanted)}
    texts = {given: clean_prompt(given.value) for given in prompt if given.kind == TEXT}
    targets = _targets(args, backends)
    for given in prompt:
        if given.kind != TEXT:
            backends[given.kind].check(Path(given.value), args)
    if args.checkpoint is None:
        raise UserError("no joint model comes with this project: train one as recipes/multimodal says, and name it "
                        "with --checkpoint")  # fmt: skip
    model = _open(args.checkpoint, args.device)
    model.model.check([*(given.kind for given in prompt), *args.wanted])
    sampling = {kind: sampling_options(args, model.sampling[kind]) for kind in args.wanted}
    contents = [_read(given, texts, model, backends, args) for given in prompt]
    _write(model, prompt, contents, sampling, targets, backends, args)
    return 0


def _write(model, prompt, contents, sampling, targets, backends, args) -> None:
    seeds = [sample_seed(args.seed, number) for number in range(args.count)]
    said: list[str] = []
    with Outputs() as outputs:
        for start in range(0, args.count, args.batch_size):
            some = seeds[start : start + args.batch_size]
            filled = [
                model.fill(given.kind, _repeated(content, len(some)))
                for given, content in zip(prompt, contents, strict=True)
            ]
            remaining = iter(targets)
            for part in model.generate(filled, args.wanted, some, sampling):
                if part.name == TEXT:
                    said += [printable(text) for text in part.content]
                    continue
                target, backend = next(remaining), backends[part.name]
                for number, sample in enumerate(part.content.cpu(), start):
                    path = _numbered(target, number, args.count)
                    backend.write(outputs.file(path), sample, model.tokenizers[part.name])
                    said.append(f"{printable(str(path))}: {backend.size_text(sample, model.tokenizers[part.name])}")
    print("\n".join(said))


def _repeated(content: Tensor | str, count: int) -> Tensor | list[str]:
    return [content] * count if isinstance(content, str) else content.expand(count, -1)


def _given(text: str) -> _Given:
    kind, colon, value = text.partition(":")
    if not colon or not kind:
        raise UserError(f"--from takes KIND:VALUE, such as text:\"a flute\"; got '{text}'")
    if not value:
        raise UserError(f"--from {kind}: gives nothing; write it after the colon")
    return _Given(kind, value)


def _kinds(prompt: Sequence[_Given], wanted: Sequence[str]) -> list[str]:
    """Kinds other than text that are asked for. Raises UserError for one that nobody brings."""
    known = [TEXT, *modality_names()]
    kinds = dict.fromkeys([*(given.kind for given in prompt), *wanted])
    for kind in kinds:
        if kind not in known:
            raise UserError(f"there is no kind '{kind}'; kinds are {', '.join(known)}")
    return [kind for kind in kinds if kind != TEXT]


def _targets(args: argparse.Namespace, backends: dict[str, Backend]) -> list[Path]:
    kinds = [kind for kind in args.wanted if kind != TEXT]
    if len(args.out) != len(kinds):
        wanted = f"--to {' and '.join(kinds)} needs {len(kinds)}" if kinds else "text is printed and needs none"
        raise UserError(f"{wanted} --out, got {len(args.out)}")
    for kind, name in zip(kinds, args.out, strict=True):
        backends[kind].check_name(Path(name))
    return [Path(name) for name in args.out]


def _numbered(target: Path, number: int, count: int) -> Path:
    return target if count == 1 else target.with_name(f"{target.stem}_{number:03}{target.suffix}")


def _open(source: str, device: str) -> JointGenerator:
    bring_modalities()
    from next_scale.checkpoint import from_pretrained
    from next_scale.joint.generator import JointGenerator

    model = from_pretrained(source, resolve_device(device))
    if not isinstance(model, JointGenerator):
        raise UserError(f"{source} is no joint model, but one of a single kind; use that kind's own program")
    return model


def _read(
    given: _Given, texts: dict[_Given, str], model: JointGenerator, backends: dict[str, Backend],
    args: argparse.Namespace,
) -> Tensor | str:  # fmt: skip
    """A text, or the tokens (1, L) of a file; of one longer than the model takes, those of its beginning."""
    if given.kind == TEXT:
        return texts[given]
    backend, tokenizer = backends[given.kind], model.tokenizers[given.kind]
    source = backend.read(Path(given.value), tokenizer, args)
    encoded = backend.encode(tokenizer, source, args.batch_size, lambda share: None)
    tokens = encoded.tokens[:1]
    if len(encoded.tokens) > 1:
        print(printable(f"next-scale: {given.value} is longer than the model reads: its beginning is taken"),
              file=sys.stderr)  # fmt: skip
    length = model.model.parts[given.kind].length
    if tokens.shape[1] != length:
        raise UserError(f"{given.value} has {tokens.shape[1]} tokens, and the model reads {length}: give another size")
    return tokens
