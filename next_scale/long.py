"""Samples longer than a model makes: windows along the first axis of the grid, each drawn around what is there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from next_scale.cli import sample_seed
from next_scale.errors import UserError
from next_scale.model import Generator
from next_scale.predictors.known import Evidence
from next_scale.sampling import SamplingOptions

RAMP = (
    0.5  # weight of the cells of a fade where it begins: they tell coarse tokens what was there, and bind no fine one
)


@dataclass(frozen=True)
class Plan:
    """How windows of one length cover a longer grid.

    A model of fixed length has learned how its samples begin and how they end. So a window is three parts: its first
    `head` cells are used in the first window only, its last `tail` cells in the last one only, and of what is between,
    the first `overlap` cells are there already, from the window before. The last window ends where the sample ends,
    and shares with what is there as much as that takes.

    Args:
        length: cells of the whole, T.
        size: cells of a window, G.
        head, overlap, tail: cells, see above.

    Raises:
        UserError: nothing of a window would be new.
    """

    length: int
    size: int
    head: int
    overlap: int
    tail: int

    def __post_init__(self) -> None:
        if min(self.length, self.overlap) < 1 or min(self.head, self.tail, self.fresh - 1) < 0:
            raise UserError(f"windows of {self.size} cannot overlap by {self.overlap} and add anything new")

    @classmethod
    def of(cls, length: int, size: int) -> Plan:
        """The usual shares: an eighth of a window begins it, three eighths overlap, a quarter ends it.

        With a quarter as overlap, notes that had died away a little swelled again, audibly, from window to window.
        """
        return cls(length, size, size // 8, max(1, 3 * size // 8), size // 4)

    @property
    def fresh(self) -> int:
        """New cells of a window between others."""
        return self.size - self.head - self.overlap - self.tail

    @property
    def fade(self) -> int:
        """Cells over which a window is faded in, at the end of its overlap; what is before them it is drawn around."""
        return max(1, 5 * self.overlap // 8)

    @property
    def count(self) -> int:
        """Number of windows."""
        return 1 + max(0, math.ceil((self.length - self.size) / self.fresh))

    @property
    def starts(self) -> list[int]:
        """First cell of every window."""
        return [min(n * self.fresh, max(0, self.length - self.size)) for n in range(self.count)]

    @property
    def ends(self) -> list[int]:
        """One past the last cell that every window adds."""
        ends = [start + self.size - self.tail for start in self.starts]
        return [*ends[:-1], self.length]

    @property
    def joins(self) -> list[tuple[int, int]]:
        """The cells over which every window but the first is faded in: first, and one past the last."""
        return [(end - self.fade, end) for end in self.ends[:-1]]


def cross_fade(before: Tensor, after: Tensor) -> Tensor:
    """From one latent to another of the same cells, (B, C, n, *rest), at constant power.

    The weights of an equal-power fade, cos and sin, add up to too much where both sides agree, and those of a linear
    one to too little where they do not. Divided by sqrt(1 + 2 r cos sin), r being the correlation of the two sides,
    they keep the power in either case, and are the linear-like fade of equal gain at r = 1 (Fink, Holters and Zoelzer,
    "Signal-matched power-complementary cross-fading and dry-wet mixing", DAFx 2016).
    """
    angle = (torch.arange(before.shape[2], device=before.device) + 0.5) * (math.pi / 2 / before.shape[2])
    angle = angle.view(1, 1, -1, *[1] * (before.dim() - 3))
    norms = before.flatten(1).norm(dim=1) * after.flatten(1).norm(dim=1)
    alike = (before * after).flatten(1).sum(1) / norms.clamp_min(1e-12)  # (B,)
    alike = alike.clamp(0, 1).view(-1, *[1] * (before.dim() - 1))
    power = 1 + 2 * alike * angle.cos() * angle.sin()
    return (angle.cos() * before + angle.sin() * after) * power.rsqrt()


@torch.inference_mode()
def draw_long(
    model: Generator,
    condition: Mapping[str, Tensor],
    seeds: Sequence[int],
    plan: Plan,
    sampling: SamplingOptions | None = None,
) -> Iterator[Tensor]:
    """The latents of long samples piece by piece, as soon as nothing later changes them.

    The first window is the sample that the model draws for that seed. Every further one is drawn around evidence
    (:class:`next_scale.predictors.known.Evidence`): the cells that it shares with what is there, and the beginning
    and the end of the first window, which keep what they have in common, such as a timbre, from drifting. Over the last
    five eighths of those cells it is faded in (:func:`cross_fade`); there evidence fades out, and binds no token of
    the finest scale, so that what is drawn freely begins where nothing of it is heard yet. What is kept is one window,
    whatever the length.

    Args:
        condition: as :meth:`next_scale.model.Generator.generate` takes it.
        seeds: one a sample, B.
        plan: of windows of a size that the model makes.
        sampling: the model's own by default.

    Yields:
        (B, C, n, *rest) float32; the n add up to `plan.length`.

    Raises:
        UserError: the model's family cannot be told what is known.

    Shape notation: B samples, C channels, G cells of a window along the first axis of the grid.
    """
    quantizer, sampling = model.tokenizer.quantizer, sampling or model.sampling
    grid = (plan.size, *model.predictor.schedule.grid[1:])
    extra = {} if grid == tuple(model.predictor.schedule.grid) else {"grid": grid}
    windows = zip(plan.starts, plan.ends, strict=True)

    def draw(number: int, evidence: Evidence | None) -> Tensor:
        given = extra if evidence is None else {**extra, "evidence": evidence}
        own = [sample_seed(seed, number) for seed in seeds] if number else list(seeds)
        return model.predictor.generate(quantizer, condition, len(seeds), sampling, seeds=own, **given).latent

    next(windows)
    first = draw(0, None)
    there, begin, end = first[:, :, : plan.ends[0]], 0, plan.ends[0]  # what is there: its latent, and which cells
    sent = 0
    ramp = RAMP * (1 - (torch.arange(plan.fade, device=first.device) + 0.5) / plan.fade)
    for number, (start, stop) in enumerate(windows, start=1):
        yield there[:, :, sent - begin : end - plan.fade - begin]
        sent = end - plan.fade
        known = slice(plan.head, end - start)
        target, weight = first.clone(), first.new_ones(len(seeds), *grid)
        target[:, :, known] = there[:, :, start + plan.head - begin :]
        weight[:, known.stop : plan.size - plan.tail] = 0
        weight[:, known.stop - len(ramp) : known.stop] = ramp.view(-1, *[1] * (len(grid) - 1))
        drawn = draw(number, Evidence(quantizer, target, weight))
        shared = slice(known.stop - plan.fade, known.stop)
        joined = cross_fade(there[:, :, -plan.fade :], drawn[:, :, shared])
        there = torch.cat([there[:, :, : -plan.fade], joined, drawn[:, :, known.stop : stop - start]], dim=2)
        kept = max(0, there.shape[2] - plan.size)
        there, begin, end = there[:, :, kept:], begin + kept, stop
    yield there[:, :, sent - begin :]
