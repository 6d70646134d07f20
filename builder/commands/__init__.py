"""Verbs of the command line, one module a group; `builder/cli.py` holds those about training."""
