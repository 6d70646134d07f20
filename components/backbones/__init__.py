"""Encoders of observations, one a file, named like the `type` of a recipe."""
