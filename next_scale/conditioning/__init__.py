"""Prompts as a condition: words that are drawn, spelt in bytes, or embedded by a frozen language model.

Whatever the kind, :class:`next_scale.condition.Conditioner` takes it beside class labels and vectors, and predictors
see prefix tokens before the first token of the pyramid.
"""

from next_scale.conditioning.prompts import PROMPT, clean_prompt, decode_prompts, encode_prompt
from next_scale.conditioning.words import Words, build_words, words_kinds

__all__ = ["PROMPT", "Words", "build_words", "clean_prompt", "decode_prompts", "encode_prompt", "words_kinds"]
