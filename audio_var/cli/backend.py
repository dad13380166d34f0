"""What the shared commands are told about sound."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audio_var.cli import models
from next_scale.cli import real_number, whole_number
from next_scale.commands.backend import Advance, Backend, Encoded, Pair, Source, Tile, Vectors

if TYPE_CHECKING:
    from torch import Tensor

    from audio_var.data.datamodule import AudioDataModule
    from next_scale.commands.generate import Asked
    from next_scale.model import Generator
    from next_scale.sampling import SamplingOptions
    from next_scale.schedule import Schedule
    from next_scale.tokenizer import Tokenizer


class AudioBackend(Backend):
    """Clips of mono sound, (1, T) float32; recordings of any length as windows that overlap.

    Shape notation: T samples, W windows, L tokens each.
    """

    program = "audio-var"
    sample, samples, a_sample = "clip", "clips", "a clip"
    content, a_file = "audio", "an audio file"
    autoencoder = "codec"
    folder = "clips"
    fields = {
        "label": "class, such as the instrument family",
        "pitch": "MIDI note number; 60 is middle C",
        "velocity": "how hard the note is struck, 1 to 127; the nearest that the model knows is taken",
    }
    formats = ("wav", "flac", "ogg")
    typical = ("wav", "flac", "ogg", "mp3")
    sheet, sheet_option, sheet_help = "spectrograms", "plot", "also draw a sheet of spectrograms"
    batched = True

    def checkpoint_path(self, given: str | None) -> str:
        return models.checkpoint_path(given)

    def prompted_checkpoint(self) -> str:
        return models.prompted_checkpoint()

    def open_model(self, given: str | None, device: str) -> Tokenizer | Generator:
        return models.open_model(given, device)

    def schedule_of(self, tokenizer: Tokenizer) -> Schedule:
        from audio_var.cli.clips import schedule_of

        return schedule_of(tokenizer)

    def suffixes(self) -> Collection[str]:
        from audio_var.data.folder import SUFFIXES

        return SUFFIXES

    def add_read_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--max-seconds", type=whole_number(1), default=600, metavar="N", help="refuse longer files (default: 600)"
        )

    def add_generate_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--seconds",
            type=real_number(0, 3600),
            metavar="S",
            help="length of the clips (default: the model's own); longer than that, it holds the note, see above",
        )
        parser.add_argument(
            "--stream",
            action="store_true",
            help="write clips one by one and as they come, to NAME.part until they are whole, and say how soon and how "
            "fast; with --out - one clip, as a WAV file on standard output",
        )
        group = parser.add_argument_group(
            "embeddings",
            "for models that take CLAP's embedding of what shall be heard: also of a --prompt, or --condition FILE.npy",
        )
        group.add_argument(
            "--prompt-audio", nargs="+", action="extend", default=[], metavar="FILE", help="recordings to be alike"
        )
        group.add_argument(
            "--clap-model", default=None, metavar="FOLDER",
            help="CLAP model for prompts: a folder as the hub has it, or a hub id (default: the one that AAR had)",
        )  # fmt: skip

    def vectors(self, model: Generator, args: argparse.Namespace) -> dict[str, Vectors]:
        from audio_var.cli.prompts import requested_vectors

        return requested_vectors(model, args)

    def in_pieces(
        self, model: Generator, args: argparse.Namespace
    ) -> Callable[[Asked, SamplingOptions, Path | None], None] | None:
        from audio_var.cli.long import in_pieces

        return in_pieces(model, args)

    def grid(self, tokenizer: Tokenizer, args: argparse.Namespace) -> tuple[int, ...] | None:
        from audio_var.cli.clips import grid_lasting

        return None if args.seconds is None else grid_lasting(tokenizer, args.seconds)

    def finish(self, sample: Tensor, tokenizer: Tokenizer, args: argparse.Namespace) -> Tensor:
        if args.seconds is None:
            return sample
        return sample[..., : max(1, round(args.seconds * tokenizer.autoencoder.sample_rate))]

    def check(self, path: Path, args: argparse.Namespace) -> None:
        from audio_var.io import check_audio

        check_audio(path, args.max_seconds)

    def read(self, path: Path, tokenizer: Tokenizer, args: argparse.Namespace) -> Source:
        import torch

        from audio_var.io import read_audio

        rate = tokenizer.autoencoder.sample_rate
        audio = read_audio(path, rate, max_seconds=args.max_seconds)
        return Source(torch.from_numpy(audio)[None], {})

    def check_name(self, path: Path) -> None:
        from audio_var.io import check_name

        check_name(path)

    def write(self, path: Path, sample: Tensor, tokenizer: Tokenizer) -> None:
        from audio_var.io import write_audio

        write_audio(path, sample[0].numpy(), tokenizer.autoencoder.sample_rate)

    def add_data_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--seconds", type=real_number(0, 3600), metavar="S",
            help="length of a clip of a folder of audio files (default: the tokenizer's own)",
        )  # fmt: skip

    def data(self, data: str, tokenizer: Tokenizer, args: argparse.Namespace) -> AudioDataModule:
        from audio_var.data.datamodule import AudioDataModule
        from audio_var.data.notes import read_manifest

        codec = tokenizer.autoencoder
        if (Path(data) / "manifest.json").is_file():
            samples = read_manifest(data)["clip_samples"]
        elif args.seconds is None:
            samples = self.schedule_of(tokenizer).grid[0] * codec.hop
        else:
            unit = codec.hop * codec.multiple
            samples = unit * max(1, round(args.seconds * codec.sample_rate / unit))
        return AudioDataModule(data, sample_rate=codec.sample_rate, clip_samples=samples, seed=args.seed)

    def check_sheet(self, path: Path) -> None:
        from audio_var.plots import check_plot

        check_plot(path)

    def most_tiles(self, sample: Tensor) -> int:
        return 64

    def draw(self, path: Path, tiles: Sequence[Tile], columns: int, tokenizer: Tokenizer) -> None:
        from audio_var.plots import spectrogram_sheet

        clips = [(tile.name, tile.sample[0].numpy()) for tile in tiles]
        spectrogram_sheet(path, clips, tokenizer.autoencoder.sample_rate)

    def draw_pairs(self, path: Path, pairs: Sequence[Pair], tokenizer: Tokenizer) -> None:
        from audio_var.plots import spectrogram_sheet

        clips = []
        for name, original, again in pairs:
            clips += [(name, original[0].numpy()), (f"{name}, reconstructed", again[0].numpy())]
        spectrogram_sheet(path, clips, tokenizer.autoencoder.sample_rate, columns=2)

    def encode(self, tokenizer: Tokenizer, source: Source, batch_size: int, advance: Advance) -> Encoded:
        from audio_var.cli.clips import encode_audio, schedule_of

        audio = source.sample[0].numpy()
        tokens, windows = encode_audio(tokenizer, audio, batch_size, advance)
        rate = tokenizer.autoencoder.sample_rate
        details = {"sample_rate": rate, "samples": windows.samples, "fade": windows.fade}
        return Encoded(tokens, schedule_of(tokenizer, windows.samples), details)

    def decode(
        self, tokenizer: Tokenizer, encoded: Encoded, scales: int | None, batch_size: int, advance: Advance
    ) -> Tensor:
        import torch

        from audio_var.cli.clips import decode_audio, windows_for

        windows = windows_for(tokenizer, encoded.details["samples"])
        audio = decode_audio(tokenizer, encoded.tokens, windows, scales, batch_size, advance)
        return torch.from_numpy(audio)[None]

    def fits(self, encoded: Encoded, tokenizer: Tokenizer) -> bool:
        from audio_var.cli.clips import schedule_of, windows_for

        details = encoded.details
        samples = details.get("samples")
        if type(samples) is not int or samples < 1:
            return False
        windows, schedule = windows_for(tokenizer, samples), schedule_of(tokenizer, samples)
        described = encoded.schedule, details.get("sample_rate"), details.get("fade"), len(encoded.tokens)
        return described == (schedule, tokenizer.autoencoder.sample_rate, windows.fade, windows.count)

    def size_text(self, sample: Tensor, tokenizer: Tokenizer) -> str:
        return f"{sample.shape[-1] / tokenizer.autoencoder.sample_rate:.2f} s"

    def rate_text(self, details: dict, bits: int, tokenizer: Tokenizer) -> str:
        seconds = details["samples"] / details["sample_rate"]
        return f"{seconds:.2f} s, {bits:,} bits, {bits / seconds / 1000:.2f} kbit/s"

    def facts(self, tokenizer: Tokenizer, schedule: Schedule) -> dict:
        codec = tokenizer.autoencoder
        samples = schedule.grid[0] * codec.hop
        bits = schedule.bits(tokenizer.quantizer.codebook_size)
        return {
            "codec": codec.name,
            "sample_rate": codec.sample_rate,
            "hop": codec.hop,
            "clip_samples": samples,
            "clip_seconds": samples / codec.sample_rate,
            "kbit_per_second": bits * codec.sample_rate / samples / 1000,
        }

    def lines(self, facts: dict) -> list[tuple[str, str]]:
        return [
            ("codec", f"{facts['codec']}, {facts['sample_rate']:,} Hz, hop {facts['hop']} samples"),
            ("clip", f"{facts['clip_samples']:,} samples, {facts['clip_seconds']:.3f} s"),
        ]

    def rate_line(self, facts: dict) -> str:
        return f"{facts['kbit_per_second']:.2f} kbit/s"


BACKEND = AudioBackend()
