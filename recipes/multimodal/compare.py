"""One model of text, sounds and pictures beside models of less, at equal total FLOPs: where does sharing help?

    python -m recipes.multimodal.compare --plan recipes/multimodal/compare.yaml --out runs/multimodal/compare

Three ways to spend one budget of training FLOPs: all of it on a joint model; on three models of two kinds each, a third
of the joint model's steps each, for that is what the joint model spends on their directions; on three models of one
kind each, in proportion to the places that their kind has in the joint model's sequences. All have the same blocks.
Interrupt it whenever you like: run it again, and it goes on where it was. Writes results.json and table.md.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from next_scale.cli import Outputs, Parser, progress, run_program, sample_seed, whole_number
from next_scale.errors import UserError
from next_scale.joint.cli import bring_modalities
from next_scale.joint.parts import TEXT, parse_layout
from next_scale.recipe_cli import check_precision

DONE = "trained.json"
MEASURED = "measured.json"
JOINT = "joint"

# model -> its streams. Layouts of one kind hold what the joint model sees of it.
MODELS = {
    JOINT: ("text audio", "audio text", "text image", "image text", "audio image", "image audio"),
    "text+audio": ("text audio", "audio text"),
    "text+image": ("text image", "image text"),
    "audio+image": ("audio image", "image audio"),
    "text": ("text/notes", "text/clothes"),
    "audio": ("audio",),
    "image": ("image/clothes", "image/icons"),
}
SETS = {"text/notes": "notes", "text/clothes": "clothes", "audio": "notes", "image/clothes": "clothes",
        "image/icons": "icons"}  # fmt: skip
# what a likelihood is called: stream of the joint and the two-kind models, place of the part, stream of the others
LIKELIHOODS = {
    "text of notes": ("text audio", 0, "text/notes"),
    "text of clothes": ("text image", 0, "text/clothes"),
    "audio": ("audio text", 0, "audio"),
    "image of clothes": ("image text", 0, "image/clothes"),
    "image of icons": ("image audio", 0, "image/icons"),
    "audio after text": ("text audio", 1, None),
    "text after audio": ("audio text", 1, None),
    "image after text": ("text image", 1, None),
    "text after image": ("image text", 1, None),
    "image after audio": ("audio image", 1, None),
    "audio after image": ("image audio", 1, None),
}


@dataclass(frozen=True)
class Plan:
    """What is compared; fields as in ``compare.yaml``."""

    recipe: str
    seeds: list[int]
    steps: int
    average: float = 0.995
    rows: int = 512
    drawn: int = 240
    models: list[str] = field(default_factory=lambda: list(MODELS))
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


def read_plan(path: str | Path) -> tuple[Plan, dict]:
    """A plan, and the recipe that it changes. Raises UserError where either cannot be read."""
    try:
        plan = Plan(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        if unknown := set(plan.models) - set(MODELS):
            raise UserError(f"{path}: there is no model '{min(unknown)}'; models are {', '.join(MODELS)}")
        recipe = yaml.safe_load(Path(plan.recipe).read_text(encoding="utf-8"))
        return plan, {"model": recipe["model"] | plan.model, "data": recipe["data"] | plan.data}
    except FileNotFoundError as error:
        raise UserError(f"there is no file {error.filename}: check the path") from None
    except (yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no plan of this comparison: {str(error).splitlines()[0]}") from error


def build_data(recipe: dict):
    """The recipe's data, with its tokens made."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    from next_scale.compare.modality import modality_packages
    from next_scale.joint.data import JointDataModule
    from next_scale.recipe_cli import TRUSTED

    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*modality_packages(), *TRUSTED])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(JointDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": recipe["data"]})).data
    data.prepare_data()
    return data


def data_of(model: str, data, seed: int):
    """A model's streams of the data."""
    named = {name: SETS.get(name) or " ".join(data.streams[name]) for name in MODELS[model]}
    return data.only(named, seed)


def step_flops(module, data) -> dict[str, float]:
    """Operations of one step of training on each stream, forwards and backwards."""
    from next_scale.flops import count_flops

    found = {}
    for name in data.streams:
        stream = data.stream(name, "train")
        sequence = module.sequence(stream.batch(stream.rows[: data.batch_size]))
        found[name] = count_flops(lambda sequence=sequence: module.joint.train().loss(sequence))
    return found


def budget_of(model: str, joint: Mapping[str, float], places: Mapping[str, float], steps: int) -> float:
    """FLOPs of a model's training.

    Args:
        joint: of one of the joint model's steps, by stream.
        places: that each kind has in the joint model's sequences.
        steps: of the joint model.
    """
    each = steps / len(joint)
    if model == JOINT:
        return each * sum(joint.values())
    if "+" in model:
        return each * sum(joint[stream] for stream in MODELS[model])
    return each * sum(joint.values()) * places[model] / sum(places.values())


def places_of(joint) -> dict[str, float]:
    """Places that each kind has in all layouts of a joint model together."""
    found: dict[str, float] = {}
    for layout in joint.layouts:
        for i, name in enumerate(layout):
            found[name] = found.get(name, 0) + joint.parts[name].places(i + 1 < len(layout))
    return found


def train(plan: Plan, recipe: dict, every, model: str, seed: int, folder: Path, precision: str) -> dict:
    """Train one model, or find it trained; what it took."""
    if (folder / DONE).is_file():
        return json.loads((folder / DONE).read_text())
    import lightning as L
    from lightning.pytorch.callbacks import LambdaCallback

    from next_scale.checkpoint import save_pretrained
    from next_scale.compare.training import trainer_for
    from next_scale.joint.training import JointModule

    def build(name: str):
        data = data_of(name, every, seed)
        L.seed_everything(seed, verbose=False)
        return JointModule(layouts=data.layouts, **recipe["model"]), data

    module, data = build(JOINT)
    joint, places = step_flops(module, data), places_of(module.joint)
    if model != JOINT:
        module, data = build(model)
    own = joint if model == JOINT else step_flops(module, data)
    budget = budget_of(model, joint, places, plan.steps)
    steps = max(1, round(budget / statistics.mean(own.values())))
    L.seed_everything(seed, verbose=False)
    folder.mkdir(parents=True, exist_ok=True)
    with progress(f"{model}, seed {seed}", steps) as advance:
        told = LambdaCallback(on_train_batch_end=lambda *_: advance(1))
        trainer, last = trainer_for(folder, steps, plan.average, "auto", [told], precision=precision)
        start = time.perf_counter()
        trainer.fit(module, data, ckpt_path=last)
        seconds = time.perf_counter() - start
    save_pretrained(module.model.cpu(), folder / "model", torch.float16)
    trained = {"model": model, "seed": seed, "steps": steps, "flops": steps * statistics.mean(own.values()),
               "seconds": seconds, "resumed": last is not None, "precision": precision,
               "parameters": sum(p.numel() for p in module.joint.parameters())}  # fmt: skip
    _keep(folder / DONE, trained)
    return trained


def _keep(path: Path, found: dict) -> None:
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(found))
    os.replace(part, path)


# Measures


@torch.inference_mode()
def bits_of(generator, data, rows: int) -> dict[str, list[float]]:
    """Stream -> mean bits of each of its parts, over held-out sequences, the same for every model."""
    found = {}
    for name in data.streams:
        stream = data.stream(name, "test")
        total, count = 0.0, 0
        for start in range(0, rows, 32):
            some = [stream.rows[i * len(stream.rows) // rows] for i in range(start, min(start + 32, rows))]
            batch = stream.batch(some, torch.Generator().manual_seed(start))
            last = len(batch.layout) - 1
            sequence = [
                generator.fill(part, content, place < last)
                for place, (part, content) in enumerate(zip(batch.layout, batch.contents, strict=True))
            ]
            total = total - generator.model.log_prob(sequence).sum(0) / math.log(2)
            count += len(some)
        found[name] = (total / count).tolist()
    return found


@cache
def judges() -> Judges:
    """Loaded once."""
    return Judges()


class Judges:
    """What samples are of, by the shipped evaluators; icons by the drawn one that is most like them."""

    def __init__(self) -> None:
        from audio_var.evaluator import load_evaluator as hears
        from image_var.data.icons import LABELS, Icons
        from image_var.evaluator import load_evaluator as sees

        self.hears, self.sees, self.icons = hears(), sees(), LABELS
        drawn = Icons("train", 40)
        self.shapes = outlines(torch.stack([drawn[i]["sample"] for i in range(len(drawn))]))  # labels in turn

    def family(self, samples: torch.Tensor) -> list[str]:
        return [self.hears.labels[i] for i in self.hears.judge(samples).label.tolist()]

    def clothes(self, samples: torch.Tensor) -> list[str]:
        return [self.sees.labels[i] for i in self.sees.judge(samples).label.tolist()]

    def icon(self, samples: torch.Tensor) -> list[str]:
        nearest = (outlines(samples) @ self.shapes.T).argmax(1) % len(self.icons)
        return [self.icons[i] for i in nearest.tolist()]


def outlines(samples: torch.Tensor) -> torch.Tensor:
    """What is drawn on pictures (N, 1, 32, 32), brought to one place and size: (N, 256), of unit length."""
    found = []
    for picture in samples[:, 0] + 1:
        rows, columns = (torch.nonzero((picture > 0.5).any(axis))[:, 0] for axis in (1, 0))
        box = picture
        if len(rows):
            box = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        found.append(F.interpolate(box[None, None], (16, 16), mode="bilinear", antialias=True).flatten())
    return F.normalize(torch.stack(found))


@torch.inference_mode()
def accuracies_of(generator, data, count: int) -> dict[str, float]:
    """Direction -> share of what was drawn that is of the right class; captions are right if their class word is."""
    found: dict[str, float] = {}
    for name in data.streams:
        layout = parse_layout(name)
        if len(layout) < 2:
            continue
        stream = data.stream(name, "test")
        hits, slots = [], {}
        for start in range(0, count, 16):
            rows = [stream.rows[i * len(stream.rows) // count] for i in range(start, min(start + 16, count))]
            batch = stream.batch(rows, torch.Generator().manual_seed(start))
            labels = [stream.sets[0].values[row]["label"] for row in rows]
            prompt = [generator.fill(layout[0], batch.contents[0])]
            seeds = [sample_seed(start, i) for i in range(len(rows))]
            (made,) = generator.generate(prompt, [layout[1]], seeds)
            if layout[1] == TEXT:
                captions = stream.spoken.captions
                for row, text in zip(rows, made.content, strict=True):
                    heard, meant = captions.look_up(text), captions.concepts(stream.sets[0].values[row])
                    hits.append(heard.get(_class(captions)) == meant[_class(captions)])
                    for slot in heard:
                        slots.setdefault(slot, []).append(heard[slot] == meant[slot])
                continue
            if layout[1] == "audio":
                judged = judges().family(made.content)
            else:
                judged = (judges().clothes if layout[0] == TEXT else judges().icon)(made.content)
            hits += [a == b for a, b in zip(judged, labels, strict=True)]
        found[f"{layout[0]} to {layout[1]}"] = sum(hits) / len(hits)
        for slot, right in slots.items():
            if len(slots) > 1:
                found[f"{layout[0]} to {layout[1]}: {slot}, where said"] = sum(right) / len(right)
    return found


def _class(captions) -> str:
    """The slot of the class word: the first."""
    return next(iter(captions.phrases.words))


def measure(plan: Plan, every, model: str, seed: int, folder: Path) -> dict:
    """What a trained model is worth, or what was found before."""
    if (folder / MEASURED).is_file():
        return json.loads((folder / MEASURED).read_text())
    from next_scale.checkpoint import from_pretrained

    generator = from_pretrained(folder / "model")
    data = data_of(model, every, seed)
    found = {
        "bits": bits_of(generator, data, plan.rows),
        "accuracy": accuracies_of(generator, data, plan.drawn),
    }
    _keep(folder / MEASURED, found)
    return found


# Tables


def rows_of(results: Sequence[dict]) -> list[dict]:
    """Measures with the values of the joint model and of the models of two kinds and of one, seed by seed.

    Of models that were not trained there are none.
    """
    of = {model: [] for model in MODELS}
    for result in sorted(results, key=lambda result: result["seed"]):
        of[result["model"]].append(result)
    rows = []

    def add(name: str, better: str, values: dict[str, list[float | None]]) -> None:
        rows.append({"measure": name, "better": better, **values})

    for name, (stream, place, alone) in LIKELIHOODS.items():
        pair = next(model for model in MODELS if "+" in model and stream in MODELS[model])
        single = next((model for model in MODELS if alone in MODELS[model]), None)
        add(f"{name}, bits", "low", {
            JOINT: [result["bits"][stream][place] for result in of[JOINT]],
            "two": [result["bits"][stream][place] for result in of[pair]],
            "one": [result["bits"][alone][0] for result in of[single]] if single else [],
        })  # fmt: skip
    names = {name for result in results for name in result["accuracy"]}
    for name in sorted(names):
        pair = next(model for model in MODELS if "+" in model and any(
            name.startswith(f"{a} to {b}") for a, b in map(parse_layout, MODELS[model])
        ))  # fmt: skip
        values = {key: [result["accuracy"].get(name) for result in of[model]]
                  for key, model in ((JOINT, JOINT), ("two", pair))}  # fmt: skip
        if all(value is not None for some in values.values() for value in some):  # a slot may never be said
            add(name, "high", values | {"one": []})
    return rows


def verdict(joint: Sequence[float], other: Sequence[float], better: str) -> str:
    """Whether sharing helps: the same way in every seed, and the mean difference above its standard error."""
    if not joint or not other:
        return ""
    sign = 1 if better == "high" else -1
    differences = [sign * (a - b) for a, b in zip(joint, other, strict=True)]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    if abs(mean) <= error or any(d * mean <= 0 for d in differences):
        return "no clear difference"
    return "helps" if mean > 0 else "hurts"


def table_of(plan: Plan, results: Sequence[dict], command: str) -> str:
    """The tables, in Markdown."""

    def cell(values: Sequence[float], better: str) -> str:
        if not values:
            return ""
        scale, digits = (100, 1) if better == "high" else (1, 1)
        text = f"{scale * statistics.mean(values):.{digits}f}"
        spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return text + (" %" if better == "high" else "") + spread

    lines = ["# Where sharing helps", "", f"`{command}`", ""]
    seeds = f"{len(plan.seeds)} seeds, mean and standard deviation" if len(plan.seeds) > 1 else "One seed"
    lines += [f"{seeds}. Bits are of a whole held-out sample ({plan.rows} a kind), accuracies of {plan.drawn} drawn. A "
              "verdict needs all seeds to agree and a mean difference above its standard error.", ""]  # fmt: skip
    lines += ["| | joint | models of two kinds | sharing | models of one kind | sharing |"]
    lines += ["|---|---:|---:|---|---:|---|"]
    for row in rows_of(results):
        better = row["better"]
        lines.append(
            f"| {row['measure']} | {cell(row[JOINT], better)} | {cell(row['two'], better)} | "
            f"{verdict(row[JOINT], row['two'], better)} | {cell(row['one'], better)} | "
            f"{verdict(row[JOINT], row['one'], better)} |"
        )
    lines += ["", "| model | steps | training PFLOPs | million parameters | seconds |", "|---|---:|---:|---:|---:|"]
    for model in plan.models:
        own = [result for result in results if result["model"] == model]
        mean = {key: statistics.mean(result[key] for result in own)
                for key in ("steps", "flops", "parameters", "seconds")}  # fmt: skip
        lines.append(f"| {model} | {mean['steps']:,.0f} | {mean['flops'] / 1e15:.3f} | "
                     f"{mean['parameters'] / 1e6:.2f} | {mean['seconds']:,.0f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Train, measure, and write the tables."""
    parser = Parser(prog="python -m recipes.multimodal.compare", description=__doc__.split("\n\n    python")[0])
    parser.add_argument("--plan", default="recipes/multimodal/compare.yaml", metavar="PLAN.yaml",
                        help="what to compare (default: %(default)s)")  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FOLDER", help="models and results, created if missing")
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", metavar="SEED",
                        help="only these of the plan's seeds, say, in a process each; then once without")  # fmt: skip
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"),
                        help="of training (default: %(default)s); bf16 needs a GPU or amx_bf16")  # fmt: skip
    args = parser.parse_args(argv)
    plan, recipe = read_plan(args.plan)
    if args.seeds:
        plan = replace(plan, seeds=args.seeds)
    check_precision(args.precision)
    out = Path(args.out)
    bring_modalities()
    data = build_data(recipe)
    results = []
    for seed in plan.seeds:
        for model in plan.models:
            folder = out / f"{model.replace('+', '_')}-{seed}"
            trained = train(plan, recipe, data, model, seed, folder, args.precision)
            results.append(trained | measure(plan, data, model, seed, folder))
            print(f"{model}, seed {seed}: {trained['steps']:,} steps in {trained['seconds']:,.0f} s", flush=True)
    command = f"python -m recipes.multimodal.compare --plan {args.plan} --out {args.out} --precision {args.precision}"
    with Outputs() as outputs:
        Path(outputs.file(out / "results.json")).write_text(json.dumps(results, indent=1) + "\n")
        Path(outputs.file(out / "table.md")).write_text(table_of(plan, results, command))
    print(out / "table.md")
    return 0


if __name__ == "__main__":
    sys.exit(run_program("recipes.multimodal.compare", main))
