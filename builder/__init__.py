"""Building, training and evaluation of policies. Importing it registers their classes with transformers."""

import logging

# if torchao is installed, transformers imports it, and torch warns about its registration of classes
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

from .builder import Builder
from .policy import BasePolicyModel, DataCollatorRegistry, RecipeConfig, RecipePolicy

__all__ = ["BasePolicyModel", "Builder", "DataCollatorRegistry", "RecipeConfig", "RecipePolicy"]
