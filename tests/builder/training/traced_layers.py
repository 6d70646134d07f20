"""Layers of several authors, and a backend of torch.compile that rewrites them without compiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo import lookup_backend
from transformers import ViTConfig, ViTModel

from policysmith.builder.training.speed.fx import passes
from policysmith.components.networks.groot_dit import GrootBlock as Block

WIDTH, TOKENS = 32, 7


class Traced:
    """A backend that rewrites and runs without compiling, and keeps the number of operators and the code of the graphs."""

    def __init__(self, then: str = "aot_eager") -> None:
        self.found, self.code, self._then = 0, "", then

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.found += passes.rewrite(graph)
        self.code += "".join(module.code for module in graph.modules() if isinstance(module, fx.GraphModule))
        return lookup_backend(self._then)(graph, inputs)


def vit_layer() -> nn.Module:
    config = ViTConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    model = ViTModel(config, add_pooling_layer=False)
    return next(child for child in model.modules() if isinstance(child, nn.ModuleList))[0]


def timm_layer() -> nn.Module:
    layers = pytest.importorskip("timm.layers")
    blocks = pytest.importorskip("timm.models.vision_transformer")
    assert layers.use_fused_attn()
    block: nn.Module = blocks.Block(WIDTH, num_heads=2, qkv_bias=True)
    return block


class GrootBlock(nn.Module):
    """A layer of GR00T's network, with its own context."""

    def __init__(self) -> None:
        super().__init__()
        config = type("Config", (), {"width": WIDTH, "heads": 2, "dropout": 0.0})
        self.block = Block(config, WIDTH)
        nn.init.normal_(self.block.modulation.weight, std=0.1)
        self.context = nn.Parameter(torch.randn(2, 9, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        mask = torch.arange(9, device=tokens.device).expand(2, 9) < 6
        out: Tensor = self.block(tokens, tokens[:, 0], self.context, mask)
        return out


LAYERS = {"transformers": vit_layer, "timm": timm_layer, "groot": GrootBlock}
