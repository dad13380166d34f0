"""The transformer that every predictor shares: pre-norm blocks whose norms and gates follow a condition."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from next_scale import ranks
from next_scale.attention import Attention, KVCache, PrefixAttention
from next_scale.packed import Int8Linear, pack_linear

EPS = 1e-6


class Modulations(NamedTuple):
    """All that the condition does to a transformer, computed once a forward pass or once a whole generation.

    blocks: depth x (gamma1, gamma2, scale1, scale2, shift1, shift2), each (B, 1, D); the scales hold 1 + scale.
    final: (scale, shift) of the last norm, each (B, 1, D); the scale holds 1 + scale.
    """

    blocks: list[tuple[Tensor, ...]]
    final: tuple[Tensor, Tensor]

    def keep(self, batch: int) -> Modulations:
        """Those of the first `batch` samples."""
        blocks = [tuple(part[:batch] for part in block) for block in self.blocks]
        return Modulations(blocks, (self.final[0][:batch], self.final[1][:batch]))


class Block(nn.Module):
    """x += gamma1 attention(norm(x) (1 + scale1) + shift1); x += gamma2 mlp(norm(x) (1 + scale2) + shift2).

    Adaptive layer norm as in DiT (arXiv 2212.09748, section 3.2) with VAR's order of the six modulations. The MLP has
    one hidden layer with the tanh approximation of GELU.

    Args:
        width, heads, qk_norm, softmax_scale, dropout: see :class:`next_scale.attention.Attention`.
        mlp_ratio: hidden width of the MLP over `width`.
        drop_path: probability that a sample skips a branch in training (stochastic depth, arXiv 1603.09382).

    Attributes:
        checkpointing: in training keep only what comes in, and compute the rest again for the backward pass.

    Shape notation: B batch, L tokens, D width.
    """

    checkpointing = False

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, qk_norm: bool = False,
        softmax_scale: float | None = None, dropout: float = 0.0, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.attention = Attention(width, heads, qk_norm, softmax_scale, dropout)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        self.packed = False
        self.dropout = dropout
        self.drop_path = drop_path

    def forward(
        self, x: Tensor, modulations: tuple[Tensor, ...], prefix: PrefixAttention | None = None,
        cache: KVCache | None = None, layer: int = 0,
    ) -> Tensor:  # fmt: skip
        """(B, L, D) -> (B, L, D); `modulations` are six tensors (B, 1, D), the scales with 1 added."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._forward, x, modulations, prefix, cache, layer, use_reentrant=False)
        return self._forward(x, modulations, prefix, cache, layer)

    def _forward(
        self, x: Tensor, modulations: tuple[Tensor, ...], prefix: PrefixAttention | None, cache: KVCache | None,
        layer: int,
    ) -> Tensor:  # fmt: skip
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulations
        h = self.attention(_norm(x, scale1, shift1), prefix, cache, layer)
        x = torch.addcmul(x, h, self._thin(gamma1))
        h = self.mlp_in(_norm(x, scale2, shift2))
        h = self.mlp_out(h if self.packed else F.gelu(h, approximate="tanh"))
        h = F.dropout(h, self.dropout, self.training)
        return torch.addcmul(x, h, self._thin(gamma2))

    def pack(self, int8: bool = False) -> None:
        """Keep weights for generation only, see :func:`next_scale.packed.pack_linear`."""
        self.attention.pack(int8)
        if not self.packed:
            self.mlp_in, self.mlp_out = pack_linear(self.mlp_in, int8, gelu=True), pack_linear(self.mlp_out, int8)
        self.packed = True

    def _thin(self, gamma: Tensor) -> Tensor:
        """Drop-path through the gate, (B, 1, D): zero for the samples that skip the branch."""
        if not self.training or self.drop_path == 0:
            return gamma
        keep = 1 - self.drop_path
        chance = ranks.own_rows(lambda rows: torch.rand(rows, 1, 1, device=gamma.device), gamma.shape[0])
        return gamma * (chance < keep) / keep


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without its own weights, then the condition's: (B, L, D) with (B, 1, D) -> (B, L, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), scale)


class Transformer(nn.Module):
    """Blocks, final adaptive norm and head (VAR, arXiv 2404.02905, section 3.2 and its public code).

    Args:
        width: D, a multiple of `heads`.
        depth: number of blocks.
        heads: H.
        outputs: features of the head: V for codes. None is no head: what comes out is the final norm's, of width D.
        mlp_ratio, qk_norm, softmax_scale, dropout: see :class:`Block`.
        shared_modulation: one Linear(D, 6 D) for all blocks and an offset (6, D) of each (VAR-d36-s), instead of one
            Linear a block. A third fewer parameters.
        drop_path: of the last block; rises linearly from 0.

    Shape notation: B batch, L tokens, D width, V outputs.
    """

    def __init__(
        self, width: int, depth: int, heads: int, outputs: int | None, mlp_ratio: float = 4.0,
        shared_modulation: bool = False, qk_norm: bool = False, softmax_scale: float | None = None,
        dropout: float = 0.0, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.depth, self.heads = width, depth, heads
        self.shared_modulation = shared_modulation
        paths = (drop_path * i / max(depth - 1, 1) for i in range(depth))
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qk_norm, softmax_scale, dropout, path) for path in paths
        )
        self.modulation = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(1 if shared_modulation else depth))
        self.offset = nn.Parameter(torch.zeros(depth, 6, width)) if shared_modulation else None
        self.final_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Identity() if outputs is None else nn.Linear(width, outputs)
        self.int8 = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """VAR's start: truncated normal of std sqrt(1 / 3 D), gates near zero, so a new block is the identity."""
        std = math.sqrt(1 / (3 * self.width))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_weight(module.weight, std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for linear in self.modulation:
                linear.weight[: 2 * self.width] *= 1e-5
                linear.weight[2 * self.width :] *= 0.5
            if self.offset is not None:
                init_weight(self.offset, std)
                self.offset[:, :2] *= 1e-5
            self.final_modulation.weight *= 0.5
            if isinstance(self.head, nn.Linear):
                self.head.weight *= 0.02
            for block in self.blocks:
                block.attention.proj.weight /= math.sqrt(2 * self.depth)
                block.mlp_out.weight /= math.sqrt(2 * self.depth)

    def modulations(self, condition: Tensor) -> Modulations:
        """What the condition (B, D) does to every block; the same at every step, so compute it once."""
        h = F.silu(condition)
        sixes = [linear(h).unflatten(-1, (6, self.width)) for linear in self.modulation]  # (B, 6 D) -> (B, 6, D)
        if self.offset is not None:
            sixes = [sixes[0] + offset for offset in self.offset]
        blocks = []
        for six in sixes:
            gamma1, gamma2, scale1, scale2, shift1, shift2 = six[:, :, None].unbind(1)  # (B, 6, D) -> 6 x (B, 1, D)
            blocks.append((gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2))
        scale, shift = self.final_modulation(h)[:, None].chunk(2, dim=-1)  # (B, 2 D) -> 2 x (B, 1, D)
        return Modulations(blocks, (1 + scale, shift))

    def pack(self, int8: bool = False) -> None:
        """Arrange the weights for fast generation on the CPU; training and saving are no longer possible.

        Args:
            int8: as 8-bit integers, which changes the outputs a little, see :class:`next_scale.packed.Int8Linear`.

        Raises:
            UserError: 8-bit integers do not work here.
        """
        for block in self.blocks:
            block.pack(int8)
        if not isinstance(self.head, nn.Identity):
            self.head = pack_linear(self.head, int8)
        self.int8 = isinstance(self.blocks[-1].mlp_out, Int8Linear)

    def cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `batch` sequences of `length` tokens, on the model's device and in its dtype."""
        weight = self.final_modulation.weight
        return KVCache(
            self.depth, batch, self.heads, length, self.width // self.heads, device=weight.device, dtype=weight.dtype
        )

    def forward(
        self, x: Tensor, modulations: Modulations, prefix: PrefixAttention | None = None, cache: KVCache | None = None,
        skip: int = 0,
    ) -> Tensor:  # fmt: skip
        """Embedded tokens (B, L, D) to head outputs (B, L - skip, V), in float32.

        With `cache`, x is one step: its tokens join the cache, and see each other and every token of the steps before,
        or what `prefix` says, which counts from the first token cached. Without, query i sees what `prefix` says;
        everything, if None. The first `skip` tokens give no
        output: they are there to be seen.
        """
        for layer, (block, six) in enumerate(zip(self.blocks, modulations.blocks, strict=True)):
            # generation passes by what training put around a block: its compilation, or the gathering of its weights
            x = (block if cache is None else block.forward)(x, six, prefix, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1])
        if skip:
            x = x[:, skip:]
            if not x.shape[1]:  # no layer for generation takes nothing
                return x
        return self.head(_norm(x, *modulations.final)).float()


def init_weight(weight: Tensor, std: float) -> None:
    """Truncated normal of this std, cut at two of them."""
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
