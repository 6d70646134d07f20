"""Transforms of a batch, one a file, named like the `type` of a recipe."""
