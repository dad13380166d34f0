"""Comparison with what the published VAR code computed, quantity by quantity."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from image_var.published import PHI_RATIO, VAE, VAR, Weights, build_generator, build_tokenizer, square_schedule
from next_scale.errors import UserError, first_line
from next_scale.model import Generator, tokenizer_of
from next_scale.parity import Case, Difference, difference
from next_scale.sampling import SamplingOptions
from next_scale.tokenizer import Tokenizer
from next_scale.transformer import EPS

_INPUTS = {"image", "labels"}
_TOKENS = re.compile(r"tokens\.\d+")
_GREEDY = re.compile(r"generated_\w+_top1_cfg([\d.]+)")


def model_of(case: Case) -> Tokenizer | Generator:
    """The model that a case describes, with its regenerated weights; a tokenizer where it has no transformer.

    Raises:
        UserError: it describes another system, or sizes that do not fit together.
    """
    config = case.config
    prefixes = sorted({key.split(".")[0] for key in case.shapes})
    if "vae" not in prefixes:
        raise UserError(f"the case has weights of {', '.join(prefixes) or 'nothing'}, but of no VAR autoencoder")
    if config.get("norm_eps", EPS) != EPS:
        raise UserError(f"the case normalises with norm_eps {config['norm_eps']}; published models have {EPS}")
    vae = Weights(VAE, "the case", case.weights("vae."))
    sides, ratio, cosine = (
        config.get("patch_nums"),
        config.get("quant_resi", PHI_RATIO),
        config.get("using_znorm", False),
    )
    if "var" not in prefixes:
        if sides is None:
            raise UserError("the case tells no schedule: its config lacks patch_nums")
        return build_tokenizer(vae, square_schedule(sides), ratio, cosine)
    tensors = case.weights("var.")
    for name, shape in case.unfilled("var.").items():
        if name.endswith("scale_mul_1H11"):
            tensors[name] = torch.full(shape, _logit_scale(case))
    return build_generator(vae, Weights(VAR, "the case", tensors), sides, ratio, cosine, config.get("num_heads"))


def _logit_scale(case: Case) -> float:
    """What `scale_mul_1H11` holds before training: log 4, unless the case says otherwise."""
    text = case.metadata.get("attn.scale_mul_1H11", "log(4)")
    logarithm = re.fullmatch(r"log\((.+)\)", text)
    return math.log(float(logarithm[1])) if logarithm else float(text)


def compare(case: Case) -> tuple[list[Difference], list[str]]:
    """Compare all quantities that a case holds, each computed from the inputs on.

    Returns:
        Their differences, and the names of the tensors that are neither inputs nor known quantities.

    Raises:
        UserError: no quantity that can be computed, or inputs that do not fit the model.
    """
    model = model_of(case)
    left = dict(case.tensors)
    tokens = sorted((name for name in left if _TOKENS.fullmatch(name)), key=lambda name: int(name.split(".")[1]))
    if tokens:
        left["tokens"] = torch.cat([left.pop(name) for name in tokens], dim=1)
    found = []
    try:
        for name, ours in _quantities(model, dict(left)):
            if name in left:
                found.append(difference(name, ours, left.pop(name)))
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(f"the case's tensors do not fit its model: {first_line(error)}") from error
    if not found:
        raise UserError(f"the case holds nothing to compare, only {', '.join(sorted(case.tensors)) or 'no tensor'}")
    return found, sorted(left.keys() - _INPUTS)


@torch.inference_mode()
def _quantities(model: Tokenizer | Generator, case: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all that follows from the inputs; where inputs are missing, from the case's quantities."""
    tokenizer = tokenizer_of(model)
    autoencoder, quantizer = tokenizer.autoencoder, tokenizer.quantizer
    latent, tokens = case.get("latent"), case.get("tokens")
    if "image" in case:
        latent = autoencoder.encode(case["image"])
        yield "latent", latent
    if latent is not None:
        tokens = quantizer.encode(latent)
        yield "tokens", tokens
    if tokens is not None:
        quantized = quantizer.decode(tokens)
        yield "latent_quantized", quantized
        if "reconstruction" in case:
            yield "reconstruction", autoencoder.decode(quantized)
        yield "teacher_forcing_input", quantizer.teacher_forcing(tokens)
    if not isinstance(model, Generator) or "labels" not in case:
        return
    condition = {"label": case["labels"]}
    if tokens is not None and "logits" in case:
        yield "logits", model.predictor(quantizer.teacher_forcing(tokens), condition)
    for name in sorted(case):
        if greedy := _GREEDY.fullmatch(name):
            sampling = SamplingOptions(cfg=float(greedy[1]), cfg_ramp=True, temperature=0)
            made, _ = model.generate(condition, range(len(case["labels"])), sampling)
            yield name, (made + 1) / 2
