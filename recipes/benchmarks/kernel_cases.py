"""The sizes at which the ops are measured, and what each is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from next_scale.kernels.guided_sample import guided_sample
from next_scale.kernels.nearest_code import nearest_code
from next_scale.sampling import NoiseStreams, SamplingOptions

Run = Callable[[], object]
PLAIN = "PyTorch, plain"


@dataclass
class Problem:
    """One op on inputs of one size.

    Attributes:
        implementations: by name; the first is the definition, whose result the others must have.
        distance: of a result from the definition's.
        tolerance: the greatest distance that is rounding.
        moved: bytes that the op must read and write at the least.
        products: FLOPs of its matrix products.
        low_precision: whether these are of bfloat16.
        strangers: implementations that are timed and not checked, for they draw noise of their own.
    """

    implementations: dict[str, Run]
    distance: Callable[[object, object], float]
    tolerance: float
    moved: float
    products: float = 0.0
    low_precision: bool = False
    strangers: dict[str, Run] = field(default_factory=dict)


class Case(NamedTuple):
    """An op at a size: `make` takes a device and the number of samples, of which the size's own is `batch`."""

    op: str
    size: str
    batch: int
    make: Callable[[torch.device, int], Problem]


def _share_of_other(found: Tensor, expected: Tensor) -> float:
    """Share of tokens that are not the definition's."""
    return float((found != expected).float().mean())


def _implementations(call: Callable[..., object], eager: Run) -> dict[str, Run]:
    """The op by each choice, and what PyTorch makes of the plain lines, as they are and compiled."""
    named = {"definition": "reference", "PyTorch, ours": "torch", "CUDA, ours": "cuda"}
    found = {name: partial(call, implementation=choice) for name, choice in named.items()}
    return found | {PLAIN: eager, "torch.compile": torch.compile(eager)}


def _nearest(latents: int, codes: int, channels: int, device: torch.device, batch: int) -> Problem:
    x = torch.randn(batch * latents, channels, device=device)
    codebook = torch.randn(codes, channels, device=device)

    def plain() -> Tensor:
        return torch.addmm(codebook.square().sum(-1), x, codebook.t(), alpha=-2).argmin(1)

    return Problem(
        _implementations(partial(nearest_code, x, codebook), plain), _share_of_other,
        tolerance=1e-3,  # of tokens between two codes that are equally near up to rounding
        moved=x.nbytes + codebook.nbytes + 8 * len(x), products=2.0 * x.numel() * codes,
    )  # fmt: skip


def _sample(
    tokens: int, codes: int, top_k: int, top_p: float, device: torch.device, batch: int, cfg: float = 4.0
) -> Problem:
    conditional, unconditional = torch.randn(2, batch, tokens, codes, device=device).mul_(2).unbind(0)
    noise = NoiseStreams(range(batch)).gumbel(tokens, codes, device)
    options = SamplingOptions(top_k=top_k, top_p=top_p)

    def by_sorting() -> Tensor:
        z, order = ((1 + cfg) * conditional - cfg * unconditional).sort(dim=-1, descending=True)
        if top_k:
            z[..., top_k:] = -torch.inf
        share = z.softmax(-1)
        if top_p:
            z = z.masked_fill(share.cumsum(-1) - share >= top_p, -torch.inf)
        return order.gather(-1, (z + noise.gather(-1, order)).argmax(-1, keepdim=True)).squeeze(-1)

    def by_flashinfer() -> Tensor:
        from flashinfer.sampling import top_k_top_p_sampling_from_logits

        logits = torch.lerp(unconditional, conditional, 1 + cfg).flatten(0, 1)  # (B, n, V) -> (B n, V)
        return top_k_top_p_sampling_from_logits(logits, top_k or codes, top_p or 1.0)

    def ours(implementation: str) -> Tensor:
        return guided_sample(conditional, options, noise, unconditional, cfg, implementation=implementation).tokens

    return Problem(
        _implementations(ours, by_sorting),
        _share_of_other, tolerance=1e-3,  # of tokens whose draw rounding decides
        moved=3 * conditional.nbytes + 8 * batch * tokens, strangers={"FlashInfer": by_flashinfer},
    )  # fmt: skip


CASES = (
    Case("nearest_code", "VAR, 256 pixels", 256, partial(_nearest, 256, 4096, 32)),
    Case("nearest_code", "VAR, 512 pixels", 16, partial(_nearest, 1024, 4096, 32)),
    Case("nearest_code", "AAR", 16, partial(_nearest, 75, 1024, 128)),
    Case("nearest_code", "Notes", 16, partial(_nearest, 64, 1024, 64)),
    Case("guided_sample", "VAR, 256 pixels, last scale", 8, partial(_sample, 256, 4096, 900, 0.96)),
    Case("guided_sample", "VAR, 512 pixels, last scale", 8, partial(_sample, 1024, 4096, 900, 0.96)),
    Case("guided_sample", "AAR, last scale", 16, partial(_sample, 75, 1024, 200, 0.95)),
    Case("guided_sample", "Notes, last scale", 16, partial(_sample, 64, 1024, 200, 0.95, cfg=1.5)),
)
