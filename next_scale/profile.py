"""The profile of a pyramid: what each scale adds, in distortion and in bits.

Where coarse scales explain little, as averages of an oscillating latent may, a next-scale predictor has little to
predict from: the profile tells before anything is trained on the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from next_scale.metrics import codebook_usage
from next_scale.tokenizer import Tokenizer


@dataclass(frozen=True)
class ScaleProfile:
    """A pyramid after one of its scales.

    Attributes:
        size: of the scale's grid.
        tokens: of the scale, n_k.
        bits: that the scale takes, n_k log2 V.
        entropy: bits that an ideal code for the frequencies of the scale's codes takes.
        latent: squared error of the latent so far over the latent's variance: 1 before the first scale, of an
            ideal mean.
        distortion: of the decoded samples, by the function that was given.
    """

    size: list[int]
    tokens: int
    bits: float
    entropy: float
    latent: float
    distortion: float


@torch.inference_mode()
def pyramid_profile(
    tokenizer: Tokenizer, batches: Iterable[Tensor], distortion: Callable[[Tensor, Tensor], Tensor]
) -> list[ScaleProfile]:
    """The profile of a tokenizer of an absolute schedule.

    Args:
        batches: samples (B, ...), as the autoencoder takes them.
        distortion: of samples and what was decoded, both (B, ...), to (B,).

    Returns:
        One entry a scale.

    Shape notation: B batch, C channels, K scales, n_k tokens of scale k, V codes.
    """
    quantizer = tokenizer.quantizer
    schedule = quantizer.schedule
    tokens, latents, samples = [], [], []
    for batch in batches:
        latent = tokenizer.autoencoder.encode(batch)
        tokens.append(quantizer.encode(latent))
        latents.append(latent)
        samples.append(batch)
    every = torch.cat(latents)
    spread = (every - every.mean(0)).square().mean()
    usage = codebook_usage(torch.cat(tokens), schedule, quantizer.codebook_size)
    rows = []
    for k in range(schedule.scales):
        error, found = [], []
        for ids, latent, batch in zip(tokens, latents, samples, strict=True):
            so_far = quantizer.decode(ids, k + 1)
            error.append((so_far - latent).square().flatten(1).mean(1))
            found.append(distortion(batch, tokenizer.autoencoder.decode(so_far)))
        rows.append(
            ScaleProfile(
                size=list(schedule.sizes[k]),
                tokens=usage[k].tokens,
                bits=usage[k].bits,
                entropy=usage[k].entropy,
                latent=float(torch.cat(error).mean() / spread),
                distortion=float(torch.cat(found).mean()),
            )
        )
    return rows
