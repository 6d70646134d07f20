"""Policies as transformers models."""

from .base import BasePolicyModel
from .recipe_policy import MODEL_TYPE, RecipeConfig, RecipePolicy
from .registry import DataCollatorRegistry, register_pair

register_pair(MODEL_TYPE, RecipeConfig, RecipePolicy)

__all__ = ["MODEL_TYPE", "BasePolicyModel", "DataCollatorRegistry", "RecipeConfig", "RecipePolicy"]
