"""Long clips: how windows of a model cover a time, and the sound of them piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from audio_var.cli.clips import schedule_of
from audio_var.streaming import StreamDecoder
from next_scale.long import Plan, draw_long
from next_scale.model import Generator
from next_scale.sampling import SamplingOptions

FADE = 0.02  # seconds over which a clip shorter than the model's ends


def plan_lasting(model: Generator, samples: int) -> Plan:
    """Windows for clips of at least so many samples: of the model's length, or of about 4 s where it has none."""
    size = schedule_of(model.tokenizer, samples).grid[0]
    return Plan.of(math.ceil(samples / model.tokenizer.autoencoder.hop), size)


def sound_long(
    model: Generator,
    condition: Mapping[str, Tensor],
    seeds: Sequence[int],
    samples: int,
    sampling: SamplingOptions | None = None,
) -> Iterator[Tensor]:
    """Clips of any length piece by piece, in memory that does not grow with it.

    See :func:`next_scale.long.draw_long` for how they are drawn and :class:`audio_var.streaming.StreamDecoder` for how
    they are decoded. A clip shorter than the model's is the beginning of one, with a short fade at its end.

    Args:
        condition: as :meth:`next_scale.model.Generator.generate` takes it.
        seeds: one a clip, B.
        samples: N, length of the clips.
        sampling: the model's own by default.

    Yields:
        (B, 1, n) float32, on the device of the model; the n add up to `samples`.

    Raises:
        UserError: the model's family cannot be told what is known.
    """
    plan = plan_lasting(model, samples)
    codec = model.tokenizer.autoencoder
    decoders = [StreamDecoder(codec) for _ in seeds]  # one at a time: matrix products round differently in a batch
    fade = round(FADE * codec.sample_rate) if plan.length < plan.size else 0
    done = 0

    def ready(parts: list[Tensor]) -> Tensor:
        sound = torch.cat(parts)[..., : samples - done]
        if fade:
            place = torch.arange(done, done + sound.shape[-1], device=sound.device)
            sound = sound * ((samples - place - 0.5) / min(fade, samples)).clamp(0, 1)
        return sound

    for latent in draw_long(model, condition, seeds, plan, sampling):
        sound = ready([decoder.push(row) for decoder, row in zip(decoders, latent.split(1), strict=True)])
        if sound.shape[-1]:
            yield sound
            done += sound.shape[-1]
    yield ready([decoder.finish() for decoder in decoders])
