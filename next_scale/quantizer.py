"""The multi-scale residual quantizer: a latent grid as a pyramid of token maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.codebook import Codebook
from next_scale.errors import UserError
from next_scale.kernels.pyramid_step import pyramid_inputs, pyramid_step, pyramid_tokens
from next_scale.resample import default_upsampling, downsample
from next_scale.schedule import Schedule, StrideSchedule


@dataclass
class QuantizerOutput:
    """What one pass through the quantizer gives.

    Attributes:
        quantized: (B, C, *grid) sum of the scales used, with straight-through gradients.
        tokens: (B, L) int64, scales from coarse to fine, each in raster order.
        loss: scalar, commitment plus codebook loss.
        perplexity: (K,) exponential of the entropy of each scale's codes in this batch.
    """

    quantized: Tensor
    tokens: Tensor
    loss: Tensor
    perplexity: Tensor


class Phi(nn.Module):
    """Residual smoothing after upsampling, phi(x) = (1 - r) x + r conv(x) (VAR, arXiv 2404.02905, algorithm 1).

    It holds the convolution; :func:`next_scale.kernels.pyramid_step.pyramid_step` applies it.
    """

    def __init__(self, channels: int, dim: int, kernel: int):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d)[dim - 1]
        self.conv = conv(channels, channels, kernel, padding=kernel // 2)


class MultiScaleQuantizer(nn.Module):
    """Quantize a latent scale by scale: downsample the residual, take codes, upsample, smooth, subtract.

    VAR's tokenizer (arXiv 2404.02905, algorithms 1 and 2), SAT (arXiv 2408.09027, section 3.2) and SNAC
    (arXiv 2410.14411, section 2) are settings of it.

    Args:
        schedule: the sizes of the scales: absolute (`Schedule`), or strides for any length (`StrideSchedule`).
        latent_channels: channels of the latent that comes in and goes out, C.
        codebook_size: codes a codebook, V.
        channels: channels inside the pyramid; a pair of projections leads there where it differs from C.
        code_channels: channels in which codes are looked up; each scale projects into and out of them where given.
        shared_codebook: one codebook for all scales (VAR) instead of one a scale (SAT, SNAC).
        phis: smoothing convolutions: 0 none, n shared by neighbouring scales, or one a scale with n = K.
        phi_kernel, phi_ratio: their kernel size and mixing ratio r.
        phi_margin: where the first phi stands on the way from the first scale (0) to the last (1), and the last phi
            from the end; default 1 / (2 phis). VAR's four stand 1/12 from the ends.
        cosine: look codes up by direction instead of Euclidean distance.
        upsampling: ``nearest``, ``linear`` or ``cubic``; default linear in 1D and cubic in 2D.
        update, decay, revive: how codebooks learn, see :class:`next_scale.codebook.Codebook`.
        commitment: weight beta of the commitment loss.
        scale_dropout: probability that a training sample is decoded from a random number of leading scales only, so
            that coarse scales mean something by themselves.
        dim: dimensions of the grid; needed with a `StrideSchedule` only.

    Shape notation: B batch, C channels, K scales, n_k tokens of scale k, L tokens in all, V codes.
    """

    def __init__(
        self,
        schedule: Schedule | StrideSchedule,
        latent_channels: int,
        codebook_size: int = 1024,
        channels: int | None = None,
        code_channels: int | None = None,
        shared_codebook: bool = False,
        phis: int = 4,
        phi_kernel: int = 3,
        phi_ratio: float = 0.5,
        phi_margin: float | None = None,
        cosine: bool = False,
        upsampling: str | None = None,
        update: str = "ema",
        decay: float = 0.99,
        revive: float = 0.05,
        commitment: float = 0.25,
        scale_dropout: float = 0.0,
        dim: int | None = None,
    ):
        super().__init__()
        if update not in ("ema", "gradient"):
            raise UserError(f"quantizer update must be 'ema' or 'gradient', got {update!r}")
        if phi_kernel % 2 == 0:
            raise UserError(f"phi_kernel must be odd to keep sizes, got {phi_kernel}")
        self.dim = schedule.dim if isinstance(schedule, Schedule) else (dim or 1)
        if self.dim not in (1, 2):
            raise UserError(f"a latent grid has 1 or 2 dimensions, not {self.dim}")
        self.upsampling = upsampling or default_upsampling(self.dim)
        if self.upsampling not in ("nearest", "linear") and (self.upsampling, self.dim) != ("cubic", 2):
            raise UserError(f"upsampling {self.upsampling!r} does not exist in {self.dim}D; use nearest or linear")
        self.schedule = schedule
        self.latent_channels, self.codebook_size = latent_channels, codebook_size
        self.channels = channels or latent_channels
        self.code_channels = code_channels
        self.shared_codebook, self.cosine, self.update = shared_codebook, cosine, update
        self.phi_kernel, self.phi_ratio, self.phi_margin = phi_kernel, phi_ratio, phi_margin
        self.decay, self.revive = decay, revive
        self.commitment, self.scale_dropout = commitment, scale_dropout

        conv = (nn.Conv1d, nn.Conv2d)[self.dim - 1]
        projected = self.channels != latent_channels
        self.project_in = conv(latent_channels, self.channels, 1) if projected else nn.Identity()
        self.project_out = conv(self.channels, latent_channels, 1) if projected else nn.Identity()
        width = code_channels or self.channels
        self.codebooks = nn.ModuleList(
            Codebook(codebook_size, width, update, decay, revive=revive, cosine=cosine)
            for _ in range(1 if shared_codebook else self.scales)
        )
        inner = self.scales if code_channels else 0
        self.code_in = nn.ModuleList(nn.Linear(self.channels, width) for _ in range(inner))
        self.code_out = nn.ModuleList(nn.Linear(width, self.channels) for _ in range(inner))
        self.phis = nn.ModuleList(Phi(self.channels, self.dim, phi_kernel) for _ in range(phis))

    @property
    def scales(self) -> int:
        """Number of scales, K."""
        return self.schedule.scales

    def to_config(self) -> dict:
        """Arguments that build this quantizer again, for JSON."""
        absolute = isinstance(self.schedule, Schedule)
        return {
            **({"schedule": self.schedule.to_config()} if absolute else {"strides": list(self.schedule.strides)}),
            "latent_channels": self.latent_channels,
            "codebook_size": self.codebook_size,
            "channels": self.channels,
            "code_channels": self.code_channels,
            "shared_codebook": self.shared_codebook,
            "phis": len(self.phis),
            "phi_kernel": self.phi_kernel,
            "phi_ratio": self.phi_ratio,
            "phi_margin": self.phi_margin,
            "cosine": self.cosine,
            "upsampling": self.upsampling,
            "update": self.update,
            "decay": self.decay,
            "revive": self.revive,
            "commitment": self.commitment,
            "scale_dropout": self.scale_dropout,
            "dim": self.dim,
        }

    @classmethod
    def from_config(cls, config: dict) -> MultiScaleQuantizer:
        """Inverse of :meth:`to_config`."""
        config = dict(config)
        strides = config.pop("strides", None)
        sizes = config.pop("schedule", None)
        return cls(StrideSchedule(tuple(strides)) if strides else Schedule.from_config(sizes), **config)

    def schedule_at(self, grid: tuple[int, ...]) -> Schedule:
        """The schedule for a full grid of this size; an absolute one serves its own size only.

        Raises:
            UserError: the grid does not fit the schedule.
        """
        if isinstance(self.schedule, StrideSchedule):
            return self.schedule.at(grid)
        if tuple(grid) != self.schedule.grid:
            raise UserError(f"the schedule is made for a grid of {self.schedule.grid}, got {tuple(grid)}")
        return self.schedule

    def codebook(self, k: int) -> Codebook:
        """The codebook of scale k."""
        return self.codebooks[0 if self.shared_codebook else k]

    def phi_index(self, k: int) -> int | None:
        """Which of n phi's scale k of K uses: the nearest to k / (K - 1) in linspace(margin, 1 - margin, n)."""
        n = len(self.phis)
        if n == 0:
            return None
        if n == self.scales:
            return k
        # in NumPy's float64, whose rounding decides where k/(K-1) lies half-way: the published systems use it too
        margin = 1 / (2 * n) if self.phi_margin is None else self.phi_margin
        position = k / (self.scales - 1) if self.scales > 1 else 0.0
        return int(np.abs(np.linspace(margin, 1 - margin, n) - position).argmin())

    def _codes(self, residual: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Codes of a residual at scale k: (B, C, *size) -> vectors (B * n_k, width) and tokens (B * n_k,)."""
        vectors = residual.flatten(2).transpose(1, 2).flatten(0, 1)  # (B, C, *size) -> (B n_k, C)
        if self.code_channels:
            vectors = self.code_in[k](vectors)
        return vectors, self.codebook(k).nearest(vectors)

    def nearest(self, residual: Tensor, k: int) -> Tensor:
        """Tokens of a residual at the size of scale k: (B, channels, *size) -> (B, n_k) int64."""
        return self._codes(residual, k)[1].view(residual.shape[0], -1)

    def _add(
        self,
        latent: Tensor,
        tokens: Tensor,
        k: int,
        schedule: Schedule,
        shown: tuple[int, ...] | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The sum with scale k, and the sum at the size `shown`: latent (B, C, *grid), tokens (B, n_k).

        A mixture of codes with `weights` (B, n_k, V).
        """
        rows, codes = tokens, self.codebook(k).weight
        if weights is not None or self.code_channels or torch.is_grad_enabled():  # codes may move before the gradient
            rows, codes = _own_rows(self.vectors(tokens, k, weights))
        phi = self.phi_index(k)
        smoothing = () if phi is None else (self.phis[phi].conv.weight, self.phis[phi].conv.bias, self.phi_ratio)
        return pyramid_step(latent, rows, codes, schedule.sizes[k], shown, self.upsampling, *smoothing)

    def _smoothing(self) -> tuple[list[Tensor], list[Tensor], float, list[int]]:
        """Weights and biases of the phi's, r, and which phi each scale uses."""
        convolutions = [phi.conv for phi in self.phis]
        which = [self.phi_index(k) for k in range(self.scales)] if convolutions else []
        return [conv.weight for conv in convolutions], [conv.bias for conv in convolutions], self.phi_ratio, which

    def vectors(self, tokens: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
        """Codes of scale k in the pyramid's channels: tokens (B, n) -> (B, n, channels).

        Args:
            weights: (B, n, V) of all codes, for their mixture in place of the tokens' own codes.
        """
        codes = self.codebook(k)(tokens) if weights is None else weights @ self.codebook(k).weight
        return self.code_out[k](codes) if self.code_channels else codes

    def forward(self, latent: Tensor, learn: bool = True) -> QuantizerOutput:
        """Quantize with straight-through gradients; in training mode codebooks learn unless `learn` is False.

        The loss is VAR's: the mean over scales of beta MSE(sg(sum so far), f) + MSE(sum so far, sg(f)).

        Args:
            latent: (B, C, *grid) float.
        """
        # distances and averages need full precision, also inside mixed-precision training
        with torch.autocast(latent.device.type, enabled=False):
            return self._forward(latent.to(self.codebooks[0].weight.dtype), learn and self.training)

    def _forward(self, latent: Tensor, learn: bool) -> QuantizerOutput:
        inside = self.project_in(latent)
        schedule = self.schedule_at(tuple(inside.shape[2:]))
        target = inside.detach()
        total = torch.zeros_like(inside)
        loss = inside.new_zeros(())
        keep = self._scales_kept(inside.shape[0], inside.device)
        kept = torch.zeros_like(inside)
        tokens, perplexity = [], []
        for k, size in enumerate(schedule.sizes):
            residual = downsample(target - total.detach(), size)
            vectors, found = self._codes(residual, k)
            ids = found.view(inside.shape[0], -1)
            total, _ = self._add(total, ids, k, schedule)
            if learn:  # after the look-up: a code that is moved now was not what these vectors chose
                self.codebook(k).learn(vectors.detach(), found)
            loss = loss + self.commitment * F.mse_loss(inside, total.detach()) + F.mse_loss(total, target)
            if keep is None:
                kept = total
            else:
                kept = torch.where((keep > k).view(-1, *[1] * (inside.dim() - 1)), total, kept)
            tokens.append(ids)
            share = torch.bincount(ids.flatten(), minlength=self.codebook_size) / ids.numel()
            perplexity.append(torch.exp(-torch.special.xlogy(share, share).sum()))
        quantized = inside + (kept - inside).detach()
        return QuantizerOutput(
            self.project_out(quantized), torch.cat(tokens, 1), loss / self.scales, torch.stack(perplexity)
        )

    def _scales_kept(self, batch: int, device: torch.device) -> Tensor | None:
        """Leading scales that each training sample keeps, (B,), or None where all keep all."""
        if not self.training or self.scale_dropout == 0:
            return None
        some = torch.randint(1, self.scales + 1, (batch,), device=device)
        return torch.where(torch.rand(batch, device=device) < self.scale_dropout, some, self.scales)

    @torch.no_grad()
    def start(self, latent: Tensor, iterations: int = 10) -> None:
        """Place all codebooks by k-means, scale by scale, over latents (N, C, *grid), N in the thousands."""
        inside = self.project_in(latent)
        schedule = self.schedule_at(tuple(inside.shape[2:]))
        if self.shared_codebook:  # one codebook meets every scale: start it on the latent at every size
            vectors = torch.cat([self._codes(downsample(inside, size), k)[0] for k, size in enumerate(schedule.sizes)])
            self.codebook(0).start(_subsample(vectors, 64 * self.codebook_size), iterations)
            return
        total = torch.zeros_like(inside)
        for k in range(schedule.scales):
            total = self.start_scale(inside, total, k, iterations)

    @torch.no_grad()
    def start_scale(self, target: Tensor, total: Tensor, k: int, iterations: int = 10) -> Tensor:
        """Place the codebook of scale k by k-means over what `total` lacks of `target`, (B, channels, *grid) each.

        Returns:
            The sum with scale k.
        """
        schedule = self.schedule_at(tuple(target.shape[2:]))
        vectors, _ = self._codes(downsample(target - total, schedule.sizes[k]), k)
        self.codebook(k).start(_subsample(vectors, 64 * self.codebook_size), iterations)
        ids = self.codebook(k).nearest(vectors)
        return self._add(total, ids.view(target.shape[0], -1), k, schedule)[0]

    @torch.no_grad()
    def encode(self, latent: Tensor) -> Tensor:
        """Tokens of a latent: (B, C, *grid) -> (B, L) int64."""
        inside = self.project_in(latent)
        schedule = self.schedule_at(tuple(inside.shape[2:]))
        if not self.code_channels:
            codes = [book.weight for book in self.codebooks]
            smoothing = self._smoothing()
            return pyramid_tokens(inside, codes, schedule.sizes, self.upsampling, *smoothing, self.cosine)
        total, tokens = torch.zeros_like(inside), []
        for k, size in enumerate(schedule.sizes):
            tokens.append(self.nearest(downsample(inside - total, size), k))
            total, _ = self._add(total, tokens[-1], k, schedule)
        return torch.cat(tokens, 1)

    def decode(self, tokens: Tensor, scales: int | None = None, grid: tuple[int, ...] | None = None) -> Tensor:
        """Latent of a pyramid: tokens (B, L) -> (B, C, *grid).

        Args:
            scales: use this many leading scales only; all by default.
            grid: size of the full grid; a `StrideSchedule` in two dimensions needs it, in one the number of tokens
                tells.
        """
        schedule = self._schedule_of(grid, tokens.shape[1])
        total = self.initial_latent(tokens.shape[0], schedule.grid)
        for k, ids in enumerate(schedule.split(tokens)[:scales]):
            total, _ = self._add(total, ids, k, schedule)
        return self.project_out(total)

    def _schedule_of(self, grid: tuple[int, ...] | None, length: int | None = None) -> Schedule:
        if grid is None and isinstance(self.schedule, StrideSchedule):
            if length is not None and self.dim == 1:
                return self.schedule.of_length(length)
            raise UserError("strides fit any length: say which with grid=")
        return self.schedule if grid is None else self.schedule_at(grid)

    def initial_latent(self, batch: int, grid: tuple[int, ...] | None = None) -> Tensor:
        """The sum of no scale: zeros (B, channels, *grid)."""
        weight = self.codebooks[0].weight
        return weight.new_zeros(batch, self.channels, *(grid or self._schedule_of(None).grid))

    def step(
        self, latent: Tensor, tokens: Tensor, k: int, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Add scale k to the sum so far and show it at the next scale's size.

        Args:
            latent: (B, channels, *grid) sum of the scales before k, as :meth:`initial_latent` starts it.
            tokens: (B, n_k) int64.
            weights: (B, n_k, V) of all codes, to add their mixture in place of the tokens' own codes.

        Returns:
            The sum with scale k, and the next scale's input (B, n_{k+1}, channels), None after the last scale.
        """
        schedule = self.schedule_at(tuple(latent.shape[2:]))
        shown = schedule.sizes[k + 1] if k + 1 < schedule.scales else None
        return self._add(latent, tokens, k, schedule, shown, weights)

    @torch.no_grad()
    def teacher_forcing(self, tokens: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """Inputs of scales 1 to K - 1: for each the sum of the scales before it, at its size.

        Args:
            tokens: (B, L) int64.
            grid: see :meth:`decode`.

        Returns:
            (B, L - n_0, channels).
        """
        schedule = self._schedule_of(grid, tokens.shape[1])
        codes = [book.weight for book in self.codebooks]
        if self.code_channels:
            vectors = [self.vectors(ids, k) for k, ids in enumerate(schedule.split(tokens))]
            tokens, table = _own_rows(torch.cat(vectors, dim=1))
            codes = [table]
        return pyramid_inputs(tokens, codes, schedule.sizes, self.upsampling, *self._smoothing())


def _own_rows(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (B, n, C) as a table of their own (B n, C), and the row of each: (B, n)."""
    batch, count = vectors.shape[:2]
    return torch.arange(batch * count, device=vectors.device).view(batch, count), vectors.flatten(0, 1)


def _subsample(vectors: Tensor, most: int) -> Tensor:
    """At most `most` random rows."""
    if vectors.shape[0] <= most:
        return vectors
    return vectors[torch.randperm(vectors.shape[0], device=vectors.device)[:most]]
