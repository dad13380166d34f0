"""What editing is worth beside simple means, on held-out notes and held-out images.

    python -m recipes.benchmarks.editing

fills gaps and continues held-out notes, takes noise off them, and adds their upper band again; and paints halves and
boxes of held-out images of Fashion-MNIST. Each is compared with what needs no model. Written are README.md and
editing.json, in samples/edit. All randomness is seeded: the same command gives the same figures.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import soxr
import torch
from torch import Tensor

from audio_var.cli.models import open_generator as open_audio
from audio_var.data.datamodule import AudioDataModule
from audio_var.editing import Editor as AudioEditor
from audio_var.evaluator import load_evaluator
from audio_var.gap import Gap, fill_gap
from audio_var.losses import MelDistance
from audio_var.metrics import si_sdr
from audio_var.repair import masked, spectral_gate
from image_var.cli.models import open_generator as open_images
from image_var.data.fashion import FashionMNIST
from image_var.editing import Editor as ImageEditor
from image_var.editing import fill
from image_var.metrics import ssim
from next_scale.cli import Outputs, Parser, progress, run_program, sample_seed, whole_number
from next_scale.condition import collate_conditions
from next_scale.model import Generator
from next_scale.report import markdown_table, number, percent, write_report

GAPS = {"gap 0.3 to 0.6 s": (0.3, 0.6), "gap 0.2 to 0.9 s": (0.2, 0.9), "continued from 0.512 s": (0.512, None)}
"""Hidden spans of notes, in seconds; without an end, all that follows."""
NOISE = (0, 10, 20)
"""Signal-to-noise ratios in dB."""
BANDS = (4000, 2000)
"""Upper ends, in Hz, of notes that are to be extended."""
MASKS = {"right half": (0, 16, 32, 32), "lower half": (16, 0, 32, 32), "box of 16": (8, 8, 24, 24)}
"""Hidden parts of images of 32 x 32: top, left, bottom, right."""
RELABELS = ((0.5, "coarse"), (0.8, "coarse"), (0.9, "coarse"), (0.5, "fine"), (0.8, "fine"))
"""Strengths of a new label, and the scales that stay."""
_MODES = ("not told", "told")  # whether the model is told label, pitch and velocity
_LOWEST, _HIGHEST = 16, 1300  # Hz, of the period that is repeated


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recipes.benchmarks.editing", description=__doc__)
    parser.add_argument(
        "--clips", type=whole_number(1), default=200, metavar="N", help="held-out notes (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=whole_number(1), default=200, metavar="N", help="held-out images (default: %(default)s)"
    )
    parser.add_argument("--data", default="data/notes", metavar="FOLDER", help="notes (default: %(default)s)")
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="of torch (default: its own choice)")
    parser.add_argument("--out", default="samples/edit", metavar="FOLDER", help="default: %(default)s")
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    results = {"clips": args.clips, "images": args.images} | notes(args) | images(args)
    command = " ".join(["python -m recipes.benchmarks.editing", *argv])
    with Outputs() as outputs:
        out = outputs.folder(args.out)
        page = write_page(results, command)
        write_report(results, page, outputs.file(out / "editing.json"), outputs.file(out / "README.md"), command)
    print(page)


# Notes


class Notes:
    """Held-out notes (N, T), spread evenly over the test part, and what is measured of their edited versions."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model = open_audio(None, "cpu").pack()
        data = AudioDataModule(data=args.data).dataset("test")
        rows = torch.linspace(0, len(data) - 1, args.clips).long().tolist()
        items = [data[row] for row in rows]
        self.audio = torch.stack([item["sample"][0] for item in items])
        self.conditions = [item["condition"] for item in items]
        self.rate = self.model.tokenizer.autoencoder.sample_rate
        self.distance = MelDistance(self.rate)

    def each(self, edit: Callable[[AudioEditor, int], Tensor], mode: str, advance: Callable[[int], None]) -> Tensor:
        """Every note edited: (N, T)."""
        made = []
        for row, condition in enumerate(self.conditions):
            condition = condition if mode == "told" else {}
            made.append(edit(AudioEditor(self.model, condition, sample_seed(0, row)), row))
            advance(1)
        return torch.stack(made)

    def drawn(self, mode: str) -> Tensor:
        """Notes from nothing but their condition, or not even that: (N, T)."""
        conditions = self.conditions if mode == "told" else [{}] * len(self.audio)
        batch = collate_conditions(conditions, self.model.condition_spec)
        return self.model.generate(batch, [sample_seed(0, row) for row in range(len(self.audio))])[0][:, 0]

    def mel(self, made: Tensor, start: int = 0, end: int | None = None) -> float:
        """Mean log-mel distance within a span."""
        return float(self.distance(self.audio[:, start:end], made[:, start:end]).mean())

    def mel_outside(self, made: Tensor, start: int, end: int) -> float:
        """Mean log-mel distance of what is kept, the parts before and after a span put together."""
        pair = (torch.cat([x[:, :start], x[:, end:]], 1) for x in (self.audio, made))
        return float(self.distance(*pair).mean())


def notes(args: argparse.Namespace) -> dict:
    """All figures of notes."""
    bench = Notes(args)
    draws = (len(_MODES) * (len(GAPS) + len(NOISE) + len(BANDS)) + len(RELABELS)) * args.clips
    with torch.inference_mode():
        codec = bench.model.tokenizer.decode(bench.model.tokenizer.encode(bench.audio[:, None]))[:, 0]
    with progress("notes", draws) as advance:
        return {
            "gaps": {name: gap_figures(bench, codec, span, advance) for name, span in GAPS.items()},
            "noise": {str(ratio): noise_figures(bench, ratio, advance) for ratio in NOISE},
            "relabels": relabel_figures(bench, advance),
            "bands": {str(cutoff): band_figures(bench, codec, cutoff, advance) for cutoff in BANDS},
        }


def gap_figures(bench: Notes, codec: Tensor, span: tuple[float, float | None], advance: Callable[[int], None]) -> dict:
    """Log-mel distances in a hidden span, and of what is kept."""
    audio, length = bench.audio, bench.audio.shape[1]
    start, end = round(span[0] * bench.rate), length if span[1] is None else round(span[1] * bench.rate)
    hidden = audio.clone()
    hidden[:, start:end] = 0
    made = {
        "silence": hidden,
        "last period repeated": torch.stack([repeat_period(row, start, end, bench.rate) for row in hidden]),
        "frames interpolated" if end < length else "last frame held": fill_gap(
            hidden, Gap(start, end, bench.rate, end < length)
        ),
        **{f"redrawn, {mode}": bench.drawn(mode) for mode in _MODES},
    }

    def edit(editor: AudioEditor, row: int) -> Tensor:
        if end == length:
            return editor.continued(hidden[row, :start], (end - start) / bench.rate)
        return editor.inpaint(hidden[row], start / bench.rate, end / bench.rate)

    ours = {f"edit, {mode}": bench.each(edit, mode, advance) for mode in _MODES}
    kept = {name: bench.mel_outside(one, start, end) for name, one in ours.items()}
    return {
        "hidden": {name: bench.mel(one, start, end) for name, one in (made | ours | {"the codec": codec}).items()},
        "kept": kept | {"the codec": bench.mel_outside(codec, start, end)},
    }


def repeat_period(audio: Tensor, start: int, end: int, rate: int) -> Tensor:
    """A note (T,) whose gap repeats the last period before it, the lag of the greatest autocorrelation."""
    before = audio[max(0, start - 2048) : start].numpy()
    correlation = np.correlate(before, before, "full")[len(before) - 1 :]
    shortest = rate // _HIGHEST
    lag = shortest + int(np.argmax(correlation[shortest : min(len(correlation), rate // _LOWEST)]))
    filled = audio.clone()
    filled[start:end] = audio[start - lag : start].repeat(math.ceil((end - start) / lag))[: end - start]
    return filled


def noise_figures(bench: Notes, ratio: int, advance: Callable[[int], None]) -> dict:
    """SI-SDR and log-mel distance of notes in white noise, before and after."""
    noise = torch.randn(bench.audio.shape, generator=torch.Generator().manual_seed(ratio))
    power = bench.audio.square().mean(1, keepdim=True) / noise.square().mean(1, keepdim=True)
    noisy = bench.audio + noise * (power / 10 ** (ratio / 10)).sqrt()
    made = {
        "as it is": noisy,
        "spectral gating": torch.stack([spectral_gate(row, bench.rate) for row in noisy]),
        "spectral subtraction": torch.stack([masked(row, bench.rate) for row in noisy]),
    }
    for mode in _MODES:
        made[f"edit, {mode}"] = bench.each(lambda editor, row: editor.denoise(noisy[row]), mode, advance)
    return {name: quality(bench, one) for name, one in made.items()}


def band_figures(bench: Notes, codec: Tensor, cutoff: int, advance: Callable[[int], None]) -> dict:
    """SI-SDR and log-mel distance of notes whose band ends at a cutoff in Hz, before and after."""
    low = [soxr.resample(row.numpy(), bench.rate, 2 * cutoff, quality="HQ") for row in bench.audio]
    again = [soxr.resample(row, 2 * cutoff, bench.rate, quality="HQ") for row in low]
    length = bench.audio.shape[1]
    narrow = torch.stack([torch.from_numpy(np.pad(row, (0, max(0, length - len(row))))[:length]) for row in again])
    made = {"resampled": narrow}
    for mode in _MODES:
        made[f"edit, {mode}"] = bench.each(lambda editor, row: editor.upsample(narrow[row], cutoff), mode, advance)
    return {name: quality(bench, one) for name, one in made.items()}


def relabel_figures(bench: Notes, advance: Callable[[int], None]) -> list[dict]:
    """Shares of notes that the evaluator hears as of the new family, as of the old one, and at the old pitch."""
    judge = load_evaluator()
    families = len(bench.model.condition_spec["label"])
    label, pitch = (torch.tensor([row[field] for row in bench.conditions]) for field in ("label", "pitch"))
    found = []
    for strength, keep in RELABELS:
        made = []
        for row, condition in enumerate(bench.conditions):
            wanted = condition | {"label": (condition["label"] + families // 3) % families}
            editor = AudioEditor(bench.model, wanted, sample_seed(0, row))
            made.append(editor.vary(bench.audio[row], strength, keep))
            advance(1)
        heard = judge.judge(torch.stack(made)[:, None])
        shares = {
            "new": heard.label == (label + families // 3) % families,
            "old": heard.label == label,
            "in_tune": judge.in_tune(heard, pitch),
        }
        found.append({"strength": strength, "keep": keep} | {key: float(x.float().mean()) for key, x in shares.items()})
    return found


def quality(bench: Notes, made: Tensor) -> dict:
    """Mean SI-SDR in dB, and mean log-mel distance."""
    return {"si_sdr": float(si_sdr(bench.audio, made).mean()), "log_mel": bench.mel(made)}


# Images


def images(args: argparse.Namespace) -> dict:
    """Absolute error within hidden parts, of the range, and structural similarity of whole images."""
    model = open_images(None, "cpu").pack()
    data = FashionMNIST(split="test")
    items = [data[row] for row in torch.linspace(0, len(data) - 1, args.images).long().tolist()]
    originals = torch.stack([item["sample"] for item in items])
    conditions = [item["condition"] for item in items]
    with torch.inference_mode():
        codec = model.tokenizer.decode(model.tokenizer.encode(originals))
    redrawn = {f"redrawn, {mode}": drawn_images(model, conditions, mode) for mode in _MODES}
    found = {}
    with progress("images", len(_MODES) * len(MASKS) * args.images) as advance:
        for name, (top, left, bottom, right) in MASKS.items():
            hidden = torch.zeros(originals.shape[2:], dtype=torch.bool)
            hidden[top:bottom, left:right] = True
            mean = (originals * ~hidden).sum((2, 3), keepdim=True) / (~hidden).sum()
            made = {
                "mean of the rest": mean.expand_as(originals),
                "nearest pixel repeated": torch.stack([fill(image, hidden) for image in originals]),
                **redrawn,
            }
            for mode in _MODES:
                made[f"edit, {mode}"] = paint(model, originals, conditions, hidden, mode, advance)
            made["the tokenizer"] = codec
            found[name] = {label: image_quality(originals, one, hidden) for label, one in made.items()}
    return {"masks": found}


def drawn_images(model: Generator, conditions: list[dict], mode: str) -> Tensor:
    """Images from nothing but their label, or not even that: (N, C, H, W)."""
    batch = collate_conditions(conditions if mode == "told" else [{}] * len(conditions), model.condition_spec)
    return model.generate(batch, [sample_seed(0, row) for row in range(len(conditions))])[0]


def paint(
    model: Generator, originals: Tensor, conditions: list[dict], hidden: Tensor, mode: str,
    advance: Callable[[int], None],
) -> Tensor:  # fmt: skip
    """Every image with its hidden part painted: (N, C, H, W)."""
    made = []
    for row, (image, condition) in enumerate(zip(originals, conditions, strict=True)):
        batch = collate_conditions([condition if mode == "told" else {}], model.condition_spec)
        made.append(ImageEditor(model, image, batch, [sample_seed(0, row)]).paint(hidden))
        advance(1)
    return torch.cat(made)


def image_quality(originals: Tensor, made: Tensor, hidden: Tensor) -> dict:
    """Of images whose kept part is the original's."""
    made = torch.where(hidden, made, originals)
    error = (made - originals)[:, :, hidden].abs().mean() / 2
    return {"l1": float(error), "ssim": float(ssim(originals, made).mean())}


# The page


def write_page(results: dict, command: str) -> str:
    """The figures as Markdown, the best of each column in bold."""
    gaps, masks = results["gaps"], results["masks"]
    first = {name: name for name in next(iter(gaps.values()))["hidden"]}
    first["frames interpolated"] = "spectrogram frames interpolated (held, where nothing follows)"
    rows = [
        [text, *(gap["hidden"].get(name, gap["hidden"].get("last frame held")) for gap in gaps.values())]
        for name, text in first.items()
    ]
    kept = [[name, *(gap["kept"][name] for gap in gaps.values())] for name in next(iter(gaps.values()))["kept"]]
    return f"""# Editing beside simple means

`{command}`

{results["clips"]} held-out notes of the shipped model's data, of pitches that it did not hear, and {results["images"]}
test images of Fashion-MNIST. *Told* is a model that is told label, pitch and velocity of a note, or the label of an
image; what is hidden it never sees. Bold is the best of a column but for the floor, a sample through the tokenizer and
back.

What each verb does to a note (`python -m recipes.audio_notes.edit_samples`; the clips lie beside this page):

![spectrograms of a note before and after each verb](verbs.png)

## Gaps and continuations (`--inpaint`, `--continue`)

Log-mel distance to the real note in the hidden span; less is better.

{_table(["", *gaps], rows, 3, best=min)}
Log-mel distance of what is kept: less than the codec's own error, for all but 10 ms are the original samples.

{_table(["", *gaps], kept, 4)}
## Noise (`--denoise`)

White noise, measured over the whole note: SI-SDR in dB, more is better, and log-mel distance, less is better.

{_qualities("SNR {} dB", results["noise"])}
## Bandwidth (`--upsample`)

Notes whose band ends below half of the model's rate. The upper band that is added has phases of its own, so that SI-SDR
can only fall; log-mel distance tells how near its levels are.

{_qualities("band to {} Hz", results["bands"])}
## Another family (`--relabel`)

Each note as another of the twelve families, told its own pitch, as the evaluator that comes with the package hears it.

{_relabel_table(results["relabels"])}
## Parts of images (`--mask`)

Mean absolute error in the hidden part, as a share of the range, and structural similarity of the whole image.

{_image_table(masks)}"""


def _table(
    header: list[str], rows: list[list], digits: int, best: Callable[..., float] | None = None, floor: int = 1
) -> str:
    """Rows of a name and figures; the best of every column in bold, without the last `floor` rows."""
    columns = list(zip(*(row[1:] for row in rows), strict=True))
    bests = [best(column[: len(column) - floor]) if best else None for column in columns]
    return markdown_table(header, [[row[0], *map(partial(_cell, digits=digits), row[1:], bests)] for row in rows])


def _cell(value: float, best: float | None, digits: int) -> str:
    return f"**{number(value, digits)}**" if value == best else number(value, digits)


def _qualities(title: str, found: dict) -> str:
    names = list(next(iter(found.values())))
    header = [""] + [f"{title.format(key)}: {what}" for key in found for what in ("SI-SDR", "log-mel")]
    columns = []
    for figures in found.values():
        for what, best, digits in (("si_sdr", max, 1), ("log_mel", min, 3)):
            values = [figures[name][what] for name in names]
            columns.append([_cell(value, best(values), digits) for value in values])
    return markdown_table(header, [[name, *cells] for name, *cells in zip(names, *columns, strict=True)])


def _relabel_table(found: list[dict]) -> str:
    header = ["scales drawn, and kept", "heard as the new family", "as the old one", "pitch within 50 cents"]
    rows = [
        [f"{one['strength']:.0%}, {one['keep']}", *(percent(one[key]) for key in ("new", "old", "in_tune"))]
        for one in found
    ]
    return markdown_table(header, rows)


def _image_table(masks: dict) -> str:
    names = list(next(iter(masks.values())))
    header = [""] + [f"{mask}: {what}" for mask in masks for what in ("L1", "SSIM")]
    columns = []
    for figures in masks.values():
        for what, best in (("l1", min), ("ssim", max)):
            values = [figures[name][what] for name in names]
            columns.append([_cell(value, best(values[:-1]), 3) for value in values])
    return markdown_table(header, [[name, *cells] for name, *cells in zip(names, *columns, strict=True)])


if __name__ == "__main__":
    sys.exit(run_program("benchmark", main))
