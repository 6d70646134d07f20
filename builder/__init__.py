"""From a recipe to a robot. Importing this registers policysmith's policies with transformers."""

import logging

# torchao, which transformers imports where it is installed, makes torch warn of how it registers its own classes
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

from .builder import Builder
from .policy import BasePolicyModel, DataCollatorRegistry, RecipeConfig, RecipePolicy

__all__ = ["BasePolicyModel", "Builder", "DataCollatorRegistry", "RecipeConfig", "RecipePolicy"]
