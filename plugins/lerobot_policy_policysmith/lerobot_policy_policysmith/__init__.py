"""policysmith recipes and policies as the LeRobot policy type `policysmith`."""

from .configuration_policysmith import PolicysmithConfig
from .modeling_policysmith import PolicysmithPolicy
from .processor_policysmith import make_policysmith_pre_post_processors

__all__ = ["PolicysmithConfig", "PolicysmithPolicy", "make_policysmith_pre_post_processors"]
