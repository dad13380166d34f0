"""A small subset of the Notes set, one FLAC file a note, small enough to be shipped.

It is made by `python -m audio_var.data.demo data/notes samples/demo_notes`.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from audio_var.data.notes import Notes, checksum_of
from audio_var.io import write_audio
from next_scale.errors import UserError
from next_scale.licence import MIT
from next_scale.splits import SPLITS

COUNTS = {"train": 20, "validation": 2, "test": 3}  # notes a family

_README = """# Demo notes

{count} one-second notes: {families} instrument families, MIDI pitches {low} to {high}, velocities {velocities}; 16 kHz,
mono, FLAC, one folder a family. They are enough to try every command without rendering the full set. A file's
name says bank-program, pitch and velocity. `manifest.json` lists family, preset, pitch, velocity, split and
checksum of each; `audio_var.data.notes.Notes("samples/demo_notes", "train")` reads them, and so does `AudioFolder`.

Splits: {splits}. They are those of the full set: a (preset, pitch) pair is in one split only.

Made from the full set (see `audio_var.data.notes.render_notes`) by
`python -m audio_var.data.demo data/notes samples/demo_notes`.

## Attribution

Rendered with FluidSynth from the FluidR3 GM sound font, copyright 2000-2002, 2008 Frank Wen, who released it under
the MIT licence:

{licence}"""


def select_notes(notes: Notes, count: int, offset: int = 0) -> list[int]:
    """Indices of at most `count` notes of each family that spread over pitches, presets and velocities, sorted.

    Greedy: walk the pitches in even steps and take, of the family's notes there, that whose preset, then velocity, has
    been taken least. `offset` moves the walk, so that two calls meet different pitches.
    """
    columns = {field: values.numpy() for field, values in notes.condition_batch(np.arange(len(notes))).items()}
    pitches = len(notes.condition_spec["pitch"])
    chosen: list[int] = []
    for label in range(len(notes.condition_spec["label"])):
        rest = list(np.flatnonzero(columns["label"] == label))
        presets: Counter = Counter()
        velocities: Counter = Counter()
        for step in range(min(count, len(rest))):
            target = (step * pitches / count + label * pitches / count / 12 + offset) % pitches

            def cost(index: int, target: float = target, presets: Counter = presets, velocities: Counter = velocities):
                distance = abs(columns["pitch"][index] - target)
                velocity = columns["velocity"][index]
                return round(distance), presets[notes.preset[index]], velocities[velocity], distance, index

            best = min(rest, key=cost)
            rest.remove(best)
            presets[notes.preset[best]] += 1
            velocities[columns["velocity"][best]] += 1
            chosen.append(int(best))
    return sorted(chosen)


def write_demo_notes(source: str | os.PathLike, out: str | os.PathLike, counts: dict[str, int] | None = None) -> dict:
    """Writes a subset of the notes in `source` to `out` and returns its manifest.

    `counts` notes a family are taken from each split: default 20 train, 2 validation, 3 test.
    """
    out = Path(out)
    manifest = None
    columns: dict[str, list] = {"family": [], "preset": [], "pitch": [], "velocity": [], "split": [], "file": []}
    checksums = {}
    for split, count in (counts or COUNTS).items():
        notes = Notes(source, split)
        if manifest is None:
            manifest = {key: value for key, value in notes.manifest.items() if key not in ("silent_dropped", "peak")}
        for index in select_notes(notes, count, offset=5 * SPLITS.index(split)):
            item = notes[index]
            value = {field: notes.condition_spec[field][i] for field, i in item["condition"].items()}
            preset = notes.presets[notes.preset[index]]
            name = f"{preset.bank:03}-{preset.program:03}-p{value['pitch']:02}-v{value['velocity']:03}.flac"
            name = f"{value['label']}/{name}"
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_audio(out / name, item["sample"][0].numpy(), notes.sample_rate)
            checksums[name] = checksum_of(out / name)
            columns["family"].append(item["condition"]["label"])
            columns["preset"].append(int(notes.preset[index]))
            columns["pitch"].append(value["pitch"])
            columns["velocity"].append(value["velocity"])
            columns["split"].append(SPLITS.index(split))
            columns["file"].append(name)
    if manifest is None:
        raise UserError("no notes to write: name at least one split")
    manifest |= {"storage": "flac", "notes": columns, "sha256": checksums}
    (out / "manifest.json").write_text(json.dumps(manifest) + "\n")
    splits = Counter(columns["split"])
    text = _README.format(
        licence=MIT,
        count=len(checksums),
        families=len(set(columns["family"])),
        low=min(columns["pitch"]),
        high=max(columns["pitch"]),
        velocities=", ".join(map(str, sorted(set(columns["velocity"])))),
        splits=", ".join(f"{splits[i]} {name}" for i, name in enumerate(SPLITS)),
    )
    (out / "README.md").write_text(text)
    return manifest


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(f"{len(write_demo_notes(*sys.argv[1:])['sha256'])} notes written to {sys.argv[2]}")
