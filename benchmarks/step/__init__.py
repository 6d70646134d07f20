"""Timing of training steps: works, synthetic data, the trainers that are compared, and their processes."""
