"""Predictors of token pyramids: one family a module, one interface (loss, log_prob, generate)."""

from next_scale.predictors.any_length import AnyLength
from next_scale.predictors.next_scale import Generated, LossOutput, NextScale

__all__ = ["AnyLength", "Generated", "LossOutput", "NextScale"]
