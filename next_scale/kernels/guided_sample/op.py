"""The operator ``next_scale::guided_sample``, which ``torch.compile`` keeps whole."""

from __future__ import annotations

import torch
from torch import Tensor

from next_scale.kernels.dispatch import dispatch
from next_scale.kernels.guided_sample import cuda, reference
from next_scale.sampling import Draw, SamplingOptions, guide, sample


@torch.no_grad()
def guided_sample(
    conditional: Tensor,
    options: SamplingOptions,
    noise: Tensor | None = None,
    unconditional: Tensor | None = None,
    strength: float = 0.0,
    tolerance: float | None = None,
    implementation: str = "auto",
) -> Draw:
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
        tolerance: how close a call must be, in guided logits, for `sure` to be false; None leaves `sure` None.
        implementation: see :func:`next_scale.kernels.dispatch.dispatch`; the reference has no `sure` and runs in
            PyTorch where a tolerance is given.

    Returns:
        tokens (B, n) int64; sure (B, n) bool or None.

    Raises:
        ValueError: no noise at a temperature above 0.
        UserError: the implementation asked for cannot run here.

    Shape notation: B batch, n tokens, V codes.
    """
    if noise is None and not options.greedy:
        raise ValueError("drawing at a temperature above 0 needs noise")
    drawn = None if options.greedy else noise
    filters = float(options.temperature), int(options.top_k), float(options.top_p)
    tokens, sure = _guided_sample(
        conditional, unconditional, drawn, float(strength), *filters, tolerance, implementation
    )
    return Draw(tokens, None if tolerance is None else sure)


@torch.library.custom_op("next_scale::guided_sample", mutates_args=())
def _guided_sample(
    conditional: Tensor,
    unconditional: Tensor | None,
    noise: Tensor | None,
    strength: float,
    temperature: float,
    top_k: int,
    top_p: float,
    tolerance: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    arguments = (conditional, unconditional, noise, strength, temperature, top_k, top_p)

    def in_torch() -> Draw:
        options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p)
        logits = conditional if unconditional is None else guide(conditional, unconditional, strength)
        return sample(logits, options, noise, tolerance)

    def as_defined() -> Draw:
        return in_torch() if tolerance is not None else Draw(reference.guided_sample(*arguments), None)

    tokens, sure = dispatch(
        "guided_sample",
        implementation,
        lambda: cuda.unable(conditional),
        cuda=lambda: cuda.guided_sample(*arguments, tolerance),
        torch=in_torch,
        reference=as_defined,
    )
    return tokens, tokens.new_empty(0, dtype=torch.bool) if sure is None else sure


@_guided_sample.register_fake
def _(conditional, unconditional, noise, strength, temperature, top_k, top_p, tolerance, implementation):
    shape = conditional.shape[:-1]
    sure = conditional.new_empty(0 if tolerance is None else shape, dtype=torch.bool)
    return conditional.new_empty(shape, dtype=torch.int64), sure
