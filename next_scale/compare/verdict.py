"""What the records of a comparison say about its question, with intervals, and in sentences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from next_scale.statistics import Figures, Interval, log_ratio


class Place(NamedTuple):
    """Where predictors can be set beside each other: they share the tokenizer, so its tokens and its floor."""

    modality: str
    dimension: str
    schedule: str

    def __str__(self) -> str:
        return f"{self.modality} {self.dimension}, {self.schedule}"


class Setting(NamedTuple):
    """Size and matching mode of cells."""

    size: str
    match: str

    def __str__(self) -> str:
        return f"{self.size}, equal {'training FLOPs' if self.match == 'flops' else self.match}"


@dataclass(frozen=True)
class Metric:
    """A figure of a record, lower is better, with the draws of held-out samples that its interval rests on."""

    name: str
    part: str
    value: str
    draws: str


FRECHET = Metric("Frechet distance", "quality", "frechet", "frechet_resampled")
BITS = Metric("bits per sample", "likelihood", "bits_per_sample", "bits_resampled")


def place_of(record: dict) -> Place:
    """The place of a cell."""
    cell = record["cell"]
    return Place(cell["modality"], cell["dimension"], cell["schedule"])


def setting_of(record: dict) -> Setting:
    """The setting of a cell."""
    return Setting(record["cell"]["size"], record["cell"]["match"])


class Cells:
    """Finished cells of a comparison, by place, setting and predictor."""

    def __init__(self, records: Iterable[dict]):
        self.records = [record for record in records if "cell" in record and "error" not in record]
        self._seeds: dict[tuple[Place, Setting, str], list[dict]] = defaultdict(list)
        for record in self.records:
            self._seeds[place_of(record), setting_of(record), record["cell"]["predictor"]].append(record)

    def seeds(self, place: Place, setting: Setting, predictor: str) -> list[dict]:
        """The records of all seeds; none where there is no such cell."""
        return self._seeds.get((place, setting, predictor), [])

    @property
    def places(self) -> list[Place]:
        """All places, in the order of the records."""
        return list(dict.fromkeys(place for place, _, _ in self._seeds))

    def settings(self, place: Place | None = None) -> list[Setting]:
        """All settings, or those of a place."""
        return list(dict.fromkeys(setting for at, setting, _ in self._seeds if place in (None, at)))

    def predictors(self, place: Place | None = None, setting: Setting | None = None) -> list[str]:
        """All predictors, or those of a place and setting."""
        keys = self._seeds
        return list(dict.fromkeys(p for a, s, p in keys if place in (None, a) and setting in (None, s)))


def figures(records: Sequence[dict], metric: Metric) -> Figures | None:
    """The metric of the seeds of a cell; None where one of them lacks it."""
    parts = [record.get(metric.part) or {} for record in records]
    values = [part.get(metric.value) for part in parts]
    if not values or any(value is None for value in values):
        return None
    draws = [part.get(metric.draws) or [] for part in parts]
    return Figures.of(values, draws)


class Ratio(NamedTuple):
    """A comparison of one figure's ratios.

    Attributes:
        interval: of the logarithm of the ratio, 95%.
        seeds: the fewest of any predictor in it.
    """

    interval: Interval
    seeds: int

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0, and rests on more than one seed."""
        return self.seeds > 1 and not self.interval.low <= 0 <= self.interval.high


def ratio_of(pairs: Sequence[tuple[Figures, Figures]], weights: Sequence[float] | None = None) -> Ratio | None:
    """:func:`next_scale.statistics.log_ratio` with the number of seeds."""
    interval = log_ratio(pairs, weights)
    return interval and Ratio(interval, min(len(figures.values) for pair in pairs for figures in pair))


class Headline(NamedTuple):
    """log(R_2D / R_1D), R being next-scale's figure over next-token's; below 0 next-scale helps more in 2D."""

    metric: Metric
    setting: Setting
    at_2d: Place
    at_1d: Place
    r_2d: Ratio
    r_1d: Ratio
    ratio: Ratio
    each_seed: list[tuple[int, Ratio]]


def headlines(cells: Cells, metric: Metric) -> list[Headline]:
    """The headline ratio of every setting and pair of places, the one to trust most first.

    Pairs share a schedule's name, or the first word of it. Equal training FLOPs come before equal steps, more seeds
    before fewer, `matched` schedules before others, and places of different modalities before those of one.
    """
    found = []
    for setting in cells.settings():
        flat = [place for place in cells.places if place.dimension == "1d"]
        square = [place for place in cells.places if place.dimension == "2d"]
        for at_2d, at_1d in product(square, flat):
            if at_2d.schedule != at_1d.schedule:
                continue
            records = [
                cells.seeds(place, setting, name) for place in (at_2d, at_1d) for name in ("next_scale", "next_token")
            ]
            headline = _headline(records, metric, setting, at_2d, at_1d)
            if headline is not None:
                found.append(headline)
    return sorted(
        found,
        key=lambda h: (h.setting.match != "flops", -h.ratio.seeds, h.at_2d.schedule != "matched",
                       h.at_2d.modality == h.at_1d.modality),
    )  # fmt: skip


def _headline(
    records: list[list[dict]], metric: Metric, setting: Setting, at_2d: Place, at_1d: Place
) -> Headline | None:
    def ratios(records: list[list[dict]]) -> tuple[Ratio, Ratio, Ratio] | None:
        found = [figures(part, metric) for part in records]
        if any(part is None for part in found):
            return None
        two, one = tuple(found[:2]), tuple(found[2:])
        ratios = ratio_of([two]), ratio_of([one]), ratio_of([two, one])
        return None if None in ratios else ratios

    whole = ratios(records)
    if whole is None:
        return None
    shared = set.intersection(*[{record["cell"]["seed"] for record in part} for part in records])
    each = []
    for seed in sorted(shared):
        one = ratios([[record for record in part if record["cell"]["seed"] == seed] for part in records])
        if one is not None:
            each.append((seed, one[2]))
    r_2d, r_1d, ratio = whole
    return Headline(metric, setting, at_2d, at_1d, r_2d, r_1d, ratio, each)


# Sentences


def factor(ratio: Ratio) -> str:
    """A ratio with its interval, not as a logarithm: ``1.24 (1.10 to 1.40)``."""
    value, low, high = (math.exp(x) for x in ratio.interval)
    return f"{value:.4g} ({low:.4g} to {high:.4g})"


def signed(ratio: Ratio) -> str:
    """The logarithm of a ratio with its interval: ``-0.21 (-0.35 to -0.04)``."""
    value, low, high = ratio.interval
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def answer(headline: Headline | None) -> str:
    """The answer to the question in one sentence."""
    if headline is None:
        return (
            "The data do not decide: "
            "no setting has next-scale and next-token predictors in both one and two dimensions."
        )
    where = f"{headline.at_2d.modality} in 2D against {headline.at_1d.modality} in 1D"
    if headline.ratio.seeds < 2:
        return f"The data do not decide whether next-scale prediction helps more in 2D: there is one seed ({where})."
    if not headline.ratio.decided:
        return (
            f"The data do not decide whether next-scale prediction helps more in 2D than in 1D ({where}): "
            "the interval of the headline ratio has both answers in it."
        )
    more, less = ("2D", "1D") if headline.ratio.interval.value < 0 else ("1D", "2D")
    return f"By {headline.metric.name}, next-scale prediction helps more in {more} than in {less} here ({where})."


def helps(place: Place, ratio: Ratio, metric: Metric) -> str:
    """Whether next-scale is better than next-token at one place, in one sentence."""
    verdict = "next-scale and next-token are not told apart"
    if ratio.decided:
        verdict = f"next-scale is {'better' if ratio.interval.value < 0 else 'worse'} than next-token"
    where = f"{place.modality} in {place.dimension.upper()} ({place.schedule})"
    return f"{where}: {verdict}; next-scale's {metric.name} over next-token's is {factor(ratio)}."


def best_families(cells: Cells, metric: Metric = FRECHET) -> list[str]:
    """For every place and setting with several families: which has the lowest figure, and which it is not told from."""
    sentences = []
    for place in cells.places:
        for setting in cells.settings(place):
            found = {
                name: figures(cells.seeds(place, setting, name), metric) for name in cells.predictors(place, setting)
            }
            found = {name: value for name, value in found.items() if value is not None}
            if len(found) < 3:
                continue
            order = sorted(found, key=lambda name: found[name].values.mean())
            listed = ", ".join(f"{spoken(name)} {found[name].values.mean():.3g}" for name in order)
            ratio = ratio_of([(found[order[0]], found[order[1]])])
            sure = ratio is not None and not ratio.interval.low <= 0 <= ratio.interval.high
            apart = "apart by more than the held-out samples leave open" if sure else "not told apart by these samples"
            sentences.append(f"{place} ({setting}): {listed}. The first two are {apart}.")
    return sentences


def below_floor(cells: Cells, floors: dict[Place, float]) -> list[str]:
    """Pairs of predictors whose Frechet distances differ by less than that of the tokenizer's reconstructions."""
    sentences = []
    for place in cells.places:
        floor = floors.get(place)
        if floor is None:
            continue
        for setting in cells.settings(place):
            means = {}
            for name in cells.predictors(place, setting):
                found = figures(cells.seeds(place, setting, name), FRECHET)
                if found is not None:
                    means[name] = found.values.mean()
            names = sorted(means, key=means.get)
            close = [
                f"{spoken(a)} and {spoken(b)} ({means[b] - means[a]:.2g})"
                for i, a in enumerate(names) for b in names[i + 1 :] if means[b] - means[a] < floor
            ]  # fmt: skip
            if close:
                sentences.append(f"{place} ({setting}), floor {floor:.3g}: {', '.join(close)}.")
    return sentences


def spoken(name: str) -> str:
    """A name of a predictor for people."""
    return {"next_scale": "next-scale", "next_token": "next-token", "any_length": "next-scale of any length"}.get(
        name, name.replace("_", " ")
    )
