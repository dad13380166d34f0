"""Do models make what prompts say? Judged by the evaluators of the comparison, in trained and in other words.

    python -m recipes.prompts.accuracy notes --model rendered=runs/prompts/notes --model bytes=runs/prompts/bytes \
        --model labels=runs/prompts/labels --data data/notes --out runs/prompts/accuracy_notes

Every model is asked for the same things in the same words with the same noise. A model of labels has no prompt: it gets
what a look-up of the trained names, letter by letter, finds in it, and nothing where that finds nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from next_scale.cli import MOST_SAMPLES, Outputs, Parser, progress, run_program, sample_seed, whole_number
from next_scale.condition import collate_conditions, encode_condition
from next_scale.conditioning import PROMPT, clean_prompt, encode_prompt
from next_scale.conditioning.captions import Captions, misspell
from next_scale.errors import UserError
from next_scale.figure import new_figure

if TYPE_CHECKING:
    from torch import Tensor

    from next_scale.model import Generator

TYPOS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
ALL = "all"  # whether every concept that was said is right

_EPILOG = """examples:
  python -m recipes.prompts.accuracy fashion --model rendered=runs/prompts/fashion --model labels=runs/prompts/labels
  python -m recipes.prompts.accuracy notes --model rendered=runs/prompts/notes --data data/notes --count 600

writes accuracy.json and accuracy.png"""


class Ask(NamedTuple):
    """What is wanted: slot -> concept, and how it is said."""

    concepts: dict[str, str]
    text: str


def build_asks(
    captions: Captions, combinations: Sequence[dict[str, str]], phrasing: str, count: int, seed: int, typos: float = 0.0
) -> list[Ask]:
    """So many prompts that say all of their concepts, the combinations in turn; the same for the same seed."""
    asks = []
    for number in range(count):
        concepts = combinations[number % len(combinations)]
        generator = torch.Generator().manual_seed(sample_seed(seed, number) % 2**63)
        text = captions.caption(concepts, phrasing, generator, complete=True)
        asks.append(Ask(concepts, misspell(text, typos, generator)))
    return asks


def condition_of(model: Generator, captions: Captions, ask: Ask) -> dict[str, int | Tensor]:
    """A model's condition for a prompt: its words, or the labels that are found in them.

    A misspelt prompt that has grown too long for a model is cut: it is told what fits.
    """
    if model.words is None:
        return encode_condition(model.condition_spec, captions.look_up(ask.text))
    text = clean_prompt(ask.text)
    while True:
        try:
            model.words.check(text)
            return {PROMPT: encode_prompt(text)}
        except UserError:
            if len(text) < 2:
                raise
            text = text[:-1].strip()


class Judge(ABC):
    """Opens models of a backend, and tells what their samples are: slot -> concept of each.

    Args:
        captions: of the data.
    """

    captions: Captions

    @abstractmethod
    def open(self, path: str, device: str) -> Generator:
        """The model of a checkpoint."""

    @abstractmethod
    def judge(self, samples: Tensor) -> dict[str, list[str]]:
        """Slot -> concept of each sample, (N, ...)."""

    def of_real(self) -> dict[str, float]:
        """How often the judge is right of real held-out samples; empty where none are at hand."""
        return {}


class FashionJudge(Judge):
    """The class of an image, by the shipped evaluator or that of a folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        from image_var.data.captions import FashionCaptions
        from image_var.evaluator import SHIPPED, load_evaluator

        self.captions = FashionCaptions()
        self.evaluator = load_evaluator(args.evaluator or SHIPPED)

    def open(self, path: str, device: str) -> Generator:
        from image_var.cli.models import open_generator

        return open_generator(path, device)

    def judge(self, samples: Tensor) -> dict[str, list[str]]:
        found = self.evaluator.judge(samples.cpu())
        return {"label": [self.evaluator.labels[index] for index in found.label.tolist()]}


class NotesJudge(Judge):
    """Family and pitch register by the shipped evaluator; loudness by a clip's level.

    The evaluator hears clips at one level. How loud a note is among those of its family is told by the nearest mean
    level of real training notes of that family at each loudness; how often that is right of real notes, `of_real` says.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from audio_var.data.captions import NoteCaptions
        from audio_var.data.notes import Notes
        from audio_var.evaluator import SHIPPED, load_evaluator

        self.captions = NoteCaptions(held_out=args.held_out)
        self.evaluator = load_evaluator(args.evaluator or SHIPPED)
        if not Path(args.data, "manifest.json").is_file():
            raise UserError(f"there are no notes in {args.data}: name the folder of the Notes set with --data")
        self.levels = self._levels(Notes(args.data, "train"))
        self.real = Notes(args.data, "test")

    def open(self, path: str, device: str) -> Generator:
        from audio_var.cli.models import open_generator

        return open_generator(path, device)

    def _levels(self, notes) -> dict[str, dict[str, float]]:
        """Family -> loudness -> mean level of at most a few hundred notes each, in dB."""
        found: dict[str, dict[str, list[float]]] = {}
        for concepts, sample in self._some(notes, 4000):
            found.setdefault(concepts["family"], {}).setdefault(concepts["loudness"], []).append(_level(sample))
        return {f: {name: sum(v) / len(v) for name, v in levels.items()} for f, levels in found.items()}

    def _some(self, notes, most: int) -> Iterator[tuple[dict[str, str], Tensor]]:
        """What is said of at most so many notes, and their sound; at random, for velocities take turns in the set."""
        for index in torch.randperm(len(notes), generator=torch.Generator().manual_seed(0))[:most].tolist():
            item = notes[index]
            values = {name: notes.condition_spec[name][i] for name, i in item["condition"].items()}
            yield self.captions.concepts(values), item["sample"]

    def of_real(self) -> dict[str, float]:
        some = list(self._some(self.real, 1000))
        asks = [Ask(concepts, "") for concepts, _ in some]
        return score(asks, self.judge(torch.stack([sample for _, sample in some]))) if some else {}

    def judge(self, samples: Tensor) -> dict[str, list[str]]:
        from audio_var.data.captions import REGISTERS

        found = self.evaluator.judge(samples.cpu())
        families = [self.evaluator.labels[index] for index in found.label.tolist()]
        pitches = [self.evaluator.pitches[index] for index in found.pitch.tolist()]
        loudness = []
        for family, sample in zip(families, samples.cpu(), strict=True):
            level, means = _level(sample), self.levels.get(family, {})
            loudness.append(min(means, key=lambda name: abs(means[name] - level), default=""))
        registers = [next(name for name, range_ in REGISTERS.items() if pitch in range_) for pitch in pitches]
        return {"family": families, "register": registers, "loudness": loudness}


def _level(sample: Tensor) -> float:
    """Of the loudest 64 ms of a clip (1, T) at 16 kHz, in dB."""
    power = sample[0].unfold(0, min(1024, sample.shape[1]), 512).square().mean(1).amax()
    return 10 * math.log10(float(power) + 1e-10)


JUDGES: Mapping[str, type[Judge]] = {"fashion": FashionJudge, "notes": NotesJudge}


def score(asks: Sequence[Ask], heard: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Shares of the samples that are what was asked for: slot -> share, and "all"."""
    hits = {slot: [ask.concepts[slot] == found for ask, found in zip(asks, heard[slot], strict=True)] for slot in heard}
    hits[ALL] = [all(row) for row in zip(*hits.values(), strict=True)]
    return {slot: sum(row) / len(row) for slot, row in hits.items()}


def measure(model: Generator, judge: Judge, asks: Sequence[Ask], seed: int, batch: int, advance) -> dict[str, float]:
    """Generate one sample an ask, and score them."""
    made = []
    for start in range(0, len(asks), batch):
        part = asks[start : start + batch]
        rows = [condition_of(model, judge.captions, ask) for ask in part]
        condition = collate_conditions(rows, model.condition_spec, model.vectors)
        seeds = [sample_seed(seed, start + number) for number in range(len(part))]
        made.append(model.generate(condition, seeds)[0].cpu())
        advance(len(part))
    return score(asks, judge.judge(torch.cat(made)))


def tests_of(captions: Captions, count: int, seed: int) -> dict[str, list[Ask]]:
    """Name -> prompts: trained phrasing, held-out sentences and names, and unseen combinations where there are any."""
    trained, unseen = captions.combinations(held_out=False), captions.combinations(held_out=True)
    tests = {
        "trained": build_asks(captions, trained, "trained", count, seed),
        "sentences": build_asks(captions, trained, "sentences", count, seed),
        "synonyms": build_asks(captions, trained, "synonyms", count, seed),
    }
    if unseen:
        tests["unseen combinations"] = build_asks(captions, unseen, "trained", count, seed)
    return tests


def draw(path: str | Path, result: Mapping) -> None:
    """One figure: accuracy by test on the left, under typos on the right, with standard errors."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    count, models = result["count"], result["models"]

    def error(share: float) -> float:
        return math.sqrt(share * (1 - share) / count)

    width = 0.8 / len(models)
    for place, (name, found) in enumerate(models.items()):
        shares = [test[ALL] for test in found["tests"].values()]
        at = [x - 0.4 + width * (place + 0.5) for x in range(len(shares))]
        left.bar(at, shares, width, yerr=[error(share) for share in shares], label=name)
        shares = [test[ALL] for test in found["typos"]]
        right.errorbar(result["typos"], shares, [error(share) for share in shares], marker="o", capsize=2, label=name)
    left.set_xticks(range(len(found["tests"])), [test.replace(" ", "\n") for test in found["tests"]])
    left.set(ylim=(0, 1), ylabel="samples that are what was asked for", title=f"{count} prompts each")
    right.set(ylim=(0, 1), xlabel="share of letters misspelt", title="trained phrasing with typos")
    right.legend()
    figure.savefig(path, format="png")


def run(args: argparse.Namespace) -> None:
    """Measure, write, and print a table."""
    paths = dict(_named(text) for text in args.model)
    if len(paths) < len(args.model):
        raise UserError("two models have one name: give each its own, NAME=CHECKPOINT")
    judge = JUDGES[args.data_set](args)
    tests = tests_of(judge.captions, args.count, args.seed)
    trained = judge.captions.combinations(held_out=False)
    typos = [build_asks(judge.captions, trained, "trained", args.count, args.seed, share) for share in args.typos]
    result = {
        "data_set": args.data_set, "count": args.count, "seed": args.seed, "typos": list(args.typos),
        "of_real": judge.of_real(), "models": {},
    }  # fmt: skip
    models = {name: judge.open(path, args.device) for name, path in paths.items()}
    for name, model in models.items():
        if model.words is None and set(model.condition_spec) != set(judge.captions.spec):
            raise UserError(
                f"{paths[name]} knows the labels {', '.join(model.condition_spec) or 'none'}, and prompts speak of "
                f"{', '.join(judge.captions.spec)}: train one with data.captions.form labels"
            )
    out = Path(args.out)
    with Outputs() as outputs, progress("measuring", len(models) * (len(tests) + len(typos)) * args.count) as advance:
        outputs.folder(out)
        for name, model in models.items():
            model.pack()

            def of(asks: Sequence[Ask], model: Generator = model) -> dict[str, float]:
                return measure(model, judge, asks, args.seed, args.batch_size, advance)

            found = {test: of(asks) for test, asks in tests.items()}
            kind = "labels" if model.words is None else model.words.kind
            curve = [found["trained"] if asks == tests["trained"] else of(asks) for asks in typos]
            result["models"][name] = {"checkpoint": paths[name], "kind": kind, "tests": found, "typos": curve}
        outputs.file(out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(outputs.file(out / "accuracy.png"), result)
    print(table(result))
    print(f"accuracy.json and accuracy.png in {out}")


def table(result: Mapping) -> str:
    """Markdown: a row a model and test, a column a slot."""
    first = next(iter(result["models"].values()))
    slots = list(first["tests"]["trained"])
    lines = [f"| model | prompts | {' | '.join(slots)} |", "|---" * (len(slots) + 2) + "|"]
    if result["of_real"]:
        cells = " | ".join(f"{result['of_real'][slot]:.1%}" for slot in slots)
        lines.append(f"| (the judge) | real notes, held out | {cells} |")
    for name, found in result["models"].items():
        rows = dict(found["tests"])
        rows |= {f"{share:.0%} typos": test for share, test in zip(result["typos"], found["typos"], strict=True)}
        for test, shares in rows.items():
            lines.append(f"| {name} | {test} | {' | '.join(f'{shares[slot]:.1%}' for slot in slots)} |")
    return "\n".join(lines)


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"--model takes NAME=CHECKPOINT, got '{text}'")
    return name, path


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 2 after a mistake, told in one line."""

    def parse(argv: list[str]) -> None:
        parser = Parser(prog="python -m recipes.prompts.accuracy", description=__doc__, epilog=_EPILOG)
        parser.add_argument("data_set", choices=list(JUDGES), help="what the models were trained on")
        parser.add_argument(
            "--model", action="append", required=True, metavar="NAME=CHECKPOINT", help="one a model, each with a name"
        )
        parser.add_argument("--out", default="runs/prompts/accuracy", metavar="FOLDER", help="default: %(default)s")
        parser.add_argument(
            "--count", type=whole_number(1, MOST_SAMPLES), default=300, metavar="N", help="prompts a test (300)"
        )
        parser.add_argument(
            "--typos", type=_share, nargs="+", default=list(TYPOS), metavar="P", help="0 to 0.3 in steps"
        )
        parser.add_argument("--held-out", type=_share, default=0.1, help="share of combinations that training left out")
        parser.add_argument("--data", default="samples/demo_notes", help="notes whose levels tell soft from loud")
        parser.add_argument("--evaluator", metavar="FOLDER", help="default: the one that comes with the package")
        parser.add_argument("--seed", type=whole_number(0), default=0)
        parser.add_argument("--batch-size", type=whole_number(1), default=50, metavar="N")
        parser.add_argument("--device", default="auto")
        run(parser.parse_args(argv))

    return run_program("accuracy", parse, argv)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, got '{text}'")
    return share


if __name__ == "__main__":
    sys.exit(main())
