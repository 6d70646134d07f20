"""Policies of other libraries: their weights as ours, and back."""
