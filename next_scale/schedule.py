"""Scale schedules: the size of every token map, from coarse to fine, in any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from next_scale.errors import UserError
from next_scale.resample import downsample

MOST_SCALES, MOST_TOKENS = 1024, 1 << 22  # far above any use; a schedule of a few bytes could otherwise fill the memory


@dataclass(frozen=True)
class Schedule:
    """The sizes of a pyramid's token maps, coarse to fine, and all that follows from them.

    Next-scale prediction (VAR, arXiv 2404.02905, section 3.2) emits one whole token map a step. Sizes may repeat
    (more residual levels at one resolution) and grow by any factor, but never shrink; the last is the full grid.

    Args:
        sizes: one tuple a scale: ``((1,), (2,), (4,))`` in 1D, ``((1, 1), (2, 2))`` in 2D.

    Raises:
        UserError: no scale, a size below 1, mixed numbers of dimensions, a size smaller than the one before, or more
            than 1,024 scales or 2^22 tokens.

    Shape notation: K scales, n_k tokens of scale k, L = sum n_k tokens in all.
    """

    sizes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        sizes = tuple(tuple(int(s) for s in size) for size in self.sizes)
        object.__setattr__(self, "sizes", sizes)
        if not sizes or not sizes[0]:
            raise UserError("a schedule needs at least one scale, such as '1 2 4 8'")
        if len({len(size) for size in sizes}) != 1:
            raise UserError(f"every scale of a schedule needs the same number of dimensions, got {self}")
        if len(sizes) > MOST_SCALES or sum(math.prod(map(abs, size)) for size in sizes) > MOST_TOKENS:
            raise UserError(f"a schedule has at most {MOST_SCALES:,} scales and {MOST_TOKENS:,} tokens")
        if min(min(size) for size in sizes) < 1:
            raise UserError(f"every size of a schedule must be at least 1, got {self}")
        for smaller, larger in zip(sizes, sizes[1:], strict=False):
            if any(a > b for a, b in zip(smaller, larger, strict=True)):
                raise UserError(f"the scales of a schedule may not shrink, got {self}")

    @classmethod
    def parse(cls, text: str | Sequence) -> Schedule:
        """Read ``"1 2 4 8"`` (1D), ``"1x1 2x2 4x4"`` (2D), or a list of ints or of lists of ints."""
        try:
            items = text.replace(",", " ").split() if isinstance(text, str) else list(text)
            sizes = []
            for item in items:
                parts = item.lower().split("x") if isinstance(item, str) else item
                sizes.append(tuple(int(p) for p in parts) if isinstance(parts, list | tuple) else (int(parts),))
        except (TypeError, ValueError):
            raise UserError(f"cannot read {text!r} as a schedule; write '1 2 4 8' or '1x1 2x2 4x4'") from None
        return cls(tuple(sizes))

    @classmethod
    def from_config(cls, config: Sequence[Sequence[int]]) -> Schedule:
        """Inverse of :meth:`to_config`."""
        return cls(tuple(tuple(size) for size in config))

    def to_config(self) -> list[list[int]]:
        """The sizes as lists, for JSON."""
        return [list(size) for size in self.sizes]

    def __str__(self) -> str:
        return " ".join("x".join(map(str, size)) for size in self.sizes)

    @property
    def dim(self) -> int:
        """Number of dimensions of the grid."""
        return len(self.sizes[0])

    @property
    def scales(self) -> int:
        """Number of scales, K."""
        return len(self.sizes)

    @property
    def grid(self) -> tuple[int, ...]:
        """Size of the full grid: that of the last scale."""
        return self.sizes[-1]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(math.prod(size) for size in self.sizes)

    @cached_property
    def length(self) -> int:
        """Tokens of the whole pyramid, L."""
        return sum(self.counts)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Index of the first token of each scale in the flattened pyramid."""
        return tuple(sum(self.counts[:k]) for k in range(self.scales))

    @cached_property
    def level(self) -> Tensor:
        """Scale that each token belongs to: (L,) int64."""
        return torch.repeat_interleave(torch.arange(self.scales), torch.tensor(self.counts))

    @cached_property
    def visible_end(self) -> Tensor:
        """Number of leading tokens that each query may see, all of its own scale included: (L,) int64."""
        return (torch.tensor(self.starts) + torch.tensor(self.counts))[self.level]

    def split(self, tokens: Tensor, dim: int = 1) -> tuple[Tensor, ...]:
        """Split the flattened pyramid into its scales along `dim`: (B, L, ...) -> K x (B, n_k, ...)."""
        return tokens.split(self.counts, dim=dim)

    def shrink_mask(self, mask: Tensor) -> Tensor:
        """A mask over the full grid as one over the pyramid: (B, *grid) bool -> (B, L) bool.

        A token is set where more than half of the area it stands for is. The nearest cell alone would let a single
        cell of the grid decide for a whole quarter of it, and thin shapes come and go from scale to scale.
        """
        area = mask[:, None].float()
        parts = [downsample(area, size).flatten(1) for size in self.sizes]  # (B, 1, *size) -> (B, n)
        return torch.cat(parts, dim=1) > 0.5 + 1e-6  # half is not more than half, whatever the rounding

    def bits(self, codebook_size: int) -> float:
        """Bits that one pyramid of tokens takes at `codebook_size` codes a token."""
        return self.length * math.log2(codebook_size)


@dataclass(frozen=True)
class StrideSchedule:
    """Scales as strides of the full grid, so that one model serves any length (SNAC, arXiv 2410.14411).

    Args:
        strides: stride of each scale in every dimension, coarse to fine, such as ``(8, 4, 2, 1)``.

    Raises:
        UserError: a stride that does not divide the one before it, or the last stride is not 1.
    """

    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        strides = tuple(int(s) for s in self.strides)
        object.__setattr__(self, "strides", strides)
        if not strides or strides[-1] != 1 or min(strides) < 1:
            raise UserError(f"strides must be positive and end at 1, such as '8 4 2 1', got {list(strides)}")
        if any(a % b for a, b in zip(strides, strides[1:], strict=False)):
            raise UserError(f"each stride must be a multiple of the next, got {list(strides)}")

    @property
    def scales(self) -> int:
        """Number of scales, K."""
        return len(self.strides)

    def at(self, grid: Sequence[int]) -> Schedule:
        """The absolute schedule for a full grid of this size.

        Raises:
            UserError: the coarsest stride does not divide the grid.
        """
        if any(g % self.strides[0] for g in grid):
            raise UserError(f"a grid of {tuple(grid)} is no multiple of the coarsest stride {self.strides[0]}: pad it")
        return Schedule(tuple(tuple(g // s for g in grid) for s in self.strides))

    def of_length(self, length: int, without_first: bool = False) -> Schedule:
        """The schedule in one dimension of a pyramid of so many tokens, or of so many beside those of the first scale.

        Raises:
            UserError: no pyramid of these strides has so many.
        """
        unit = sum(self.strides[0] // stride for stride in self.strides) - without_first
        if length < 1 or length % unit:
            raise UserError(f"{length} tokens are no pyramid of strides {list(self.strides)}")
        return self.at((length // unit * self.strides[0],))


def parse_schedule(text: str | Sequence) -> Schedule | StrideSchedule:
    """Read ``"strides 8 4 2 1"`` as strides for any length, and everything else as :meth:`Schedule.parse` does."""
    if not isinstance(text, str) or not text.startswith("strides"):
        return Schedule.parse(text)
    try:
        return StrideSchedule(tuple(int(part) for part in text.removeprefix("strides").replace(",", " ").split()))
    except ValueError:
        raise UserError(f"cannot read {text!r} as strides; write 'strides 8 4 2 1'") from None
