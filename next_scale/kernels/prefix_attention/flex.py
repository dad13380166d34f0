"""Prefix attention by FlexAttention (arXiv 2412.05496), for GPUs: measured beside the others, chosen by nobody yet.

Its blocks follow from `visible_end`, which never decreases: of a block of queries the first one sees the fewest keys
and the last one the most. No mask of queries times keys is made, not even once.
"""

from __future__ import annotations

import functools
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from next_scale.kernels.prefix_attention.prefix import Prefix
from next_scale.kernels.prefix_attention.reference import normalised

BLOCK = 128
_masks: WeakKeyDictionary[Prefix, BlockMask] = WeakKeyDictionary()


def block_mask(prefix: Prefix) -> BlockMask:
    """Of a prefix, on the device of its buffers, over the keys that some query sees; made once."""
    ends = prefix.visible_end
    mask = _masks.get(prefix)
    if mask is None or mask.kv_num_blocks.device != ends.device:
        first = torch.arange(0, prefix.length, BLOCK, device=ends.device)
        last = (first + BLOCK).clamp(max=prefix.length) - 1
        # blocks of keys that all queries of a block see; a block that the last query cuts short is masked throughout
        whole = torch.where(first + BLOCK <= prefix.length, ends[first] // BLOCK, 0)
        some = (ends[last] + BLOCK - 1) // BLOCK - whole
        order = torch.arange(-(-prefix.keys // BLOCK), dtype=torch.int32, device=ends.device)
        partial = (whole[:, None] + order).clamp(max=len(order) - 1)  # (L / BLOCK, S / BLOCK)
        mask = _masks[prefix] = BlockMask.from_kv_blocks(
            some.int()[None, None],
            partial.int()[None, None],
            whole.int()[None, None],
            order.expand_as(partial).contiguous()[None, None],
            BLOCK,
            lambda batch, head, query, key: key < ends[query],
            seq_lengths=(prefix.length, prefix.keys),
        )
    return mask


@functools.cache
def _compiled() -> object:
    return torch.compile(flex_attention)


def prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, prefix: Prefix, scale: float, head_scale: Tensor | None = None
) -> Tensor:
    """See :func:`next_scale.kernels.prefix_attention.op.prefix_attention`; without dropout, compiled on a GPU."""
    q, k = normalised(q, k[:, : prefix.keys], head_scale)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v[:, : prefix.keys]))  # (B, L, H, d) -> (B, H, L, d)
    call = _compiled() if q.is_cuda else flex_attention
    return call(q, k, v, block_mask=block_mask(prefix), scale=scale).transpose(1, 2)
