"""How many floating-point operations a computation takes: layers report to whoever counts.

One multiplication with its addition is two operations. Counted are matrix products, convolutions, attention over the
keys that a query really sees, recurrent layers and code look-ups; element-wise work is not. What will be differentiated
counts its backward pass too, at the time of the forward pass: as much again for the gradient of the weights where they
learn, and as much again for that of the inputs where one is wanted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from next_scale.packed import PackedLinear

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_counters: list[FlopCounter] = []


class FlopCounter:
    """Counts within a block: ``with FlopCounter() as counter: ...``, then ``counter.total``.

    Counters may be nested; each counts all that happens within its own block, in this thread or another.
    """

    def __init__(self) -> None:
        self.total = 0.0

    def __enter__(self) -> FlopCounter:
        _counters.append(self)
        self._hook = register_module_forward_hook(_after_module) if len(_counters) == 1 else None
        return self

    def __exit__(self, *_: object) -> None:
        _counters.remove(self)
        if self._hook is not None:
            self._hook.remove()


def count_flops(call: Callable[[], object]) -> float:
    """Floating-point operations of ``call()``."""
    with FlopCounter() as counter:
        call()
    return counter.total


def report(flops: float, *learned: Tensor | None, inputs: Tensor | None = None) -> None:
    """Tell the counters, if there are any, of work done in a forward pass.

    Args:
        flops: of the forward pass.
        learned: the weights; their gradient costs as much again where one is wanted.
        inputs: what else is multiplied; likewise.
    """
    if not _counters:
        return
    times = 1
    if torch.is_grad_enabled():
        times += any(weight is not None and weight.requires_grad for weight in learned)
        times += inputs is not None and inputs.requires_grad
    for counter in _counters:
        counter.total += times * flops


def report_product(x: Tensor, weight: Tensor, outputs: int) -> None:
    """Of x (..., D) with a matrix of D x `outputs`."""
    if _counters:
        report(2.0 * x.numel() * outputs, weight, inputs=x)


def report_attention(q: Tensor, keys: float) -> None:
    """Of queries (B, L, H, d) that see so many keys each, on average: two products, twice that backwards."""
    if _counters:
        report(4.0 * q.numel() * keys, q, inputs=q)


def _after_module(module: nn.Module, args: tuple, output: object) -> None:
    """The hook on every module: layers of PyTorch, whose code is not ours, report here."""
    if isinstance(module, nn.Linear | PackedLinear):
        x = args[0]
        report(2.0 * x.numel() * output.shape[-1], getattr(module, "weight", None), inputs=x)
    elif isinstance(module, _CONVOLUTIONS):
        taps = module.weight[0].numel()
        report(2.0 * output.numel() * taps, module.weight, inputs=args[0])
    elif isinstance(module, _TRANSPOSED):
        taps = module.weight[0].numel()
        report(2.0 * args[0].numel() * taps, module.weight, inputs=args[0])
    elif isinstance(module, nn.LSTM):
        x = args[0]
        steps = x.shape[:-1].numel()
        weights = [weight for name, weight in module.named_parameters() if "weight" in name]
        report(2.0 * steps * sum(weight.numel() for weight in weights), *weights, inputs=x)
