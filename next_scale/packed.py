"""Linear layers that only generate: weights in the layout that the CPU multiplies fastest, or as 8-bit integers."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import torch
from torch import Tensor, nn

from next_scale.errors import UserError

_LEAST = 1 << 16  # weights of a layer below which the layout does not pay
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)
_ROWS = 64  # that the layout is made for; measured as fast for any other number


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of giving it back to the system, where the C library can.

    glibc returns large blocks at once, and the system clears the pages of the next one anew: measured as a sixth of
    the time of a decoder whose activations have 42 MB. Memory in use at the peak stays about the same.
    """
    if not sys.platform.startswith("linux"):
        return
    tune = getattr(ctypes.CDLL(None), "mallopt", None)  # not in every C library
    if tune is not None:
        tune(_M_MMAP_MAX, 0)  # no blocks of their own, which are returned when freed
        tune(_M_TRIM_THRESHOLD, 2**31 - 1)


class PackedLinear(nn.Module):
    """A linear layer for inference on the CPU in float32, whose weight is in oneDNN's own layout.

    Measured on an AMD EPYC against the layout of `torch.nn.Linear`, which MKL multiplies: 1.2 times faster at 512
    rows, 1.7 at 18. The results differ by rounding.

    Args:
        weight: (N, D); not kept.
        bias: (N,) or None.
        gelu: apply the tanh approximation of GELU, on the way out of the caches.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
        self.bias = None if bias is None else bias.detach().clone()
        self.after = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., N)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.after)

    def _save_to_state_dict(self, *_: object) -> None:
        raise RuntimeError("this model is packed for generation and can no longer be saved: save it before")


def _multiply(whole: Tensor, step: float, zero: int, layer: Int8Linear) -> Tensor:
    """8-bit inputs, (..., D) uint8 whose value is (whole - zero) * step, times the weights of a layer."""
    return torch.ops.onednn.qlinear_pointwise(
        whole, step, zero, layer.weight, layer.scale, layer.zero, layer.bias, 1.0, 0, torch.float32, *layer.after
    )


@cache
def _greatest_weight() -> int:
    """The greatest 8-bit weight that this CPU multiplies exactly.

    Without 8-bit dot products (VNNI) it adds pairs of products in 16 bits, which 2 * 255 * 127 does not fit into, and
    2 * 255 * 64 does. So it is asked for a sum that would not fit.
    """
    rows, columns = 32, 64
    layer = Int8Linear(torch.ones(rows, columns), None, greatest=127)  # all of its weights are 127
    found = _multiply(torch.full((4, columns), 255, dtype=torch.uint8), 1.0, 0, layer)
    return 127 if torch.allclose(found, torch.full_like(found, 255.0 * columns)) else 64


class Int8Linear(PackedLinear):
    """A linear layer whose weights are 8-bit integers with a scale an output, and its inputs 8 bits while it computes.

    The inputs' range is taken from each call. On CPUs with 8-bit dot products (AVX512-VNNI) three to four times faster
    than float32, in a quarter of the memory; every layer's output is off by about 1%. On others weights have 7 bits.

    Args:
        weight, bias, gelu: as above.
        greatest: weight, as an integer; by default what this CPU multiplies exactly.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False, greatest: int | None = None) -> None:
        nn.Module.__init__(self)
        weight = weight.detach()
        self.scale = (weight.abs().amax(1) / (greatest or _greatest_weight())).clamp_min(1e-12)
        whole = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(whole, [_ROWS, weight.shape[1]])
        self.zero = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if bias is None else bias.detach().clone()
        self.after = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., N)."""
        low, high = (edge.item() for edge in x.aminmax())
        low, high = min(low, 0.0), max(high, 0.0)
        step = max((high - low) / 255, 1e-12)
        zero = round(-low / step)
        whole = (x / step).round_().add_(zero).clamp_(0, 255).to(torch.uint8)
        return _multiply(whole, step, zero, self)


def pack_linear(layer: nn.Module, int8: bool = False, gelu: bool = False, bias: Tensor | None = None) -> nn.Module:
    """A linear layer for generation in place of `layer`.

    Args:
        layer: an `nn.Linear`; one that is packed already stays.
        int8: 8-bit integers, see :class:`Int8Linear`; else float32, see :class:`PackedLinear`.
        gelu: apply GELU after it.
        bias: in place of the layer's own.

    Returns:
        The packed layer; `layer` itself (followed by GELU) on a GPU, in another dtype, or where packing does not pay.

    Raises:
        UserError: 8-bit integers were asked for and do not work here.
    """
    if isinstance(layer, PackedLinear):
        return layer
    weight, bias = layer.weight, layer.bias if bias is None else bias
    here = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if int8:
        if not here:
            raise UserError("8-bit integers need a model in float32 on an x86 CPU: leave int8 out or use --device cpu")
        return Int8Linear(weight, bias, gelu)
    if not here or weight.numel() < _LEAST:
        return nn.Sequential(layer, nn.GELU(approximate="tanh")) if gelu else layer
    return PackedLinear(weight, bias, gelu)
