from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import nn

from ...schemas.errors import SpecError
from ...schemas.part import Count, Depth, NeckConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Facts, Feature, Neck
from ..features import select
from ..layers.blocks.token_writer import WriterLayer, run_bidirectional
from ..layers.rotary import BASE
from ..layers.sequences import ConcatTokens, Positions, concatenated_spec, fixed_length, learned_positions


class Prefix(Neck):
    """Transformer over observations whose keys and values an expert attends to, in place of a language model.

    An expert attends to it layer by layer, as to the vision-language model of pi0 (Black et al., 2024), so a
    mixture of transformers can build on any encoders. It reads all tokens as one sequence, in which all
    tokens see each other, at rotary positions. Publishes `key_values` (B, L, 2, G, N, E), and `tokens`
    (B, N, D) of the last layer, with their mask.
    """

    joint = True

    class Config(NeckConfig):
        type: Literal["prefix"]
        width: Count
        """Width to which a separate linear layer projects each feature."""
        depth: Depth = 2
        """Number of layers."""
        heads: Count = 4
        """Number of attention heads, which share the width."""
        positions: Positions = "learned"
        """Additional learned positions, for a fixed number of tokens."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        features = select(config.reads, inputs, self.roles["reads"], "reads")
        spec = concatenated_spec(features, config.width)
        self.joined = ConcatTokens(features, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.positions = learned_positions(spec) if config.positions == "learned" else None
        self.layers = nn.ModuleList(WriterLayer(config.width, config.heads) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(config.width)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError if heads do not fit or N is not fixed."""
        spec = concatenated_spec(select(config.reads, inputs, cls.roles["reads"], "reads"), config.width)
        if config.width % (2 * config.heads):
            raise SpecError(
                f"{config.heads} heads cannot share a width of {config.width} in even parts",
                field="heads",
                label=f"{config.width} / {config.heads} is not even",
                help="choose a `width` that is a multiple of twice the `heads`",
            )
        if config.positions == "learned":
            fixed_length(spec)
        size = config.width // config.heads
        dims = ("B", config.depth, 2, config.heads, spec.dims[1], size)
        why = f"depth {config.depth}, {config.heads} x {size} keys of {spec.why}"
        return {"key_values": Spec(Kind.KEY_VALUES, dims, why, rope=BASE), "tokens": spec}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="prefix", reads=["vision.tokens", "state.pooled"], width=8, heads=2)

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `key_values` (B, L, 2, G, N, E) and `tokens` (B, N, D)."""
        tokens, mask = self.joined(features)
        tokens = self.norm_in(tokens)
        if self.positions is not None:
            tokens = tokens + self.positions
        tokens, key_values = run_bidirectional(self.layers, tokens, mask)
        made = {"key_values": key_values, "tokens": Feature(self.norm_out(tokens), mask)}
        return {name: made[name] for name in made if name in outputs}
