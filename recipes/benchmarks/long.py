"""Long clips: memory, time to first sound, speed, and whether a detector of changes finds the joins.

    python -m recipes.benchmarks.long --out samples/long

makes clips with the shipped model (another: --checkpoint PATH), each in a process of its own, and writes long.json and
the table long.md. Whatever else the machine does meanwhile counts for the times, so its load average is written down.

Spectral flux is the sum over frequencies of what log(1 + 10 |STFT|) gains from one frame to the next (window 1,024,
hop 256; Dixon, "Onset detection revisited", DAFx 2006). At joins: the four frames on either side of the end of a fade,
where flux is greatest, if anywhere. Elsewhere: all others, without the attack and the release. For comparison, clips
drawn apart and cross-faded over 32 ms in the waveform.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from audio_var.cli.clips import FADE, Windows
from audio_var.cli.models import open_generator
from audio_var.io import AudioWriter, read_audio
from audio_var.long import plan_lasting, sound_long
from next_scale.cli import Outputs, Parser, run_program, sample_seed, whole_number
from next_scale.condition import collate_conditions, encode_condition
from next_scale.model import Generator
from next_scale.report import markdown_table

NOTES = {"string": 55, "flute": 72, "organ": 48, "vocal": 64, "guitar": 52, "mallet": 67}  # label -> pitch
SIZE, HOP = 1024, 256
NEAR = 4  # frames on either side of the end of a fade
EDGE = 0.5  # seconds of attack and release that are left out


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recipes.benchmarks.long", description=__doc__)
    parser.add_argument("--checkpoint", metavar="PATH", help="of a generator (default: the shipped one)")
    parser.add_argument("--short", type=whole_number(1), default=4, metavar="S", help="default: %(default)s")
    parser.add_argument("--long", type=whole_number(1), default=60, metavar="S", help="default: %(default)s")
    parser.add_argument("--others", type=whole_number(1), default=20, metavar="S", help="length of the other clips")
    parser.add_argument("--jobs", type=whole_number(1), default=1, metavar="N", help="processes at once (default: 1)")
    parser.add_argument("--out", default="samples/long", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument(
        "--clip", nargs=3, metavar=("LABEL", "SECONDS", "FILE"), help="make this clip, and tell about it"
    )
    return parser


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    if args.clip:
        label, seconds, file = args.clip
        print(json.dumps(one_clip(args.checkpoint, label, float(seconds), file)))
        return
    load = os.getloadavg()[0]
    wanted = [("string", args.short), ("string", args.long), *((label, args.others) for label in list(NOTES)[1:])]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        files = [Path(folder, f"{label}_{seconds}.wav") for label, seconds in wanted]
        jobs = [pool.submit(in_process, args.checkpoint, *clip, file) for clip, file in zip(wanted, files, strict=True)]
        model = open_generator(args.checkpoint, "cpu").pack()
        hop = model.tokenizer.autoencoder.hop
        rows = [job.result() for job in jobs]
        for row, file in list(zip(rows, files, strict=True))[1:]:
            sound = torch.from_numpy(read_audio(file, row["rate"]))
            joins = plan_lasting(model, len(sound)).joins  # in latent frames
            row["flux"] = flux_at(
                sound, [(start * hop // HOP, stop * hop // HOP) for start, stop in joins], row["rate"]
            )
        rows[1]["apart"] = drawn_apart(model, "string", args.others)
    command = f"python -m recipes.benchmarks.long {' '.join(argv)}".strip()
    machine = {"load average": load, "at once": args.jobs, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    with Outputs() as outputs:
        out = outputs.folder(args.out)
        outputs.file(out / "long.json").write_text(json.dumps({"machine": machine, "clips": rows}, indent=1) + "\n")
        outputs.file(out / "long.md").write_text(page(rows, command, machine), encoding="utf-8")


def in_process(checkpoint: str | None, label: str, seconds: float, file: Path) -> dict:
    """:func:`one_clip` in a process of its own, whose memory is that of this clip alone."""
    argv = [sys.executable, "-m", "recipes.benchmarks.long", "--clip", label, str(seconds), str(file)]
    argv += ["--checkpoint", checkpoint] if checkpoint else []
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def asked(model: Generator, label: str, count: int = 1) -> dict[str, Tensor]:
    """The condition of a clip of that label, at its pitch."""
    values = {"label": label, "pitch": NOTES[label], "velocity": 80}
    return collate_conditions([encode_condition(model.condition_spec, values)] * count, model.condition_spec)


def one_clip(checkpoint: str | None, label: str, seconds: float, file: str) -> dict:
    """Make a clip as the command does, and tell what it took."""
    model = open_generator(checkpoint, "cpu").pack()
    rate = model.tokenizer.autoencoder.sample_rate
    samples, first = round(seconds * rate), None
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began, used = time.perf_counter(), time.process_time()
    with AudioWriter(file, rate, samples) as writer:
        for sound in sound_long(model, asked(model, label), [sample_seed(0, 0)], samples):
            writer.write(sound[0, 0].numpy())
            first = first or (time.perf_counter() - began, time.process_time() - used)
    return {
        "label": label, "seconds": seconds, "rate": rate, "loaded_mib": loaded,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "first_s": first[0], "first_processor_s": first[1],
        "factor": seconds / (time.perf_counter() - began),
        "processor_factor": seconds / (time.process_time() - used),
    }  # fmt: skip


def flux(sound: Tensor) -> Tensor:
    """What every frame gains over the one before it: (N,) -> (frames,)."""
    spectrum = torch.stft(sound, SIZE, HOP, window=torch.hann_window(SIZE), return_complex=True).abs()
    level = torch.log1p(10 * spectrum)  # (F, frames)
    return torch.cat([level.new_zeros(1), level.diff(dim=1).clamp_min(0).sum(0)])


def flux_at(sound: Tensor, joins: list[tuple[int, int]], rate: int) -> dict:
    """Flux at joins, in frames of a hop, and elsewhere."""
    found = flux(sound)
    at = torch.zeros(len(found), dtype=torch.bool)
    for _, stop in joins:
        at[stop - NEAR : stop + NEAR] = True
    inside = torch.zeros_like(at)
    inside[round(EDGE * rate / HOP) : len(found) - round(EDGE * rate / HOP)] = True
    here, there = found[at & inside], found[~at & inside]
    limit = float(there.quantile(0.95))
    return {
        "joins": len(joins), "elsewhere_p95": limit, "at_median": float(here.median()),
        "at_p95": float(here.quantile(0.95)), "at_above": float((here > limit).float().mean()),
        "at_max": float(here.max()), "elsewhere_max": float(there.max()),
    }  # fmt: skip


def drawn_apart(model: Generator, label: str, seconds: float) -> dict:
    """Flux where clips of the same condition, drawn apart, are cross-faded in the waveform."""
    rate = model.tokenizer.autoencoder.sample_rate
    size = model.predictor.schedule.grid[0] * model.tokenizer.autoencoder.hop
    windows = Windows(round(seconds * rate), size, FADE)
    clips, _ = model.generate(asked(model, label, windows.count), [sample_seed(0, n) for n in range(windows.count)])
    starts = [n * (size - FADE) // HOP for n in range(1, windows.count)]
    sound = torch.from_numpy(windows.join(clips))
    return flux_at(sound, [(start, start + FADE // HOP) for start in starts], rate)


def page(rows: list[dict], command: str, machine: dict) -> str:
    """The tables."""
    took = [
        [
            f"{row['label']}, {row['seconds']:.0f} s", f"{row['loaded_mib']:.0f}", f"{row['peak_mib']:.0f}",
            f"{row['first_s']:.2f} ({row['first_processor_s']:.2f})",
            f"{row['factor']:.1f} ({row['processor_factor']:.1f})",
        ]
        for row in rows
    ]  # fmt: skip
    found = [(f"{row['label']}, {row['seconds']:.0f} s", row["flux"]) for row in rows if "flux" in row]
    found += [(f"{row['label']}, drawn apart", row["apart"]) for row in rows if "apart" in row]
    heard = [
        [
            name, str(flux["joins"]), f"{flux['at_median']:.1f}", f"{flux['at_p95']:.1f}", f"{flux['at_max']:.1f}",
            f"{flux['elsewhere_p95']:.1f}", f"{flux['elsewhere_max']:.1f}", f"{flux['at_above']:.1%}",
        ]
        for name, flux in found
    ]  # fmt: skip
    facts = ", ".join(f"{name} {value:.4g}" for name, value in machine.items())
    took_head = [
        "clip", "MiB after loading", "MiB at most", "first sound, s (processor s)", "times real time (by processor)"
    ]  # fmt: skip
    heard_head = [
        "clip", "joins", "median at joins", "95% at joins", "greatest at joins", "95% elsewhere", "greatest elsewhere",
        "frames at joins above 95% elsewhere",
    ]  # fmt: skip
    return (
        f"`{command}` ({facts}):\n\n{markdown_table(took_head, took)}\n\n"
        f"Spectral flux:\n\n{markdown_table(heard_head, heard)}\n"
    )


if __name__ == "__main__":
    sys.exit(run_program("long", main))
