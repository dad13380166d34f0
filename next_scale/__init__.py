"""Coarse-to-fine prediction of token pyramids: schedules, multi-scale quantizers, predictors, in any number of dimensions."""
