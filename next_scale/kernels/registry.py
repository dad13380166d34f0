"""Every kernel in its usual sizes, for whoever compiles or checks them all."""

from __future__ import annotations

import torch

from next_scale.kernels.guided_sample import cuda as guided_sample
from next_scale.kernels.nearest_code import cuda as nearest_code
from next_scale.kernels.prefix_attention import cuda as prefix_attention
from next_scale.kernels.pyramid_step import cuda as pyramid_step
from next_scale.kernels.runtime import Source

TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120")


def sources() -> list[tuple[str, Source]]:
    """What each is made for, in words, and its source."""
    nearest = [(f"{channels} channels", nearest_code.source(channels)) for channels in (4, 8, 32, 64, 128, 256)]
    sample = [(f"{codes} codes", guided_sample.source(codes)) for codes in (512, 1024, 4096, 16384)]
    heads = ((64, torch.bfloat16), (128, torch.bfloat16), (64, torch.float32))
    attention = [(f"heads of {d}, {str(t)[6:]}", prefix_attention.source(d, t)) for d, t in heads]
    return nearest + sample + pyramid_step.usual() + attention
