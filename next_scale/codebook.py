"""Codebooks that stay alive: k-means start, moving-average updates, revival of unused codes."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from next_scale import ranks
from next_scale.kernels.nearest_code import nearest_code


@torch.no_grad()
def kmeans(vectors: Tensor, codes: int, iterations: int, cosine: bool = False) -> Tensor:
    """Centroids (codes, C) of `vectors` (N, C) by Lloyd's algorithm; empty clusters restart at random vectors.

    With fewer vectors than codes, vectors are drawn with replacement and jittered so that codes differ.
    """
    count = vectors.shape[0]
    if count >= codes:
        centroids = vectors[torch.randperm(count, device=vectors.device)[:codes]].clone()
    else:
        centroids = _jittered(vectors, codes)
    for _ in range(iterations):
        nearest = nearest_code(vectors, centroids, cosine)
        sizes = torch.bincount(nearest, minlength=codes).to(vectors.dtype)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, vectors)
        centroids = sums / sizes.clamp_min(1)[:, None]
        empty = sizes == 0
        if empty.any():
            centroids[empty] = _jittered(vectors, int(empty.sum()))
    return centroids


def _jittered(vectors: Tensor, count: int, group: int | None = None) -> Tensor:
    """`count` random rows of `vectors` with noise of 1% of their spread, so that copies drift apart.

    With a `group`, see :func:`next_scale.ranks.pick_rows`, they are rows of all processes' vectors.
    """
    if group is None or ranks.count() == 1:
        picked = vectors[torch.randint(vectors.shape[0], (count,), device=vectors.device)]
        spread = vectors.std(0, unbiased=False)
    else:
        rows = torch.randint(vectors.shape[0] * ranks.count(), (count,), device=vectors.device)
        picked = ranks.pick_rows(vectors, rows, group)
        spread = ranks.mean((vectors - ranks.mean(vectors.mean(0))).square().mean(0)).sqrt()
    return picked + torch.randn_like(picked) * (0.01 * spread + 1e-6)


class Codebook(nn.Module):
    """One codebook with its usage statistics.

    Args:
        codes: number of codes, V.
        channels: width of a code, C.
        update: ``"ema"`` (moving averages, van den Oord et al., arXiv 1711.00937, appendix A.1) or ``"gradient"``.
        decay: fastest decay of the moving averages. A codebook that sees few vectors a step decays slower, so that
            its averages always span about `horizon` vectors a code.
        horizon: vectors a code that the averages remember at least.
        revive: a code used less than this fraction of the average is moved onto a random vector of the batch; 0 never.
        cosine: compare directions only.

    Shape notation: N vectors, C channels, V codes.
    """

    def __init__(
        self,
        codes: int,
        channels: int,
        update: str = "ema",
        decay: float = 0.99,
        horizon: float = 20.0,
        revive: float = 0.05,
        cosine: bool = False,
    ):
        super().__init__()
        self.update, self.decay, self.horizon, self.revive, self.cosine = update, decay, horizon, revive, cosine
        weight = torch.randn(codes, channels) / channels**0.5
        if update == "gradient":
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        # share of the latest vectors that each code took; 1 = the average code
        self.register_buffer("usage", torch.ones(codes), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Codes of `tokens` (...,) int64 -> (..., C)."""
        return nn.functional.embedding(tokens, self.weight)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code: (N, C) -> (N,) int64."""
        return nearest_code(vectors, self.weight, self.cosine)

    @torch.no_grad()
    def start(self, vectors: Tensor, iterations: int) -> None:
        """Place the codes by k-means over `vectors` (N, C)."""
        self.weight.copy_(kmeans(vectors, self.weight.shape[0], iterations, self.cosine))
        if ranks.count() > 1:
            dist.broadcast(self.weight, 0)
        self.usage.fill_(1)

    @torch.no_grad()
    def learn(self, vectors: Tensor, tokens: Tensor, group: int = 1) -> None:
        """Update usage, moving averages and unused codes from one batch: vectors (N, C), tokens (N,).

        Of several processes, each with its part of the batch, all call this and learn the same.

        Args:
            group: vectors a sample, which stand together.
        """
        codes = self.weight.shape[0]
        counts = torch.bincount(tokens, minlength=codes).to(vectors.dtype)
        sums = torch.zeros_like(self.weight).index_add_(0, tokens, vectors)
        counts, sums = ranks.total(torch.cat([counts[:, None], sums], 1)).split([1, sums.shape[1]], 1)
        counts = counts[:, 0]
        average = counts.sum() / codes
        decay = max(self.decay, 1 - float(average) / self.horizon)
        total = decay * self.usage[:, None] * self.weight + (1 - decay) * sums / average
        self.usage.mul_(decay).add_(counts / average, alpha=1 - decay)
        if self.update == "ema":
            used = self.usage > 1e-3
            self.weight[used] = total[used] / self.usage[used, None]
        if self.revive > 0:
            self._revive(vectors, group)

    def _revive(self, vectors: Tensor, group: int) -> None:
        dead = (self.usage < self.revive).nonzero().squeeze(1)
        if dead.numel() == 0:
            return
        # a few at a time: the vectors of one batch are alike, and codes should not pile up on them
        most = max(1, vectors.shape[0] * ranks.count() // 8)
        dead = dead[torch.randperm(dead.numel(), device=dead.device)[:most]]
        self.weight[dead] = _jittered(vectors, dead.numel(), group)
        self.usage[dead] = 0.5
