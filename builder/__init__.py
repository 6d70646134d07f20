"""From a recipe to a robot. Importing this registers policysmith's policies with transformers."""

from .builder import Builder
from .policy import BasePolicyModel, DataCollatorRegistry, RecipeConfig, RecipePolicy

__all__ = ["BasePolicyModel", "Builder", "DataCollatorRegistry", "RecipeConfig", "RecipePolicy"]
