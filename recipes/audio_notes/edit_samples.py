"""What every verb of `audio-var edit` does to a demo note: clips, and a sheet of spectrograms.

    python -m recipes.audio_notes.edit_samples [--out samples/edit]

The sheet has two pictures a verb, what was given and what was made of it; where a span was drawn, white lines bound it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from audio_var import load
from audio_var.io import read_audio, write_audio
from audio_var.plots import spectrogram_figure
from audio_var.repair import banded
from next_scale.cli import Outputs, Parser, progress, run_program

NOTES = Path(__file__).parents[2] / "samples" / "demo_notes"
Span = tuple[float, float]


def verbs(model) -> list[tuple[str, Tensor, Tensor, Span | None]]:
    """Of each: its name and options, what is given, what comes out, and the span that was drawn, in seconds."""
    rate = model.sample_rate
    flute, brass = _note("flute", "000-073-p76-v080"), _note("brass")
    told = {"label": "flute", "pitch": 76, "velocity": 80}
    editor = model.editor(seed=1, **told)
    torch.manual_seed(0)
    level = flute.square().mean().sqrt()
    noisy = (flute + level * 10**-0.5 * torch.randn(len(flute))).clamp(-1, 1)  # 10 dB
    narrow = banded(flute, torch.zeros_like(flute), 4000.0, rate)
    as_brass = model.editor(seed=1, label="brass", pitch=76, velocity=80)
    half = flute[: rate // 2]
    return [
        ("--inpaint 0.3:0.6", _hidden(flute, 0.3, 0.6, rate), editor.inpaint(flute, 0.3, 0.6), (0.3, 0.6)),
        ("--continue 0.5", half, editor.continued(half, 0.5), (0.5, 1.0)),
        ("--variation 0.4", flute, editor.vary(flute, 0.4), None),
        ("--variation 0.4 --keep fine", flute, editor.vary(flute, 0.4, "fine"), None),
        ("--relabel brass", flute, as_brass.vary(flute, 0.8), None),
        ("--interpolate BRASS", brass, editor.interpolate(flute, brass), None),
        ("--denoise (10 dB)", noisy, editor.denoise(noisy), None),
        ("--upsample (from 8 kHz)", narrow, editor.upsample(narrow, 4000.0), None),
    ]


def _note(family: str, name: str = "*") -> Tensor:
    """A demo note, or the first of a family: (T,) float32."""
    return torch.from_numpy(read_audio(sorted((NOTES / family).glob(f"{name}.flac"))[0], 16_000))


def _hidden(audio: Tensor, start: float, end: float, rate: int) -> Tensor:
    """With silence in place of a span."""
    hidden = audio.clone()
    hidden[round(start * rate) : round(end * rate)] = 0
    return hidden


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m recipes.audio_notes.edit_samples", description=__doc__)
    parser.add_argument("--out", default="samples/edit", metavar="FOLDER", help="default: %(default)s")
    args = parser.parse_args(argv)
    with progress("editing", 1) as advance:
        model = load(device="cpu")
        made = verbs(model)
        advance(1)
    tiles = [
        (title, audio.numpy())
        for name, given, out, _ in made
        for title, audio in ((f"given to {name}", given), (name, out))
    ]
    figure = spectrogram_figure(tiles, model.sample_rate, columns=4)
    drawn = [axis for axis in figure.axes if axis.get_images()]
    for (*_, span), axis in zip(made, drawn[1::2], strict=True):
        for second in span or ():
            axis.axvline(second, color="white", linewidth=1)
    with Outputs() as outputs:
        out = outputs.folder(args.out)
        for name, _, audio, _ in made:
            stem = "_".join(name.replace("--", "").replace("(", "").replace(")", "").replace(":", "-").split()).lower()
            write_audio(outputs.file(out / f"{stem}.ogg"), audio.numpy(), model.sample_rate)
        figure.savefig(outputs.file(out / "verbs.png"), dpi=80)
    print(f"{len(made)} clips and verbs.png in {args.out}")


if __name__ == "__main__":
    sys.exit(run_program("edit samples", main))
