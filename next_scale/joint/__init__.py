"""One decoder for text and token pyramids of any number of kinds, in one sequence."""
