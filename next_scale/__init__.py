"""Coarse-to-fine prediction of token pyramids: schedules, quantizers, predictors, in one or two dimensions."""
