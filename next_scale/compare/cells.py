"""The plan of a comparison: one YAML file, read into typed values, and the cells that it asks for."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from next_scale.errors import UserError

_MOST_CELLS = 10_000  # of one group
_NAME = re.compile(r"[^\W_][\w.+-]{0,60}")  # no way out of the folder of results


@dataclass(frozen=True)
class TokenizerPlan:
    """How one tokenizer is made.

    Args:
        modality: name of a modality.
        dimension: of the latent.
        schedule: what the schedule is called, such as natural or matched.
        scales: the schedule itself, such as "1 2 4 8".
        autoencoder, objective: options of the modality's.
        quantizer: options of :class:`next_scale.quantizer.MultiScaleQuantizer`.
        training: options of :class:`next_scale.training.TokenizerModule`.
        steps, batch_size: of its training.
    """

    modality: str
    dimension: Literal["1d", "2d"]
    schedule: str
    scales: str
    autoencoder: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    quantizer: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    steps: int = 2000
    batch_size: int = 16


@dataclass(frozen=True)
class PredictorPlan:
    """A family of predictors and options of its class beside the size."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingPlan:
    """Training of the predictors: the same for all of them.

    Args:
        steps, batch_size, lr, warmup: of the optimizer.
        average: decay of the average of the weights.
        flops_of: predictor whose training FLOPs at `steps` steps all predictors get where FLOPs are matched.
    """

    steps: int = 2000
    batch_size: int = 32
    lr: float = 1e-3
    warmup: int = 100
    average: float = 0.998
    flops_of: str = "next_scale"


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured.

    Args:
        samples: generated samples, with the conditions of as many held-out ones.
        guidance: strengths to try; the one nearest to the validation samples is reported.
        batch_size: of generation and networks.
        runs: of each latency, of which the median is taken.
        shown: samples kept for people.
    """

    samples: int = 512
    guidance: list[float] = field(default_factory=lambda: [0.0, 1.0])
    batch_size: int = 64
    runs: int = 3
    shown: int = 4


@dataclass(frozen=True)
class CellGroup:
    """Cells as a product of their parts, each by name."""

    tokenizers: list[str]
    predictors: list[str]
    sizes: list[str]
    seeds: list[int]
    match: list[Literal["steps", "flops"]] = field(default_factory=lambda: ["steps"])


@dataclass(frozen=True)
class Cell:
    """One predictor on one tokenizer."""

    tokenizer: str
    predictor: str
    size: str
    seed: int
    match: str

    @property
    def id(self) -> str:
        """Its name in results and folders."""
        return f"{self.tokenizer}-{self.predictor}-{self.size}-s{self.seed}-{self.match}"


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    Args:
        data: modality -> options of its data.
        tokenizers, sizes, predictors: by name; a size holds width, depth and heads.
        cells: groups of cells; a cell that several ask for is one.
        training, evaluation: the same for all cells.
    """

    data: dict[str, dict[str, Any]]
    tokenizers: dict[str, TokenizerPlan]
    sizes: dict[str, dict[str, int]]
    predictors: dict[str, PredictorPlan]
    cells: list[CellGroup]
    training: TrainingPlan = field(default_factory=TrainingPlan)
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)

    def list_cells(self) -> list[Cell]:
        """All cells, in the order of the plan, each once.

        Raises:
            UserError: a group names what the plan does not have, or asks for more than 10,000 cells.
        """
        found: dict[Cell, None] = {}
        for group in self.cells:
            for names, known, what in (
                (group.tokenizers, self.tokenizers, "tokenizer"),
                (group.predictors, self.predictors, "predictor"),
                (group.sizes, self.sizes, "size"),
            ):
                for name in names:
                    if name not in known:
                        raise UserError(f"the plan has no {what} '{name}'; it has {', '.join(known)}")
            parts = group.tokenizers, group.predictors, group.sizes, group.seeds, group.match
            if math.prod(map(len, parts)) > _MOST_CELLS:
                raise UserError(f"a group of the plan asks for more than {_MOST_CELLS:,} cells: shorten its lists")
            found |= {Cell(*values): None for values in product(*parts)}
        return list(found)

    def tokenizer_key(self, name: str) -> str:
        """12 hex digits of all that a tokenizer depends on."""
        tokenizer = self.tokenizers[name]
        return _digest([asdict(tokenizer), self.data.get(tokenizer.modality, {})])

    def training_key(self, cell: Cell) -> str:
        """12 hex digits of all that a cell's trained model depends on."""
        return _digest(self._training_parts(cell))

    def cell_key(self, cell: Cell) -> str:
        """12 hex digits of all that a cell's result depends on: whoever changes the plan gets new results."""
        return _digest([*self._training_parts(cell), asdict(self.evaluation)])

    def _training_parts(self, cell: Cell) -> list:
        parts = [self.tokenizer_key(cell.tokenizer), asdict(self.predictors[cell.predictor]), self.sizes[cell.size]]
        parts += [asdict(cell), asdict(self.training)]
        if cell.match == "flops":
            parts.append(asdict(self.predictors[self.training.flops_of]))
        return parts


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def read_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: not there, no YAML, or a key or value that a plan cannot have, by name.
    """
    from jsonargparse import ArgumentParser

    from next_scale.yaml_limits import limit_yaml

    if not Path(path).is_file():
        raise UserError(f"there is no plan {path}: give a YAML file such as recipes/compare/debug.yaml")
    limit_yaml()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Plan)
    try:
        plan = parser.instantiate_classes(parser.parse_path(str(path)))
        plan = Plan(**vars(plan))
    except Exception as error:  # jsonargparse, and whatever it meets in values of the wrong kind
        raise UserError(f"{path} is no plan: {' '.join(str(error).split())[:300]}") from error
    for name in [*plan.data, *plan.tokenizers, *plan.sizes, *plan.predictors]:
        if not _NAME.fullmatch(str(name)) or not isinstance(name, str):
            raise UserError(f"{path}: {str(name)[:60]!r} names a folder of results: use letters, digits and _ + - .")
    plan.list_cells()
    if plan.training.flops_of not in plan.predictors:
        raise UserError(
            f"{path}: training.flops_of names '{plan.training.flops_of}', which is no predictor of the plan"
        )
    return plan
