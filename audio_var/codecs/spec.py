"""Codecs by a short text, such as ``encodec:24khz@3,6``: what the commands that compare and import codecs take."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from audio_var.codecs.pretrained import PretrainedCodec, native_tokenizer
from next_scale.errors import UserError
from next_scale.tokenizer import Tokenizer

PRETRAINED = ("encodec", "snac", "dac", "transformers")
GRAMMAR = """NAME[:VARIANT][/STRIDES][=WEIGHTS][@KBITS,...]"""

_NUMBERS = re.compile(r"@((?:\d+(?:\.\d+)?,)*\d+(?:\.\d+)?)$")
_STRIDES = re.compile(r"/(\d+(?:-\d+)+)$")


@dataclass(frozen=True)
class Spec:
    """A codec and the rates to use it at.

    Attributes:
        kind: ``encodec``, ``snac``, ``dac``, ``transformers``, ``opus``, or ``checkpoint``.
        variant: ``24khz`` and the like, or a hub id; of a checkpoint, its path.
        weights: file or folder of weights; None for the published ones.
        strides: of the scales over the codec's own codebooks in place of its own; None for its own.
        numbers: rates in kbit/s; of a checkpoint, numbers of leading scales. Empty for all.
    """

    kind: str
    variant: str = ""
    weights: str | None = None
    strides: tuple[int, ...] | None = None
    numbers: tuple[float, ...] = ()


def parse_spec(text: str) -> Spec:
    """Read ``encodec:24khz@3,6``, ``encodec:48khz=weights.th``, ``snac:24khz``, ``snac=FOLDER``, ``dac:44khz@8``,
    ``transformers:facebook/encodec_24khz@6``, ``encodec:24khz/8-4-2-1``, ``opus@8,12`` or a checkpoint.

    Raises:
        UserError: it begins like a codec and goes on like none.
    """
    numbers = ()
    if found := _NUMBERS.search(text):
        numbers, text = tuple(float(number) for number in found[1].split(",")), text[: found.start()]
    head, equals, weights = text.partition("=")
    kind = re.split(r"[:/]", head, maxsplit=1)[0]
    if kind == "opus":
        if head != "opus" or equals or not numbers:
            raise UserError(f"cannot read '{text}': give Opus rates in kbit/s, such as opus@8,12,16")
        return Spec("opus", numbers=numbers)
    if kind not in PRETRAINED or (head == kind and not equals):
        return Spec("checkpoint", text, numbers=numbers)
    strides = None
    if found := _STRIDES.search(head):
        strides, head = tuple(int(stride) for stride in found[1].split("-")), head[: found.start()]
    variant = head[len(kind) + 1 :]
    if not variant and not weights:
        raise UserError(f"cannot read '{text}': {GRAMMAR}, such as encodec:24khz@6 or snac=FOLDER")
    return Spec(kind, variant, weights or None, strides, numbers)


def open_codec(spec: Spec, embed: bool = True) -> PretrainedCodec:
    """The codec of a specification, with its weights.

    Raises:
        UserError: its package is absent, or the weights are not there or not whole.
    """
    from audio_var.codecs import build_codec

    if spec.kind == "encodec":
        return build_codec("encodec", variant=spec.variant or "24khz", weights=spec.weights or "hub", embed=embed)
    return build_codec(spec.kind, weights=spec.weights or spec.variant, embed=embed)


def native_tokenizers(spec: Spec) -> list[tuple[str, Tokenizer]]:
    """The codec's tokenizers over its own codebooks, one a rate, with the name of each.

    Raises:
        UserError: as :func:`open_codec`, or a rate that its levels do not reach.
    """
    codec = open_codec(spec)
    own = codec.levels
    if not spec.numbers:
        return [(describe(spec), native_tokenizer(codec, strides=spec.strides))]
    strides = spec.strides or own.strides
    made = []
    for rate in spec.numbers:
        count = levels_at(rate, strides, own.codebooks[0].shape[0], codec.sample_rate / codec.hop)
        if strides[count - 1] != 1:
            raise UserError(f"{describe(spec)} needs all its levels: leave out @{rate:g}")
        tokenizer = native_tokenizer(codec, count, strides[:count])
        made.append((describe(replace(spec, numbers=(rate,))), tokenizer))
    return made


def levels_at(kbits: float, strides: Sequence[int], codes: int, frame_rate: float) -> int:
    """How many levels fit a rate in kbit/s. Raises UserError where the first does not."""
    spent, count = 0.0, 0
    for stride in strides:
        spent += math.log2(codes) * frame_rate / stride / 1000
        if spent > kbits * 1.001:
            break
        count += 1
    if not count:
        least = math.log2(codes) * frame_rate / strides[0] / 1000
        raise UserError(f"{kbits:g} kbit/s is less than one level takes ({least:.2f})")
    return count


def describe(spec: Spec) -> str:
    """A name for tables: ``encodec 24khz``, with strides where they are not the codec's own."""
    words = [spec.kind, spec.variant or (spec.weights or "").rstrip("/").rsplit("/", 1)[-1]]
    if spec.strides:
        words.append("/" + "-".join(map(str, spec.strides)))
    return " ".join(word for word in words if word)
