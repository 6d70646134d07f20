"""Robots, and the loop that drives them."""

from .base import Robot

__all__ = ["Robot"]
