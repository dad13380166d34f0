"""The operator ``next_scale::guided_sample``, which ``torch.compile`` keeps whole."""

from __future__ import annotations

import torch
from torch import Tensor

from next_scale.kernels.dispatch import dispatch
from next_scale.kernels.guided_sample import cuda, reference
from next_scale.sampling import SamplingOptions, guide, sample


@torch.no_grad()
def guided_sample(
    conditional: Tensor,
    options: SamplingOptions,
    noise: Tensor | None = None,
    unconditional: Tensor | None = None,
    strength: float = 0.0,
    implementation: str = "auto",
) -> Tensor:
    """Draw a token from every row of logits: what :func:`next_scale.sampling.guide` and ``sample`` do, in one step.

    A draw is the greatest of logit + Gumbel noise among the codes that top-k and then top-p keep, which is exact in
    distribution (the Gumbel-max trick). Which noise belongs to which sample is up to the caller, see
    :class:`next_scale.sampling.NoiseStreams`: a sample then depends on its own seed and not on the batch.

    Args:
        conditional: (B, n, V) float.
        options: temperature, top_k and top_p are used.
        noise: (B, n, V) float32, standard Gumbel; not needed at temperature 0.
        unconditional: (B, n, V) for guidance; None is none.
        strength: t of the guided logits (1 + t) conditional - t unconditional.
        implementation: see :func:`next_scale.kernels.dispatch.dispatch`.

    Returns:
        (B, n) int64.

    Raises:
        ValueError: no noise at a temperature above 0.
        UserError: the implementation asked for cannot run here.

    Shape notation: B batch, n tokens, V codes.
    """
    if noise is None and not options.greedy:
        raise ValueError("drawing at a temperature above 0 needs noise")
    drawn = None if options.greedy else noise
    filters = float(options.temperature), int(options.top_k), float(options.top_p)
    return _guided_sample(conditional, unconditional, drawn, float(strength), *filters, implementation)


@torch.library.custom_op("next_scale::guided_sample", mutates_args=())
def _guided_sample(
    conditional: Tensor,
    unconditional: Tensor | None,
    noise: Tensor | None,
    strength: float,
    temperature: float,
    top_k: int,
    top_p: float,
    implementation: str,
) -> Tensor:
    arguments = (conditional, unconditional, noise, strength, temperature, top_k, top_p)

    def in_torch() -> Tensor:
        options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p)
        logits = conditional if unconditional is None else guide(conditional, unconditional, strength)
        return sample(logits, options, noise).tokens

    return dispatch(
        "guided_sample",
        implementation,
        lambda: cuda.unable(conditional),
        cuda=lambda: cuda.guided_sample(*arguments),
        torch=in_torch,
        reference=lambda: reference.guided_sample(*arguments),
    )


@_guided_sample.register_fake
def _(conditional, unconditional, noise, strength, temperature, top_k, top_p, implementation) -> Tensor:
    return conditional.new_empty(conditional.shape[:-1], dtype=torch.int64)
