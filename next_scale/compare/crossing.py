"""Dimension and modality told apart, where two modalities have been tried in both dimensions."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from next_scale.compare.verdict import Cells, Metric, Place, Ratio, Setting, figures, ratio_of


class Crossing(NamedTuple):
    """The effects of a two by two design on log R, R being next-scale's figure over next-token's.

    Attributes:
        modalities: a and b.
        ratios: of a in 2D, a in 1D, b in 2D, b in 1D.
        dimension: 2D minus 1D, the mean of both modalities; below 0 next-scale helps more in 2D, whatever is in it.
        modality: a minus b, the mean of both dimensions; below 0 next-scale helps more in a, whatever its dimension.
        interaction: half of what 2D adds in a more than in b.
    """

    metric: Metric
    setting: Setting
    schedule: str
    modalities: tuple[str, str]
    ratios: tuple[Ratio, Ratio, Ratio, Ratio]
    dimension: Ratio
    modality: Ratio
    interaction: Ratio


def crossings(cells: Cells, metric: Metric) -> list[Crossing]:
    """All two by two designs of next-scale against next-token in the cells, settings with more seeds first."""
    found = []
    schedules = list(dict.fromkeys(place.schedule for place in cells.places))
    modalities = list(dict.fromkeys(place.modality for place in cells.places))
    for setting in cells.settings():
        for schedule in schedules:
            for a, b in combinations(modalities, 2):
                places = [Place(modality, dimension, schedule) for modality in (a, b) for dimension in ("2d", "1d")]
                crossing = _crossing(cells, metric, setting, places)
                if crossing is not None:
                    found.append(crossing)
    return sorted(found, key=lambda crossing: -crossing.dimension.seeds)


def _crossing(cells: Cells, metric: Metric, setting: Setting, places: list[Place]) -> Crossing | None:
    pairs = [
        tuple(figures(cells.seeds(place, setting, name), metric) for name in ("next_scale", "next_token"))
        for place in places
    ]
    if any(part is None for pair in pairs for part in pair):
        return None
    ratios = tuple(ratio_of([pair]) for pair in pairs)
    effects = [
        ratio_of(pairs, weights) for weights in ((0.5, -0.5, 0.5, -0.5), (0.5, 0.5, -0.5, -0.5), (0.5, -0.5, -0.5, 0.5))
    ]
    if None in ratios or None in effects:
        return None
    modalities = places[0].modality, places[2].modality
    return Crossing(metric, setting, places[0].schedule, modalities, ratios, *effects)


def told_apart(crossing: Crossing) -> str:
    """What a design says, in one sentence."""
    a, b = crossing.modalities
    name = crossing.metric.name
    parts = []
    for ratio, less, more in ((crossing.dimension, "2D", "1D"), (crossing.modality, a, b)):
        better, worse = (less, more) if ratio.interval.value < 0 else (more, less)
        parts.append(f"more in {better} than in {worse}" if ratio.decided else f"{less} and {more} are not told apart")
    return (
        f"With both modalities in both dimensions ({name}, {crossing.setting}), next-scale helps, whatever the "
        f"modality: {parts[0]}; whatever the dimension: {parts[1]}."
    )
