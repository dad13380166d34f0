"""Comparison with a published implementation: cases with regenerated weights, named differences, a table of them."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from next_scale.errors import UserError, first_line
from next_scale.model import Generator, tokenizer_of
from next_scale.sampling import SamplingOptions
from next_scale.tokenizer import Tokenizer

_TOKENS = re.compile(r"tokens\.\d+")
_GREEDY = re.compile(r"generated_\w+_top1_cfg([\d.]+)")


@dataclass(frozen=True)
class Case:
    """What a published implementation computed at some size.

    Attributes:
        config: its sizes and options.
        shapes: key -> shape of every tensor of its state dicts, with the model's prefix.
        filled: the keys whose values follow from the key (:func:`fill`); others keep their construction value.
        metadata: the remaining texts of the file.
        tensors: inputs and expected outputs by name.
    """

    config: dict
    shapes: dict[str, tuple[int, ...]]
    filled: frozenset[str]
    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """State dict of one model, float32: the regenerated tensors under `prefix`, by their names without it."""
        return {
            key.removeprefix(prefix): torch.from_numpy(fill(key, shape))
            for key, shape in self.shapes.items()
            if key.startswith(prefix) and key in self.filled
        }

    def unfilled(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Shapes of one model's tensors that keep their construction value, by their names without `prefix`."""
        return {
            key.removeprefix(prefix): shape
            for key, shape in self.shapes.items()
            if key.startswith(prefix) and key not in self.filled
        }

    def transformer(self, prefix: str) -> dict[str, Tensor]:
        """As :meth:`weights`, of a transformer: logit scales that keep their construction value among them."""
        tensors = self.weights(prefix)
        text = self.metadata.get("attn.scale_mul_1H11", "log(4)")  # the published value, unless the case says otherwise
        logarithm = re.fullmatch(r"log\((.+)\)", text)
        start = math.log(float(logarithm[1])) if logarithm else float(text)
        for name, shape in self.unfilled(prefix).items():
            if name.endswith("scale_mul_1H11"):
                tensors[name] = torch.full(shape, start)
        return tensors


def read_case(path: str | Path) -> Case:
    """Read a case: a safetensors file with the JSON texts `config`, `filled_keys` and `state_dict_keys`.

    Raises:
        UserError: not there, not a whole safetensors file, or one without these texts.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {first_line(error)}") from error
    try:
        config = dict(json.loads(metadata.pop("config")))
        filled = _shapes(metadata.pop("filled_keys"))
        shapes = filled | _shapes(metadata.pop("state_dict_keys", "{}"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a case to compare with: it lacks readable config and filled_keys") from error
    return Case(config, shapes, frozenset(filled), metadata, tensors)


def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(int(side) for side in shape) for key, shape in json.loads(text).items()}


def fill(key: str, shape: Sequence[int]) -> np.ndarray:
    """The float32 values that a case's weight has by its key.

    Uniform numbers of the generator splitmix64, seeded by the key's CRC-32, scaled by the tensor's role: variance
    1 / fan-in for matrices and kernels, 0.5^2 for codebooks, 0.1^2 around one for gains and around zero for biases.
    """
    count = math.prod(shape)
    z = np.arange(count, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        z += np.uint64(zlib.crc32(key.encode()) << 32)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    uniform = (z >> np.uint64(11)).astype(np.float64) / 2**52 - 1  # [-1, 1)
    value = uniform.reshape(tuple(shape)) * math.sqrt(3)  # of unit variance
    gain = key.endswith("weight_g")
    if key.endswith(("quantize.embedding.weight", "_codebook.embed")):
        value *= 0.5
    elif len(shape) > 1 and not gain:
        value /= math.sqrt(max(1, count // shape[0]))
    elif gain or key.endswith(("weight", "original0")):
        value = 1 + 0.1 * value
    else:
        value *= 0.1
    return value.astype(np.float32)


@dataclass(frozen=True)
class Difference:
    """How far one quantity is from what was expected.

    Attributes:
        name: of the quantity.
        largest: absolute difference of float values, or the number of integers that differ; infinite where shapes
            differ or a value is not a number.
        detail: what else to say of it.
        exact: whether these are integers, of which none may differ.
    """

    name: str
    largest: float
    detail: str
    exact: bool

    def passes(self, limit: float) -> bool:
        """Whether it is at most `limit`, or zero for integers."""
        return self.largest <= (0 if self.exact else limit)


def difference(name: str, ours: Tensor, theirs: Tensor) -> Difference:
    """Compare two tensors of integers or of floats."""
    exact = not theirs.is_floating_point()
    if ours.shape != theirs.shape:
        return Difference(name, math.inf, f"shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}", exact)
    if exact:
        return Difference(name, int((ours != theirs).sum()), f"of {theirs.numel():,} differ", True)
    detail = f"in {theirs.numel():,} values up to {float(theirs.abs().max()) if theirs.numel() else 0:.3g}"
    gap = (ours.double() - theirs.double()).abs()
    # not `max`, which a comparison with NaN would let pass
    largest = float(gap.max()) if gap.numel() and bool(gap.isfinite().all()) else math.inf if gap.numel() else 0.0
    return Difference(name, largest, detail, False)


def compare(
    case: Case, model: Tokenizer | Generator, sample: str, given: str, field: str,
    shown: Callable[[Tensor], Tensor] | None = None,
) -> tuple[list[Difference], list[str]]:  # fmt: skip
    """Compare all quantities that a case holds, each computed from the inputs on.

    Args:
        model: with the weights of the case.
        sample, given: names of the inputs: what the autoencoder takes, and what `field` of the condition holds.
        shown: from what our autoencoder decodes to what the case has as generated.

    Returns:
        Their differences, and the names of the tensors that are neither inputs nor known quantities.

    Raises:
        UserError: no quantity that can be computed, or inputs that do not fit the model.
    """
    left = dict(case.tensors)
    tokens = sorted((name for name in left if _TOKENS.fullmatch(name)), key=lambda name: int(name.split(".")[1]))
    if tokens:
        left["tokens"] = torch.cat([left.pop(name) for name in tokens], dim=1)
    found = []
    try:
        for name, ours in _quantities(model, dict(left), sample, given, field, shown or (lambda made: made)):
            if name in left:
                found.append(difference(name, ours, left.pop(name)))
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(f"the case's tensors do not fit its model: {first_line(error)}") from error
    if not found:
        raise UserError(f"the case holds nothing to compare, only {', '.join(sorted(case.tensors)) or 'no tensor'}")
    return found, sorted(left.keys() - {sample, given})


@torch.inference_mode()
def _quantities(
    model: Tokenizer | Generator, case: dict[str, Tensor], sample: str, given: str, field: str,
    shown: Callable[[Tensor], Tensor],
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """Names and values of all that follows from the inputs; where inputs are missing, from the case's quantities."""
    tokenizer = tokenizer_of(model)
    autoencoder, quantizer = tokenizer.autoencoder, tokenizer.quantizer
    latent, tokens = case.get("latent"), case.get("tokens")
    if sample in case:
        latent = autoencoder.encode(case[sample])
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
    if not isinstance(model, Generator) or given not in case:
        return
    condition = {field: case[given]}
    if tokens is not None and "logits" in case:
        yield "logits", model.predictor(quantizer.teacher_forcing(tokens), condition)
    for name in sorted(case):
        if greedy := _GREEDY.fullmatch(name):
            sampling = SamplingOptions(cfg=float(greedy[1]), cfg_ramp=True, temperature=0)
            made, _ = model.generate(condition, range(len(case[given])), sampling)
            yield name, shown(made)


def report(differences: Iterable[Difference], limit: float) -> str:
    """A table, one line a quantity: name, largest difference, detail, and whether it is within the limit."""
    rows = [
        (
            item.name,
            f"{item.largest:.0f}" if item.exact else f"{item.largest:.2e}",
            item.detail,
            "ok" if item.passes(limit) else "TOO LARGE",
        )
        for item in differences
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)] if rows else [0] * 4
    return "\n".join(
        f"{name:<{widths[0]}}  {largest:>{widths[1]}} {detail:<{widths[2]}}  {verdict}"
        for name, largest, detail, verdict in rows
    )
