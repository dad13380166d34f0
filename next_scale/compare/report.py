"""The report of a comparison: one HTML file that opens from disk and needs nothing else."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
from collections import Counter
from pathlib import Path

from next_scale.compare import tables
from next_scale.compare.crossing import crossings, told_apart
from next_scale.compare.plots import colours_of, interval_plot, line_plot, scatter_plot
from next_scale.compare.record import PLAN, RESULTS, read_records
from next_scale.compare.verdict import (
    BITS,
    FRECHET,
    Cells,
    Place,
    answer,
    below_floor,
    best_families,
    figures,
    headlines,
    helps,
    place_of,
    setting_of,
    spoken,
)
from next_scale.errors import UserError, first_line

_TITLE = "Next-scale prediction in 1D and 2D"


def write_report(folder: Path, out: Path) -> Path:
    """Write the report of the results in a folder, whole or not at all.

    Raises:
        UserError: there are no results, or the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not (folder / RESULTS).is_file():
        raise UserError(f"{folder} holds no {RESULTS}: give the folder of `next-scale compare run --out`")
    loader = PackageLoader("next_scale.compare", package_path="")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    try:
        text = environment.get_template("report.html").render(**_content(folder, read_records(folder)))
    except (OSError, MemoryError, UserError):
        raise
    except Exception as error:  # records are JSON that anybody may have written, and all of their keys are needed
        cause = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UserError(
            f"{folder / RESULTS} has a record that cannot be shown ({cause}): remove its line, or run its cell again"
        ) from error
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write {out}: {error.strerror or error}; free space or write elsewhere") from error
    return out


def _content(folder: Path, records: dict[str, dict]) -> dict:
    """Everything that the template shows."""
    cells = Cells(records.values())
    tokenizers = [record for record in records.values() if "place" in record]
    failed = [record for record in records.values() if "error" in record]
    counts = Counter(record["cell"]["modality"] for record in cells.records)
    done = ", ".join(f"{count} of {modality}" for modality, count in counts.items())
    content = {
        "title": _TITLE,
        "counts": f"{len(cells.records)} finished cells" + (f" ({done})" if done else "") + f", {len(failed)} failed.",
        "finished": bool(cells.records),
        "failed": _failed(failed),
        "command": f"next-scale compare run {PLAN} --out FOLDER\nnext-scale compare report FOLDER",
        "origin": _origins(cells.records + tokenizers),
        "plan": (folder / PLAN).read_text(encoding="utf-8") if (folder / PLAN).is_file() else "",
    }
    if cells.records:
        floors = {Place(**record["place"]): record["tokenizer"]["floor"] for record in tokenizers}
        content |= _headline(cells) | _floors(cells, tokenizers, floors) | _likelihood(cells)
        content |= _scaling(cells) | _cost(cells, floors)
        content |= {"quality": tables.quality_tables(cells, floors), "samples": _samples(folder, cells)}
    return content


def _headline(cells: Cells) -> dict:
    found = [*headlines(cells, FRECHET), *headlines(cells, BITS)]
    plots = []
    for metric in (FRECHET, BITS):
        rows = [
            (f"{h.at_2d.modality[:5]}/{h.at_1d.modality[:5]}, {h.at_2d.schedule}, {h.setting.size}", *h.ratio.interval)
            for h in found
            if h.metric is metric and h.setting.match == found[0].setting.match
        ]
        if rows:
            plots.append(interval_plot(rows, metric.name, "log(R 2D / R 1D)"))
    first = found[0] if found else None
    sides = [(first.at_2d, first.r_2d), (first.at_1d, first.r_1d)] if first else []
    lines = [helps(place, ratio, first.metric) for place, ratio in sides]
    if first:
        lines.append(
            f"It rests on log(R 2D / R 1D) of the {first.metric.name} at the size {first.setting}, with "
            f"{first.ratio.seeds} seed{'s' if first.ratio.seeds > 1 else ''}, "
            "for this data, these sizes and this length of training only."
        )
    crossed = [crossing for metric in (FRECHET, BITS) for crossing in crossings(cells, metric)]
    lines += [told_apart(crossing) for crossing in crossed[:1]]
    return {
        "answer": answer(first),
        "helps": lines,
        "crossed": tables.crossing_table(crossed) if crossed else None,
        "apart": [told_apart(crossing) for crossing in crossed[1:]],
        "headline": tables.headline_table(found),
        "headline_plots": plots,
        "families": best_families(cells),
    }


def _floors(cells: Cells, tokenizers: list[dict], floors: dict[Place, dict]) -> dict:
    names = {record["id"]: str(Place(**record["place"])) for record in tokenizers}
    plots = []
    for dimension in ("1d", "2d"):
        some = [record for record in tokenizers if record["place"]["dimension"] == dimension]
        for key, title in (
            ("latent", "variance of the latent left"),
            ("distortion", "distortion, of the first scale's"),
        ):
            lines = []
            for record in some:
                profile = record["tokenizer"]["profile"]
                bits, total = [], 0.0
                for row in profile:
                    total += row["bits"]
                    bits.append(total)
                whole = 1.0 if key == "latent" else profile[0][key]
                lines.append((record["id"], bits, [row[key] / whole for row in profile]))
            if lines:
                colours = colours_of([label for label, *_ in lines])
                plots.append(line_plot(lines, colours, f"{title}, {dimension}", "bits", "share", "xy", names=names))
    close = below_floor(cells, {place: floor["frechet"] for place, floor in floors.items()})
    return {"floors": tables.tokenizer_tables(tokenizers), "profiles": plots, "close": close}


def _likelihood(cells: Cells) -> dict:
    costs = tables.independence_cost(cells)
    labels = list(dict.fromkeys(place for place, *_ in costs))
    plots = []
    for setting in dict.fromkeys(setting for _, setting, *_ in costs):
        lines = [(place, list(range(1, len(cost) + 1)), cost) for place, at, _, cost in costs if at == setting]
        plots.append(line_plot(lines, colours_of(labels), setting, "scale", "bits a token"))
    return {
        "likelihood": tables.likelihood_tables(cells),
        "independence": tables.independence_table(cells),
        "independence_plots": plots,
    }


def _scaling(cells: Cells) -> dict:
    table, found = tables.fits(cells)
    colours, plots = colours_of(cells.predictors()), []
    for place in cells.places:
        for kind in (False, True):  # squared errors apart from nats
            lines, smooth = [], []
            for name in cells.predictors(place):
                records, fit = found[place, name]
                if (records[0]["likelihood"] is None) != kind:
                    continue
                for record in records:
                    per_step = record["training"]["flops"] / record["training"]["steps"]
                    curve = record["training"]["curve"]
                    lines.append((name, [per_step * step for step, _ in curve], [loss for _, loss in curve]))
                if fit is not None:
                    x, _ = tables.envelope(records)
                    smooth.append((name, x, [fit.floor + fit.factor * c**-fit.exponent for c in x]))
            if lines:
                unit = "squared error" if kind else "nats a token"
                names = {name: spoken(name) for name, *_ in lines}
                plots.append(
                    line_plot(lines, colours, str(place), "training FLOPs", unit, "x", smooth=smooth, names=names)
                )
    return {"scaling": plots, "fits": table}


def _cost(cells: Cells, floors: dict[Place, dict]) -> dict:
    colours, plots = colours_of(cells.predictors()), []
    names = {name: spoken(name) for name in cells.predictors()}
    for place in cells.places:
        for batch in (1, 16):
            points = []
            for setting in cells.settings(place):
                for name in cells.predictors(place, setting):
                    records = cells.seeds(place, setting, name)
                    found = figures(records, FRECHET)
                    if found is None or not all(record.get("sampling") for record in records):
                        continue
                    seconds = sum(record["sampling"][f"latency_{batch}"] for record in records) / len(records) / batch
                    kind = setting.size if setting.match == "flops" else f"{setting.size}, equal {setting.match}"
                    points.append((name, kind, seconds, found.values.mean(), float(found.values.std())))
            if points:
                level = ("reconstructions", floors[place]["frechet"]) if place in floors else None
                title = f"{place}, {batch} at once"
                plots.append(
                    scatter_plot(points, colours, title, "seconds a sample", "Frechet distance", level, "xy", names)
                )
    devices = {f"{r['device']} ({r['system']}, {r['sampling']['threads']} threads)"
               for r in cells.records if r.get("sampling")}  # fmt: skip
    return {"cost": tables.cost_tables(cells), "latency": plots, "device": "; ".join(sorted(devices))}


def _samples(folder: Path, cells: Cells) -> list[tuple[str, list[dict]]]:
    groups: dict[str, list[dict]] = {}
    for record in cells.records:
        cell = record["cell"]
        kept = {key: value for key, value in record.items() if key not in ("samples", "tokenizer")}
        for part in ("quality", "likelihood"):
            if kept.get(part):
                kept[part] = {k: v for k, v in kept[part].items() if not k.endswith("_resampled")}
        entry = {
            "title": f"{spoken(cell['predictor'])}, {setting_of(record)}, seed {cell['seed']}",
            "samples": [_sample(folder, sample) for sample in record.get("samples", ())],
            "record": json.dumps(kept, indent=1),
        }
        groups.setdefault(str(place_of(record)), []).append(entry)
    return list(groups.items())


def _sample(folder: Path, sample: dict) -> dict:
    """What the page shows of a sample; only files in the folder are read."""
    found = {"label": sample.get("label", ""), "picture": None, "sound": None, "gone": ""}
    wanted = [("picture", sample.get("picture"))]
    if sample.get("kind") == "sound":
        wanted.append(("sound", sample.get("file")))
    for key, name in wanted:
        if not name:
            continue
        path = (folder / name).resolve()
        if not (path.is_relative_to(folder.resolve()) and path.is_file()):
            found["gone"] = f"{name} is not there"
            continue
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        data = base64.b64encode(path.read_bytes()).decode()
        # the element of a sound has the name of its media type
        found[key] = {"uri": f"data:{kind};base64,{data}", "element": kind.split("/")[0]}
    return found


def _failed(records: list[dict]) -> tables.Table | None:
    rows = [[record["id"], record["error"]] for record in records]
    return tables.Table("", ["cell", "error"], rows) if rows else None


def _origins(records: list[dict]) -> list[str]:
    """Where the figures come from, each once, with how many records do."""
    found = Counter()
    for record in records:
        versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
        found[f"revision {record.get('git') or 'unknown'}, {versions}, {record.get('system', '')}"] += 1
    dates = sorted(record["finished"][:10] for record in records if record.get("finished"))
    lines = [f"{text} ({count} results)" for text, count in found.items()]
    return lines + ([f"finished from {dates[0]} to {dates[-1]}"] if dates else [])
