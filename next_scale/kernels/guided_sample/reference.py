"""The definition of a guided draw."""

import math

import torch
from torch import Tensor


def guided_sample(
    conditional: Tensor,
    unconditional: Tensor | None,
    noise: Tensor | None,
    strength: float,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """See :func:`next_scale.kernels.guided_sample.op.guided_sample`; logits (..., V) -> (...,) int64, tokens alone."""
    z = conditional
    if unconditional is not None:
        z = (1 + strength) * conditional - strength * unconditional
    if noise is None:
        return z.argmax(-1)
    z = z / temperature
    if 0 < top_k < z.shape[-1]:
        z = z.masked_fill(z < z.sort(descending=True).values[..., top_k - 1 : top_k], -math.inf)
    if 0 < top_p < 1:
        descending = z.sort(descending=True).values
        probability = descending.softmax(-1)
        kept = (probability.cumsum(-1) - probability < top_p) & (descending > -math.inf)
        least = descending.masked_fill(~kept, math.inf).amin(-1, keepdim=True)
        z = z.masked_fill(z < torch.minimum(least, descending[..., :1]), -math.inf)
    return (z + noise).argmax(-1)
