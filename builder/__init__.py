"""From a recipe to a robot. Importing this registers policysmith's policies with transformers."""

from .builder import Builder
from .policy import BasePolicyModel, DataCollatorRegistry, RecipeConfig, RecipePolicy, forget

__all__ = ["BasePolicyModel", "Builder", "DataCollatorRegistry", "RecipeConfig", "RecipePolicy", "forget"]
