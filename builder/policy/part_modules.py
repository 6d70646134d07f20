"""The module of one part of a policy."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from ...components.base import Backbone, Facts
from ...components.layers.recomputation import recompute
from ...components.pretrained import lora
from ...schemas.specs import Specs
from ..wiring.parts import Site


def make_part(site: Site, inputs: Specs, facts: Facts) -> nn.Module:
    """Build a part as its recipe has it, a backbone with its adapters.

    Raise SpecError if it cannot have them.
    """
    module: nn.Module = cast(Any, site.part)(site.config, inputs, facts)
    if isinstance(module, Backbone):
        if module.config.lora is not None:
            lora.adapt(module, module.config.lora)
        if module.config.gradient_checkpointing:
            recompute(module)
    return module
