"""The operator ``next_scale::nearest_code``, which ``torch.compile`` keeps whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from next_scale import flops
from next_scale.kernels.dispatch import dispatch
from next_scale.kernels.nearest_code import chunked, cuda, reference


@torch.no_grad()
def nearest_code(latents: Tensor, codebook: Tensor, cosine: bool = False, implementation: str = "auto") -> Tensor:
    """Index of the nearest code of each latent; ties go to the lowest index.

    Args:
        latents: (N, C) float.
        codebook: (V, C) float.
        cosine: compare directions only (both sides l2-normalised) instead of squared Euclidean distance.
        implementation: see :func:`next_scale.kernels.dispatch.dispatch`.

    Returns:
        (N,) int64.

    Raises:
        UserError: the implementation asked for cannot run here.

    Shape notation: N latents, C channels, V codes.
    """
    flops.report(2.0 * latents.numel() * codebook.shape[0])
    return _nearest_code(latents, codebook, cosine, implementation)


@torch.library.custom_op("next_scale::nearest_code", mutates_args=())
def _nearest_code(latents: Tensor, codebook: Tensor, cosine: bool, implementation: str) -> Tensor:
    return dispatch(
        "nearest_code",
        implementation,
        lambda: cuda.unable(latents, codebook),
        cuda=lambda: cuda.nearest_code(latents, codebook, cosine),
        torch=lambda: chunked.nearest_code(latents, codebook, cosine),
        reference=lambda: reference.nearest_code(latents, codebook, cosine),
    )


@_nearest_code.register_fake
def _(latents: Tensor, codebook: Tensor, cosine: bool, implementation: str) -> Tensor:
    return latents.new_empty(latents.shape[0], dtype=torch.int64)


@register_flop_formula(torch.ops.next_scale.nearest_code)
def _(latents: torch.Size, codebook: torch.Size, *_: object, **__: object) -> int:
    """What PyTorch's own counter counts, which does not see into operators; it hands over the tensors' shapes."""
    return 2 * latents.numel() * codebook[0]
