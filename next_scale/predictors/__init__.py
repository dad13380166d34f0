"""Predictors of token pyramids: one family a module, one interface (inputs, loss, log_prob, generate)."""

from next_scale.predictors.any_length import AnyLength
from next_scale.predictors.delay import Delay
from next_scale.predictors.flow import Flow
from next_scale.predictors.interface import Generated, LossOutput, Predictor
from next_scale.predictors.known import Evidence, Known
from next_scale.predictors.masked import Masked
from next_scale.predictors.next_scale import NextScale
from next_scale.predictors.next_token import NextToken
from next_scale.predictors.registry import predictor_class, predictor_names

FAMILIES = (NextScale, AnyLength, NextToken, Delay, Masked, Flow)
"""Those of this package, in the order in which they are listed."""

__all__ = [
    "FAMILIES",
    "AnyLength",
    "Delay",
    "Evidence",
    "Flow",
    "Generated",
    "Known",
    "LossOutput",
    "Masked",
    "NextScale",
    "NextToken",
    "Predictor",
    "predictor_class",
    "predictor_names",
]
