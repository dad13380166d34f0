"""The operators ``next_scale::pyramid_*``, which ``torch.compile`` keeps whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from next_scale import flops
from next_scale.kernels.dispatch import dispatch
from next_scale.kernels.pyramid_step import backward, cuda, products, reference

Size = tuple[int, ...]


def pyramid_step(
    latent: Tensor,
    tokens: Tensor,
    codes: Tensor,
    size: Size,
    shown: Size | None = None,
    upsampling: str = "linear",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    ratio: float = 0.0,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Add a scale to the latent and show it at another size (VAR, arXiv 2404.02905, algorithms 1 and 2).

    The scale's codes are interpolated to the full grid as :func:`next_scale.resample.upsample` does, smoothed by
    phi(x) = (1 - r) x + r conv(x), and added; the sum is averaged over areas as ``downsample`` does.

    Gradients reach all float inputs, as the training of a tokenizer needs: its codebook loss is of the sum after every
    scale, so that phi's and codes learn. Nothing else needs them: the straight-through latent and the commitment loss
    go round the codes, and a predictor's inputs are constants.

    Args:
        latent: (B, C, *grid) float.
        tokens: (B, n) int64, rows of `codes`, in raster order.
        codes: (V, C) float.
        size: of the scale, n in all.
        shown: the size to show the sum at; None for not at all.
        upsampling: ``nearest``, ``linear``, or ``cubic`` (2D only).
        weight, bias: (C, C, *kernel) of odd sizes and (C,) of phi's convolution; None without one.
        ratio: r.
        implementation: see :func:`next_scale.kernels.dispatch.dispatch`.

    Returns:
        The sum (B, C, *grid), and (B, n', C) or None.

    Raises:
        UserError: the implementation asked for cannot run here.

    Shape notation: B batch, C channels, V codes, n tokens of the scale, n' cells of the size shown.
    """
    if weight is not None:
        flops.report(_convolution(latent.shape, weight.shape), weight, inputs=codes)
    # sums of residuals need full precision, also inside mixed-precision training, here and in the two below
    with torch.autocast(latent.device.type, enabled=False):
        return _step(latent, tokens, codes, tuple(size), shown, upsampling, weight, bias, ratio, implementation)


def _step(
    latent: Tensor, tokens: Tensor, codes: Tensor, size: Size, shown: Size | None, upsampling: str,
    weight: Tensor | None, bias: Tensor | None, ratio: float, implementation: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    learning = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (latent, codes, weight, bias))
    if learning and (chosen := _choose(implementation, latent, codes, weight)) != "cuda":
        # PyTorch's own gradients: an operator around these lines costs more than all its other savings
        add_scale = reference.add_scale if chosen == "reference" else products.add_scale
        latent = add_scale(latent, tokens, codes, weight, bias, ratio, size, upsampling)
        return latent, None if shown is None else reference.show(latent, tuple(shown))
    numbers = (float(ratio), list(size), list(shown or ()), upsampling, implementation)
    latent, seen = _pyramid_step(latent, tokens, codes, weight, bias, *numbers)
    return latent, None if shown is None else seen


@torch.compiler.assume_constant_result
def _choose(implementation: str, latent: Tensor, codes: Tensor, weight: Tensor | None) -> str:
    """The name of the implementation that runs. ``torch.compile`` asks once, while it traces."""
    return dispatch(
        "pyramid_step",
        implementation,
        lambda: cuda.unable(latent.shape[2:], [latent, codes], weight),
        cuda=lambda: "cuda",
        torch=lambda: "torch",
        reference=lambda: "reference",
    )


@torch.no_grad()
def pyramid_inputs(
    tokens: Tensor,
    codes: Sequence[Tensor],
    sizes: Sequence[Size],
    upsampling: str = "linear",
    weights: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    ratio: float = 0.0,
    phis: Sequence[int] = (),
    implementation: str = "auto",
) -> Tensor:
    """Teacher forcing: what every scale but the first is predicted from, the sum of the scales before it at its size.

    All steps of a pyramid in one, without gradients: the inputs of a predictor on a frozen tokenizer are constants.

    Args:
        tokens: (B, L) int64.
        codes: K of (V, C) float, or one for all scales.
        sizes: K, the last is the full grid.
        upsampling, ratio, implementation: see :func:`pyramid_step`.
        weights, biases: of the phi's; none without them.
        phis: which of them each scale uses, K.

    Returns:
        (B, L - n_0, C).

    Raises:
        UserError: the implementation asked for cannot run here.

    Shape notation: B batch, C channels, K scales, n_k tokens of scale k, L tokens in all, V codes.
    """
    if weights:
        grid = (tokens.shape[0], weights[0].shape[0], *sizes[-1])
        flops.report((len(sizes) - 1) * _convolution(grid, weights[0].shape))
    flat = [n for size in sizes for n in size]
    options = (float(ratio), list(phis), flat, len(sizes[0]), upsampling, implementation)
    with torch.autocast(tokens.device.type, enabled=False):
        return _pyramid_inputs(tokens, list(codes), list(weights), list(biases), *options)


@torch.no_grad()
def pyramid_tokens(
    latent: Tensor,
    codes: Sequence[Tensor],
    sizes: Sequence[Size],
    upsampling: str = "linear",
    weights: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    ratio: float = 0.0,
    phis: Sequence[int] = (),
    cosine: bool = False,
    implementation: str = "auto",
) -> Tensor:
    """Tokenize: at every scale the codes nearest to what the scales before it leave of the latent.

    Without gradients, which tokens have none of.

    Args:
        latent: (B, C, *grid) float.
        cosine: compare directions only.
        others, errors and notation: see :func:`pyramid_inputs`.

    Returns:
        (B, L) int64.
    """
    flops.report(_tokenizing(latent.shape, codes[0].shape, weights[0].shape if weights else None, sizes))
    flat = [n for size in sizes for n in size]
    options = (float(ratio), list(phis), flat, upsampling, cosine, implementation)
    with torch.autocast(latent.device.type, enabled=False):
        return _pyramid_tokens(latent, list(codes), list(weights), list(biases), *options)


@torch.library.custom_op("next_scale::pyramid_step", mutates_args=())
def _pyramid_step(
    latent: Tensor, tokens: Tensor, codes: Tensor, weight: Tensor | None, bias: Tensor | None, ratio: float,
    size: Sequence[int], shown: Sequence[int], upsampling: str, implementation: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    arguments = (latent, tokens, codes, weight, bias, ratio, tuple(size))

    def step(add_scale: reference.Step) -> tuple[Tensor, Tensor]:
        total = add_scale(*arguments, upsampling)
        if not shown:
            return total, total.new_empty(total.shape[0], 0, total.shape[1])
        # outputs of an operator share no memory
        return total, reference.show(total, tuple(shown)).clone(memory_format=torch.contiguous_format)

    return dispatch(
        "pyramid_step",
        implementation,
        lambda: cuda.unable(latent.shape[2:], [latent, codes], weight),
        cuda=lambda: cuda.pyramid_step(*arguments, tuple(shown), upsampling),
        torch=lambda: step(products.add_scale),
        reference=lambda: step(reference.add_scale),
    )


@_pyramid_step.register_fake
def _(latent, tokens, codes, weight, bias, ratio, size, shown, upsampling, implementation) -> tuple[Tensor, Tensor]:
    cells = math.prod(shown) if shown else 0
    return torch.empty_like(latent, memory_format=torch.contiguous_format), latent.new_empty(
        latent.shape[0], cells, latent.shape[1]
    )


@torch.library.custom_op("next_scale::pyramid_step_backward", mutates_args=())
def _pyramid_step_backward(
    grad: Tensor, grad_shown: Tensor, tokens: Tensor, codes: Tensor, weight: Tensor | None, ratio: float,
    size: Sequence[int], shown: Sequence[int], upsampling: str, implementation: str, codes_learn: bool,
    phi_learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    options = (ratio, tuple(size), tuple(shown), upsampling, codes_learn, phi_learns)
    arguments = (grad, grad_shown, tokens, codes, weight, *options)
    return dispatch(
        "pyramid_step_backward",
        implementation,
        lambda: cuda.unable(grad.shape[2:], [grad, codes], weight),
        cuda=lambda: cuda.pyramid_step_backward(*arguments),
        torch=lambda: backward.pyramid_step_backward(*arguments),
        reference=lambda: backward.pyramid_step_backward(*arguments),
    )


@_pyramid_step_backward.register_fake
def _(grad, grad_shown, tokens, codes, weight, ratio, size, shown, upsampling, implementation, codes_learn, phi_learns):
    shapes = (
        grad.shape if shown else (0,),
        codes.shape if codes_learn else (0,),
        *((weight.shape, weight.shape[:1]) if phi_learns else ((0,), (0,))),
    )
    return tuple(grad.new_empty(shape) for shape in shapes)


def _save(ctx, inputs, output) -> None:
    _, tokens, codes, weight, _, *ctx.options = inputs
    ctx.save_for_backward(tokens, codes, weight)


def _step_back(ctx, grad: Tensor, grad_shown: Tensor):
    tokens, codes, weight = ctx.saved_tensors
    _, _, codes_learn, weight_learns, bias_learns, *_ = ctx.needs_input_grad
    shown, learning = ctx.options[2], (codes_learn, weight_learns or bias_learns)
    found = _pyramid_step_backward(grad, grad_shown, tokens, codes, weight, *ctx.options, *learning)
    grad_latent, grad_codes, grad_weight, grad_bias = found
    return (
        grad_latent if shown else grad,
        None,
        grad_codes if codes_learn else None,
        grad_weight if weight_learns else None,
        grad_bias if bias_learns else None,
        *[None] * len(ctx.options),
    )


_pyramid_step.register_autograd(_step_back, setup_context=_save)


def _sizes(flat: Sequence[int], dim: int) -> list[Size]:
    return [tuple(flat[i : i + dim]) for i in range(0, len(flat), dim)]


@torch.library.custom_op("next_scale::pyramid_inputs", mutates_args=())
def _pyramid_inputs(
    tokens: Tensor, codes: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], ratio: float,
    phis: Sequence[int], sizes: Sequence[int], dim: int, upsampling: str, implementation: str,
) -> Tensor:  # fmt: skip
    arguments = (tokens, codes, weights, biases, ratio, phis, _sizes(sizes, dim), upsampling)
    return dispatch(
        "pyramid_inputs",
        implementation,
        lambda: cuda.unable(sizes[-dim:], codes, weights[0] if weights else None),
        cuda=lambda: cuda.pyramid_inputs(*arguments),
        torch=lambda: reference.pyramid_inputs(*arguments, products.add_scale),
        reference=lambda: reference.pyramid_inputs(*arguments),
    )


@_pyramid_inputs.register_fake
def _(tokens, codes, weights, biases, ratio, phis, sizes, dim, upsampling, implementation) -> Tensor:
    later = sum(math.prod(size) for size in _sizes(sizes, dim)[1:])
    return codes[0].new_empty(tokens.shape[0], later, codes[0].shape[1])


@torch.library.custom_op("next_scale::pyramid_tokens", mutates_args=())
def _pyramid_tokens(
    latent: Tensor, codes: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], ratio: float,
    phis: Sequence[int], sizes: Sequence[int], upsampling: str, cosine: bool, implementation: str,
) -> Tensor:  # fmt: skip
    arguments = (latent, codes, weights, biases, ratio, phis, _sizes(sizes, latent.dim() - 2), upsampling, cosine)
    nearest = torch.ops.next_scale.nearest_code
    return dispatch(
        "pyramid_tokens",
        implementation,
        lambda: cuda.unable_to_search(latent, codes, weights[0] if weights else None),
        cuda=lambda: cuda.pyramid_tokens(*arguments),
        torch=lambda: reference.pyramid_tokens(*arguments, partial(nearest, implementation="auto"), products.add_scale),
        reference=lambda: reference.pyramid_tokens(*arguments, partial(nearest, implementation="reference")),
    )


@_pyramid_tokens.register_fake
def _(latent, codes, weights, biases, ratio, phis, sizes, upsampling, cosine, implementation) -> Tensor:
    count = sum(math.prod(size) for size in _sizes(sizes, latent.dim() - 2))
    return latent.new_empty(latent.shape[0], count, dtype=torch.int64)


def _convolution(latent: Sequence[int], weight: Sequence[int]) -> float:
    """Floating-point operations of phi on a latent of this shape."""
    return 2.0 * math.prod(latent) * math.prod(weight[1:])


def _tokenizing(
    latent: Sequence[int], codes: Sequence[int], weight: Sequence[int] | None, sizes: Sequence[Size]
) -> float:
    """Those of the search at all scales and of phi at all but the last."""
    smoothing = (len(sizes) - 1) * _convolution(latent, weight) if weight else 0.0
    return smoothing + 2.0 * latent[0] * sum(math.prod(size) for size in sizes) * math.prod(codes)


# What PyTorch's own counter counts, which does not see into operators; it hands over the tensors' shapes.
@register_flop_formula(torch.ops.next_scale.pyramid_step)
def _(latent, tokens, codes, weight, *_: object, **__: object) -> int:
    return int(_convolution(latent, weight)) if weight else 0


@register_flop_formula(torch.ops.next_scale.pyramid_step_backward)
def _(
    grad, grad_shown, tokens, codes, weight, ratio, size, shown, upsampling, implementation, codes_learn, phi_learns,
    **_: object,
) -> int:  # fmt: skip
    return (codes_learn + phi_learns) * int(_convolution(grad, weight)) if weight else 0


@register_flop_formula(torch.ops.next_scale.pyramid_inputs)
def _(tokens, codes, weights, biases, ratio, phis, sizes, dim, *_: object, **__: object) -> int:
    grid = (tokens[0], codes[0][1], *sizes[-dim:])
    return (len(sizes) // dim - 1) * int(_convolution(grid, weights[0])) if weights else 0


@register_flop_formula(torch.ops.next_scale.pyramid_tokens)
def _(latent, codes, weights, biases, ratio, phis, sizes, *_: object, **__: object) -> int:
    return int(_tokenizing(latent, codes[0], weights[0] if weights else None, _sizes(sizes, len(latent) - 2)))
