"""Small inputs that are right, made by code, for the fuzzers to start from."""

from __future__ import annotations

import io
import json
import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


@cache
def scratch() -> Path:
    """A folder for the files under test, removed at the end."""
    global _scratch
    _scratch = tempfile.TemporaryDirectory(prefix="fuzz-", dir=os.environ.get("FUZZ_SCRATCH"))
    return Path(_scratch.name)


def recording(container: str = "WAV", subtype: str = "PCM_16", channels: int = 1, samples: int = 64) -> bytes:
    """A short sine, at 16 kHz."""
    import soundfile

    wave = np.sin(np.arange(samples) / 4)[:, None].repeat(channels, 1)
    out = io.BytesIO()
    soundfile.write(out, wave, 16_000, subtype, format=container)
    return out.getvalue()


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> bytes:
    """A ramp of every mode."""
    from PIL import Image

    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(out, kind)
    return out.getvalue()


def score() -> bytes:
    """A Standard MIDI File of three notes with a change of tempo and of program."""
    import mido

    track = mido.MidiTrack(
        [
            mido.MetaMessage("set_tempo", tempo=400_000),
            mido.Message("program_change", program=40),
            mido.Message("note_on", note=60, velocity=80),
            mido.Message("note_on", note=64, velocity=80, time=120),
            mido.Message("note_off", note=60, time=240),
            mido.Message("note_on", note=36, velocity=80, channel=9),
            mido.Message("note_off", note=64, time=240),
        ]
    )
    out = io.BytesIO()
    mido.MidiFile(type=1, tracks=[track]).save(file=out)
    return out.getvalue()


def token_file() -> bytes:
    """Two pyramids of 7 tokens."""
    import torch

    from next_scale.schedule import Schedule
    from next_scale.token_file import TokenFile, write_token_file

    path = scratch() / "seed.nst"
    write_token_file(path, TokenFile(torch.arange(14).view(2, 7), Schedule.parse("1 2 4"), 16, "0" * 16, {"rate": 1}))
    return path.read_bytes()


@cache
def shards() -> tuple[bytes, str, bytes]:
    """A set of one shard with latents: its index, the shard's name, and the shard."""
    from dataclasses import replace

    from next_scale.schedule import Schedule
    from next_scale.shards.index import ShardIndex
    from next_scale.shards.shard import expected, write_shard

    whole = {"samples": 3, "shard_samples": 3, "codebook_size": 16, "condition": {"label": ["a", "b"]}}
    index = ShardIndex("train", schedule=Schedule.parse("1 2 4"), fingerprint="abc", latent=(2, 4), **whole)
    arrays = {name: np.ones(shape, dtype) for name, (dtype, shape) in expected(index, 3).items()}
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    shard = write_shard(folder, 0, arrays)
    return replace(index, shards=(shard,)).to_json().encode(), shard.file, (folder / shard.file).read_bytes()


@cache
def model_folder(kind: str = "spectral") -> Path:
    """A checkpoint of a very small generator, some 20 KB."""
    import torch

    from next_scale.checkpoint import save_pretrained
    from next_scale.model import Generator
    from next_scale.predictors import AnyLength, NextScale
    from next_scale.quantizer import MultiScaleQuantizer
    from next_scale.schedule import Schedule, StrideSchedule
    from next_scale.tokenizer import Tokenizer

    torch.manual_seed(0)
    small = {"width": 8, "depth": 1, "heads": 2}
    if kind == "vqgan":
        from image_var.autoencoder import build_autoencoder

        codec = build_autoencoder("vqgan", channels_in=1, width=4, multipliers=(1, 1), latent_channels=4,
                                  encoder_blocks=1, decoder_blocks=1, attention=False, groups=2)  # fmt: skip
        schedule: Schedule | StrideSchedule = Schedule.parse("1x1 2x2 4x4")
    else:
        from audio_var.codecs import build_codec

        codec = build_codec("spectral", fft_size=64, hop=16, latent_channels=4, width=8, encoder_depth=1,
                            decoder_depth=1)  # fmt: skip
        schedule = StrideSchedule((4, 2, 1)) if kind == "strides" else Schedule.parse("1 2 4")
    quantizer = MultiScaleQuantizer(schedule, 4, codebook_size=8, phis=1)
    family = AnyLength if kind == "strides" else NextScale
    spec = {"label": ["a", "b"], "pitch": [60, 61]}
    predictor = family.for_quantizer(quantizer, spec, **small)
    return save_pretrained(Generator(Tokenizer(codec, quantizer), predictor), scratch() / kind)


def configuration(kind: str = "spectral") -> bytes:
    """JSON of that checkpoint."""
    return (model_folder(kind) / "config.json").read_bytes()


def weights(kind: str = "spectral") -> bytes:
    """Its safetensors file."""
    return (model_folder(kind) / "model.safetensors").read_bytes()


def torch_file(legacy: bool = False) -> bytes:
    """What ``torch.save`` writes, or wrote until 2020."""
    import torch

    out = io.BytesIO()
    state = {"state_dict": {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}}
    torch.save(state, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def plan() -> bytes:
    """A comparison of two cells."""
    return b"""data: {audio: {folder: a}}
tokenizers:
  one: {modality: audio, dimension: 1d, schedule: natural, scales: 1 2 4, steps: 10}
sizes: {small: {width: 8, depth: 1, heads: 2}}
predictors: {next_scale: {family: next_scale}, next_token: {family: next_token, options: {depth: 2}}}
cells:
  - {tokenizers: [one], predictors: [next_scale, next_token], sizes: [small], seeds: [0, 1], match: [steps, flops]}
training: {steps: 10, batch_size: 4}
"""


def recipe() -> bytes:
    """The shortest recipe that ships."""
    return (ROOT / "recipes/audio_notes/tokenizer_debug.yaml").read_bytes()


def results() -> bytes:
    """Two lines of results, of a tokenizer and of a cell that failed."""
    place = {"modality": "audio", "dimension": "1d", "schedule": "natural"}
    cell = {"tokenizer": "one", "predictor": "next_scale", "size": "small", "seed": 0, "match": "steps", **place}
    figures = {"id": "one", "schedule": "1 2 4", "codebook_size": 16, "tokens": 7, "bits": 28.0, "parameters": 10,
               "steps": 10, "floor": {"distortion": {"mel": 0.5}, "frechet": 1.0, "kernel": 0.1},
               "latent_floor": {"distortion": {"mel": 0.4}, "frechet": 0.9, "kernel": 0.1}, "bits_per_second": 28.0,
               "profile": [{"scale": 1, "latent": 0.5, "distortion": 0.5, "bits": 4.0}]}  # fmt: skip
    records = [{"id": "tokenizer one", "place": place, "key": "0", "tokenizer": figures, "finished": "2026-01-01"},
               {"id": "one-next_scale-small-s0-steps", "cell": cell, "key": "0", "error": "out of memory"}]  # fmt: skip
    return "\n".join(json.dumps(record) for record in records).encode()
