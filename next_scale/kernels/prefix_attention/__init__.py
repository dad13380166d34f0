"""Attention in which every query sees a leading run of the keys, without a mask of queries times keys."""

from next_scale.kernels.prefix_attention.op import prefix_attention as prefix_attention
from next_scale.kernels.prefix_attention.prefix import Prefix as Prefix
