"""Policies as transformers models.

Saved `policy_shim.py` files import `RecipeConfig` and `RecipePolicy` from here.
"""

from .base import BasePolicyModel
from .recipe_config import MODEL_TYPE, RecipeConfig
from .recipe_policy import RecipePolicy
from .registration.registry import DataCollatorRegistry, register_pair

register_pair(MODEL_TYPE, RecipeConfig, RecipePolicy)

__all__ = ["MODEL_TYPE", "BasePolicyModel", "DataCollatorRegistry", "RecipeConfig", "RecipePolicy"]
