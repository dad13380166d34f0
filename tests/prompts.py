"""Tiny models with random weights that read words, for tests of prompts in every program."""

from __future__ import annotations

import torch

from next_scale.model import Generator
from next_scale.predictors import NextScale
from next_scale.sampling import SamplingOptions
from next_scale.tokenizer import Tokenizer

RENDERED = {"kind": "rendered", "lines": 4, "height": 8, "columns": 48, "patch": 16}
BYTES = {"kind": "bytes", "length": 40}

BAD = {  # prompt -> what the message must say
    "": "the prompt is empty",
    " \n ": "the prompt is empty",
    "x" * 10_000: "the prompt has 10,000 characters, and 256 fit: shorten it",
    "\x1b[31mred\x1b[0m": r"the prompt has a control character, \x1b: leave it out",
    "bell\x07": r"control character, \x07",
    "half \udc80": r"control character, \udc80",
}
ODD = ("soft\nlow\tflute", "שלום", "مرحبا", "😀😂", "e\u0301\u0302\u0303x", "\u202eevil\u202c", "Ünïcode½")  # all drawn


def with_words(tokenizer: Tokenizer, words: dict, spec: dict | None = None) -> Generator:
    """A generator on a tokenizer whose transformer's gates and head are open, as after training."""
    quantizer = tokenizer.quantizer
    torch.manual_seed(5)
    predictor = NextScale.for_quantizer(quantizer, spec or {}, width=32, depth=2, heads=2, words=words)
    with torch.no_grad():
        for name, parameter in predictor.named_parameters():
            if "modulation" in name or "head" in name:
                parameter.normal_(std=0.3)
    return Generator(tokenizer, predictor, SamplingOptions(cfg=1.0, top_k=8)).eval()
