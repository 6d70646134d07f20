"""Sweeps: many runs of a recipe over ranges of its values."""
