"""Triton programs of the operators; importing a module here imports triton."""
