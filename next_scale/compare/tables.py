"""The tables of a comparison's report: header and rows of texts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from next_scale.compare.crossing import Crossing
from next_scale.compare.verdict import Cells, Headline, factor, signed, spoken
from next_scale.report import size_name
from next_scale.statistics import fit_scaling

Record = dict


@dataclass
class Table:
    """A table with what to know about it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    plain: list[int] = field(default_factory=list)
    """Rows that are references, such as real samples."""


def shown(value: float | None) -> str:
    """A figure for people: three significant digits, thousands with their separators, large ones with a prefix."""
    if value is None:
        return "–"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def mean_sd(records: Sequence[Record], part: str, key: str) -> str:
    """The mean over seeds, and their standard deviation where there are several."""
    values = [(record.get(part) or {}).get(key) for record in records]
    if not values or any(value is None for value in values):
        return "–"
    if len(values) == 1:
        return shown(values[0])
    return f"{shown(statistics.mean(values))} ± {statistics.stdev(values):.2g}"


def headline_table(found: Iterable[Headline]) -> Table:
    """One row a headline ratio."""
    rows = []
    for headline in found:
        each = "; ".join(f"seed {seed}: {signed(ratio)}" for seed, ratio in headline.each_seed)
        rows.append(
            [headline.metric.name, f"{headline.at_2d.modality} 2d / {headline.at_1d.modality} 1d",
             headline.at_2d.schedule, str(headline.setting), str(headline.ratio.seeds), factor(headline.r_2d),
             factor(headline.r_1d), signed(headline.ratio), each]
        )  # fmt: skip
    header = ["figure", "places", "schedule", "setting", "seeds", "R 2D", "R 1D", "log(R 2D / R 1D)", "by one seed"]
    return Table("Headline ratios", header, rows)


def crossing_table(found: Iterable[Crossing]) -> Table:
    """One row a two by two design."""
    rows = []
    for crossing in found:
        a, b = crossing.modalities
        r = [f"{m} {d}: {factor(ratio)}" for (m, d), ratio in zip(
            ((a, "2d"), (a, "1d"), (b, "2d"), (b, "1d")), crossing.ratios, strict=True)]  # fmt: skip
        effects = [signed(ratio) for ratio in (crossing.dimension, crossing.modality, crossing.interaction)]
        seeds = str(crossing.dimension.seeds)
        rows.append([crossing.metric.name, crossing.schedule, str(crossing.setting), seeds, *effects, "; ".join(r),
                     f"{a} - {b}"])  # fmt: skip
    header = ["figure", "schedule", "setting", "seeds", "2D - 1D", "modality", "interaction", "R", "modalities"]
    return Table("Dimension and modality apart", header, rows)


def tokenizer_tables(tokenizers: Sequence[Record]) -> list[Table]:
    """The floors, one table a modality, whose distortions have names of their own."""
    tables = []
    for modality in dict.fromkeys(record["place"]["modality"] for record in tokenizers):
        mine = [record for record in tokenizers if record["place"]["modality"] == modality]
        names = list(dict.fromkeys(name for r in mine for name in r["tokenizer"]["floor"]["distortion"]))
        header = ["tokenizer", "scales", "tokens", "codes", "bits a sample", "bits a second", *names, "Frechet",
                  "kernel", "Frechet unquantized", "parameters", "steps"]  # fmt: skip
        rows = []
        for record in mine:
            tokenizer, place = record["tokenizer"], record["place"]
            floor = tokenizer["floor"]
            rows.append(
                [f"{place['dimension']}, {place['schedule']}", tokenizer["schedule"], shown(tokenizer["tokens"]),
                 shown(tokenizer["codebook_size"]), shown(tokenizer["bits"]), shown(tokenizer.get("bits_per_second")),
                 *[shown(floor["distortion"].get(name)) for name in names], shown(floor["frechet"]),
                 shown(floor["kernel"]), shown(tokenizer["latent_floor"]["frechet"]), shown(tokenizer["parameters"]),
                 shown(tokenizer["steps"])]
            )  # fmt: skip
        tables.append(Table(modality, header, rows))
    return tables


_QUALITY: list[tuple[str, Callable[[Sequence[Record]], str]]] = [
    ("parameters", lambda r: shown(r[0]["model"]["parameters"])),
    ("steps", lambda r: shown(r[0]["training"]["steps"])),
    ("training FLOPs", lambda r: shown(r[0]["training"]["flops"])),
    ("guidance", lambda r: ", ".join(sorted({f"{x['quality']['guidance']:g}" for x in r}))),
    *[
        (title, lambda r, key=key: mean_sd(r, "quality", key))
        for title, key in (
            ("Frechet", "frechet"), ("Frechet ∞", "frechet_infinity"),
            ("to reconstructions", "frechet_to_reconstructions"), ("kernel", "kernel"), ("precision", "precision"),
            ("recall", "recall"), ("density", "density"), ("coverage", "coverage"), ("class found", "class_accuracy"),
        )
    ],
]  # fmt: skip


def quality_tables(cells: Cells, floors: dict) -> list[Table]:
    """One table a place."""
    tables = []
    for place in cells.places:
        rows, some = [], None
        for setting in cells.settings(place):
            for name in cells.predictors(place, setting):
                records = cells.seeds(place, setting, name)
                some = records[0]
                label = [spoken(name), setting.size, setting.match, str(len(records))]
                rows.append([*label, *[column(records) for _, column in _QUALITY]])
        real = some["real"]
        reference = [shown(real.get(key)) for key in ("frechet", "frechet_infinity", "none", "kernel", "precision",
                     "recall", "density", "coverage", "class_accuracy")]  # fmt: skip
        rows.append([f"other real samples ({real['n']})", *[""] * (3 + 4), *reference])
        floor = floors.get(place, {})
        again = [shown(floor.get("frechet")), "", "", shown(floor.get("kernel")), *[""] * 5]
        rows.append(["reconstructions", *[""] * (3 + 4), *again])
        header = ["predictor", "size", "equal", "seeds", *[title for title, _ in _QUALITY]]
        note = f"{some['quality']['n']} samples; features: {some['quality']['features']}."
        tables.append(Table(str(place), header, rows, note, plain=[len(rows) - 2, len(rows) - 1]))
    return tables


def likelihood_tables(cells: Cells) -> list[Table]:
    """One table a tokenizer, and a note which figures are bounds."""
    tables = []
    for place in cells.places:
        rows = []
        for setting in cells.settings(place):
            for name in cells.predictors(place, setting):
                records = [record for record in cells.seeds(place, setting, name) if record.get("likelihood")]
                if not records:
                    continue
                bound = "" if records[0]["likelihood"]["exact"] else "≤ "
                rows.append(
                    [spoken(name), setting.size, setting.match, str(len(records)),
                     *[bound + mean_sd(records, "likelihood", key)
                       for key in ("bits_per_sample", "bits_per_token", "bits_per_dim", "bits_per_second")]]
                )  # fmt: skip
        header = ["predictor", "size", "equal", "seeds", "bits a sample", "a token", "a dimension", "a second"]
        if rows:
            tables.append(Table(str(place), header, rows))
    return tables


def independence_cost(cells: Cells) -> list[tuple[str, str, list[int | str], list[float]]]:
    """Place, setting, sizes of scales and the bits a token that predicting a scale's tokens apart costs, for all."""
    found = []
    for place in cells.places:
        for setting in cells.settings(place):
            sides = []
            for name in ("next_scale", "next_token"):
                records = [r for r in cells.seeds(place, setting, name) if r.get("likelihood")]
                sides.append([r["likelihood"]["per_scale"] for r in records])
            if not all(sides):
                continue
            record = cells.seeds(place, setting, "next_scale")[0]
            profile = record["tokenizer"]["profile"]
            means = [[statistics.mean(column) for column in zip(*side, strict=True)] for side in sides]
            cost = [(a - b) / row["tokens"] for a, b, row in zip(*means, profile, strict=True)]
            found.append((str(place), str(setting), [size_name(tuple(row["size"])) for row in profile], cost))
    return found


def independence_table(cells: Cells) -> Table | None:
    """The independence cost, bits a token, scale by scale."""
    found = independence_cost(cells)
    if not found:
        return None
    most = max(len(cost) for *_, cost in found)
    rows = [
        [place, setting, *[f"{cost:+.3f} ({size})" for size, cost in zip(sizes, costs, strict=True)],
         *[""] * (most - len(costs))]
        for place, setting, sizes, costs in found
    ]  # fmt: skip
    return Table("", ["place", "setting", *[f"scale {k + 1}" for k in range(most)]], rows)


def envelope(records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Compute and loss of what was the best for its compute, of the curves of all sizes and seeds."""
    points = sorted(
        (record["training"]["flops"] * step / record["training"]["steps"], loss)
        for record in records for step, loss in record["training"]["curve"]
    )  # fmt: skip
    best, x, y = float("inf"), [], []
    for compute, loss in points:
        if loss < best:
            best = loss
            x.append(compute)
            y.append(loss)
    return x, y


def fits(cells: Cells) -> tuple[Table, dict]:
    """The scaling fits as a table, and by place and predictor."""
    rows, found = [], {}
    for place in cells.places:
        for name in cells.predictors(place):
            records = [
                r for setting in cells.settings(place) for r in cells.seeds(place, setting, name)
                if setting.match == "flops"
            ] or [r for setting in cells.settings(place) for r in cells.seeds(place, setting, name)]  # fmt: skip
            x, y = envelope(records)
            fit = fit_scaling(x, y)
            found[place, name] = records, fit
            start = [str(place), spoken(name), str(len(x))]
            if fit is None:
                rows.append([*start, "too few points, or no fall", "", ""])
                continue
            low, high = fit.floor_interval
            floor = f"{fit.floor:.3f} ({low:.3f} to {high:.3f})"
            exponent = f"{fit.exponent:.3g} ({fit.exponent_interval[0]:.3g} to {fit.exponent_interval[1]:.3g})"
            rows.append([*start, floor, f"{fit.factor:.3g}", exponent])
    return Table("", ["place", "predictor", "points", "E", "A", "α"], rows), found


def cost_tables(cells: Cells) -> list[Table]:
    """One table a place: what drawing a sample costs."""
    tables = []
    for place in cells.places:
        rows = []
        for setting in cells.settings(place):
            for name in cells.predictors(place, setting):
                records = [record for record in cells.seeds(place, setting, name) if record.get("sampling")]
                if not records:
                    continue
                sampling = records[0]["sampling"]
                medians = {
                    key: statistics.median(record["sampling"][key] for record in records)
                    for key in ("latency_1", "latency_16", "peak_memory")
                }
                rows.append(
                    [spoken(name), setting.size, setting.match, shown(sampling["steps"]), shown(sampling["flops"]),
                     f"{1000 * medians['latency_1']:.0f} ms", f"{1000 * medians['latency_16']:.0f} ms",
                     shown(1 / medians["latency_1"]), shown(16 / medians["latency_16"]),
                     f"{medians['peak_memory'] / 2**20:,.0f} MiB"]
                )  # fmt: skip
        header = ["predictor", "size", "equal", "steps", "FLOPs a sample", "latency of 1", "of 16", "a second by 1",
                  "by 16", "peak memory"]  # fmt: skip
        if rows:
            tables.append(Table(str(place), header, rows))
    return tables
