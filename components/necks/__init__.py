"""Necks, between backbones and head: one per file, named like its `type` in a recipe."""
