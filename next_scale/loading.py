"""Loading weights: what a file must bring, and models built for it without first drawing random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from next_scale.errors import UserError


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


def check_fit(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Check that `state`, read from `source`, has the model's tensors, in its shapes, and no others.

    Raises:
        UserError: one that is missing, of another shape, or left over, by name.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise UserError(f"{source} lacks the tensor {name}")
        if state[name].shape != tensor.shape:
            found, wanted = tuple(state[name].shape), tuple(tensor.shape)
            raise UserError(f"{source}: {name} has shape {found}, expected {wanted}")
    if extra := sorted(set(state) - set(own)):
        raise UserError(f"{source} has a tensor that the model does not: {extra[0]}")


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model all its tensors, in its own dtypes and memory formats; it passes :func:`check_fit`.

    Tensors that fit as they are become the model's own, without a copy.
    """
    own = model.state_dict()
    model.load_state_dict({name: _alike(state[name], tensor) for name, tensor in own.items()}, assign=True)


def _alike(value: Tensor, model: Tensor) -> Tensor:
    """`value` in the dtype and strides of `model`; itself where it has them."""
    if value.dtype == model.dtype and value.stride() == model.stride():
        return value
    return torch.empty_like(model, device=value.device).copy_(value)
