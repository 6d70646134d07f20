"""Transforms of a batch: one per file, named like its `type` in a recipe."""
