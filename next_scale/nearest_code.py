"""Nearest codebook entry of each latent vector."""

import torch
import torch.nn.functional as F
from torch import Tensor

from next_scale import flops


@torch.no_grad()
def nearest_code(latents: Tensor, codebook: Tensor, cosine: bool = False, chunk: int = 512) -> Tensor:
    """Index of the nearest code of each latent; ties go to the lowest index.

    Args:
        latents: (N, C) float.
        codebook: (V, C) float.
        cosine: compare directions only (both sides l2-normalised) instead of squared Euclidean distance.
        chunk: rows compared at a time: the distances of 512 rows stay in cache, those of all of them do not.

    Returns:
        (N,) int64.

    Shape notation: N latents, C channels, V codes.
    """
    flops.report(2.0 * latents.numel() * codebook.shape[0])
    if cosine:
        latents, codebook = F.normalize(latents, dim=-1), F.normalize(codebook, dim=-1)
    # |x - e|^2 = |x|^2 - 2 x.e + |e|^2, and |x|^2 is the same for every code
    norms = codebook.square().sum(-1)
    codes = codebook.t()
    return torch.cat([torch.addmm(norms, rows, codes, alpha=-2).argmin(1) for rows in latents.split(chunk)])
