"""The comparison: one protocol for every modality and family of predictors, which are found by name, not imported."""
