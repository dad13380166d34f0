"""The sizes at which the ops are measured, and what each is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from next_scale.kernels.guided_sample import guided_sample
from next_scale.kernels.nearest_code import nearest_code
from next_scale.kernels.prefix_attention import Prefix, flex, prefix_attention
from next_scale.kernels.prefix_attention.reference import normalised
from next_scale.kernels.pyramid_step import pyramid_inputs, pyramid_tokens
from next_scale.sampling import NoiseStreams, SamplingOptions
from next_scale.schedule import Schedule

Run = Callable[[], object]
DEFINITION, PLAIN, COMPILED = "definition", "PyTorch, plain", "torch.compile"
OURS = {DEFINITION: "reference", "PyTorch, ours": "torch", "CUDA, ours": "cuda"}  # by what callers name them


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
    found = {name: partial(call, implementation=choice) for name, choice in OURS.items()}
    return found | {PLAIN: eager, COMPILED: torch.compile(eager)}


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


def _attention(
    schedule: str, heads: int, width: int, normalise: bool, backward: bool, device: torch.device, batch: int
) -> Problem:
    ends = Schedule.parse(schedule).visible_end
    prefix, L = Prefix(ends).to(device), len(ends)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v, grad = (torch.randn(batch, L, heads, width, device=device, dtype=dtype) for _ in range(4))
    head_scale = torch.full((heads,), 4.0, device=device, dtype=dtype) if normalise else None
    scale = 1.0 if normalise else width**-0.5
    leaves = [x.requires_grad_(backward) for x in (q, k, v)]
    mask = torch.arange(L, device=device) < ends[:, None].to(device)  # (L, L)

    def with_dense_mask() -> Tensor:
        queries, keys = normalised(q, k, head_scale)
        parts = (x.transpose(1, 2) for x in (queries, keys, v))  # (B, L, H, d) -> (B, H, L, d)
        return F.scaled_dot_product_attention(*parts, mask, scale=scale).transpose(1, 2)

    def trained(run: Callable[..., Tensor]) -> Run:
        def both() -> tuple[Tensor, ...]:
            out = run()
            return (out.detach(), *torch.autograd.grad(out, leaves, grad))

        return both if backward else lambda: (run(),)

    ours = partial(prefix_attention, q, k, v, prefix, scale, head_scale)
    runs = {name: trained(partial(ours, implementation=choice)) for name, choice in OURS.items()}
    runs |= {PLAIN: trained(with_dense_mask), COMPILED: trained(torch.compile(with_dense_mask))}
    runs["FlexAttention"] = trained(partial(flex.prefix_attention, q, k, v, prefix, scale, head_scale))
    pairs = 4.0 * batch * heads * width * int(ends.sum())  # of forward: two products, a multiplication and an addition
    return Problem(
        runs, _greatest_difference, tolerance=4e-2 if dtype == torch.bfloat16 else 1e-3,
        moved=(12 if backward else 4) * q.nbytes, products=pairs * (3.5 if backward else 1),
        low_precision=dtype == torch.bfloat16,
    )  # fmt: skip


def _greatest_difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Of any tensor, over its greatest value."""
    pairs = zip(found, expected, strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)


class _Pyramid:
    """A quantizer's parts, for the ops of the step between scales."""

    def __init__(self, schedule: str, codes: int, channels: int, kernel: int, upsampling: str, device: torch.device):
        self.schedule = Schedule.parse(schedule)
        dim = self.schedule.dim
        self.codes = [torch.randn(codes, channels, device=device)]
        shape = (channels, channels, *[kernel] * dim)
        self.weights = [torch.randn(shape, device=device) / channels / kernel for _ in range(4)]
        self.biases = [torch.randn(channels, device=device) for _ in range(4)]
        phis = [min(4 * k // self.schedule.scales, 3) for k in range(self.schedule.scales)]
        self.options = (self.codes, self.schedule.sizes, upsampling, self.weights, self.biases, 0.5, phis)
        cells = self.schedule.counts[-1]
        self.convolutions = 2.0 * (self.schedule.scales - 1) * self.weights[0].numel() * cells  # a sample

    def runs(self, call: Callable[..., Tensor]) -> dict[str, Run]:
        """By each choice; the definition is the plain lines here."""
        found = {PLAIN if name == DEFINITION else name: partial(call, implementation=choice)
                 for name, choice in OURS.items()}  # fmt: skip
        return found | {COMPILED: torch.compile(found[PLAIN])}


def _teacher_forcing(pyramid: tuple, device: torch.device, batch: int) -> Problem:
    parts = _Pyramid(*pyramid, device)
    tokens = torch.randint(len(parts.codes[0]), (batch, parts.schedule.length), device=device)
    shown = 4.0 * batch * (parts.schedule.length - parts.schedule.counts[0]) * parts.codes[0].shape[1]
    runs = parts.runs(lambda implementation: (pyramid_inputs(tokens, *parts.options, implementation=implementation),))
    return Problem(
        runs, _greatest_difference, 1e-3, moved=tokens.nbytes + shown + parts.codes[0].nbytes,
        products=batch * parts.convolutions,
    )  # fmt: skip


def _tokenizing(pyramid: tuple, device: torch.device, batch: int) -> Problem:
    parts = _Pyramid(*pyramid, device)
    channels = parts.codes[0].shape[1]
    latent = torch.randn(batch, channels, *parts.schedule.grid, device=device)
    runs = parts.runs(lambda implementation: pyramid_tokens(latent, *parts.options, implementation=implementation))
    search = 2.0 * batch * parts.schedule.length * parts.codes[0].numel()
    return Problem(
        runs, _share_of_other, tolerance=0.05,  # a token between two equally near codes changes those after it
        moved=latent.nbytes + parts.codes[0].nbytes + 8.0 * batch * parts.schedule.length,
        products=batch * parts.convolutions + search,
    )  # fmt: skip


VAR_256 = "1x1 2x2 3x3 4x4 5x5 6x6 8x8 10x10 13x13 16x16"
VAR_512 = "1x1 2x2 3x3 4x4 6x6 9x9 13x13 18x18 24x24 32x32"
AAR = "1 2 4 6 9 12 16 20 25 31 37 43 50 58 66 75"
NOTES = "1 1 1 2 2 4 4 8 8 16 16 32 32 64"
PYRAMIDS = {
    "VAR, 256 pixels": (VAR_256, 4096, 32, 3, "cubic"),
    "AAR": (AAR, 1024, 128, 9, "linear"),
    "Notes": (NOTES, 1024, 64, 3, "linear"),
}
ATTENTION = {  # schedule, heads, channels of a head, whether q and k are normalised; batch of training
    "VAR d16, 256 pixels": ((VAR_256, 16, 64, True), 16),
    "VAR d30, 256 pixels": ((VAR_256, 30, 64, True), 8),
    "VAR d36, 512 pixels": ((VAR_512, 36, 64, True), 2),
    "AAR": ((AAR, 16, 64, True), 16),
    "Notes": ((NOTES, 4, 48, True), 32),
}

CASES = (
    Case("nearest_code", "VAR, 256 pixels", 256, partial(_nearest, 256, 4096, 32)),
    Case("nearest_code", "VAR, 512 pixels", 16, partial(_nearest, 1024, 4096, 32)),
    Case("nearest_code", "AAR", 16, partial(_nearest, 75, 1024, 128)),
    Case("nearest_code", "Notes", 16, partial(_nearest, 64, 1024, 64)),
    Case("guided_sample", "VAR, 256 pixels, last scale", 8, partial(_sample, 256, 4096, 900, 0.96)),
    Case("guided_sample", "VAR, 512 pixels, last scale", 8, partial(_sample, 1024, 4096, 900, 0.96)),
    Case("guided_sample", "AAR, last scale", 16, partial(_sample, 75, 1024, 200, 0.95)),
    Case("guided_sample", "Notes, last scale", 16, partial(_sample, 64, 1024, 200, 0.95, cfg=1.5)),
    *(Case("pyramid_inputs", f"{name}, teacher forcing", 64, partial(_teacher_forcing, pyramid))
      for name, pyramid in PYRAMIDS.items()),
    *(Case("pyramid_tokens", f"{name}, tokenizing", 64, partial(_tokenizing, pyramid))
      for name, pyramid in PYRAMIDS.items()),
    *(Case("prefix_attention", f"{name}, {'forward and backward' if backward else 'forward'}", batch,
           partial(_attention, *sizes, backward))
      for name, (sizes, batch) in ATTENTION.items() for backward in (False, True)),
)  # fmt: skip
