"""The definition of the nearest code."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_code(latents: Tensor, codebook: Tensor, cosine: bool) -> Tensor:
    """Index of the code at the least squared distance; see :func:`next_scale.kernels.nearest_code.op.nearest_code`."""
    if cosine:
        latents, codebook = F.normalize(latents, dim=-1), F.normalize(codebook, dim=-1)
    # The matrix product's way of computing distances loses the digits that tell close codes apart.
    return torch.cdist(latents, codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
