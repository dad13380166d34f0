"""Building a model for weights that are about to be loaded, without first drawing random ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def without_weights() -> Iterator[None]:
    """Build modules whose parameters have no memory and no values, which :func:`load_weights` brings.

    Buffers are as ever. Drawing 310 M random numbers takes longer than reading as many weights from a file.
    """
    register = nn.Module.register_parameter

    def register_unfilled(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_unfilled
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model all its tensors, in its own dtypes and memory formats; names and shapes must fit.

    Tensors that fit as they are become the model's own, without a copy.
    """
    own = model.state_dict()
    model.load_state_dict({name: _alike(state[name], tensor) for name, tensor in own.items()}, assign=True)


def _alike(value: Tensor, model: Tensor) -> Tensor:
    """`value` in the dtype and strides of `model`; itself where it has them."""
    if value.dtype == model.dtype and value.stride() == model.stride():
        return value
    return torch.empty_like(model, device=value.device).copy_(value)
