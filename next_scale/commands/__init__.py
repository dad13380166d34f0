"""The commands that every program of this project has, written once over a `Backend` that says what a sample is."""
