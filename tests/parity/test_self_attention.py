"""The neck `self_attention` is what GR00T does to the tokens of its vision-language model."""

from __future__ import annotations

import torch

from policysmith.components.base import Feature
from policysmith.components.necks.self_attention import SelfAttention
from policysmith.schemas.specs import Kind, Spec

from .golden import load


def test_tokens_agree() -> None:
    golden = load("groot")
    weights, sizes = golden.weights(), golden.config["vl_self_attention_cfg"]
    inputs = {"model.tokens": Spec(Kind.TOKENS, ("B", *golden.inputs["tokens"].shape[1:]))}
    config = SelfAttention.Config(
        type="self_attention",
        reads=["model"],
        depth=sizes["num_layers"],
        heads=sizes["num_attention_heads"],
        activation="gelu_tanh",
        norm_in=True,
        norm_out=False,
    )
    SelfAttention.specs(config, inputs, {})
    part = SelfAttention(config, inputs, {})
    state = {}
    for kind in ("weight", "bias"):
        state[f"norm_in.{kind}"] = weights[f"vlln.{kind}"]
        for index in range(config.depth):
            theirs = {
                name: weights[f"vl_self_attention.transformer_blocks.{index}.{name}.{kind}"]
                for name in ("norm1", "norm3", *(f"attn1.to_{x}" for x in ("q", "k", "v", "out.0")))
            }
            theirs |= {
                name: weights[f"vl_self_attention.transformer_blocks.{index}.{name}.{kind}"]
                for name in ("ff.net.0.proj", "ff.net.2")
            }
            attention, ours = f"layers.{index}.branches.self", f"layers.{index}"
            state[f"{attention}.query.{kind}"] = theirs["attn1.to_q"]
            state[f"{attention}.key_value.{kind}"] = torch.cat([theirs["attn1.to_k"], theirs["attn1.to_v"]])
            state[f"{attention}.out.{kind}"] = theirs["attn1.to_out.0"]
            state[f"{ours}.branches.mlp.0.{kind}"] = theirs["ff.net.0.proj"]
            state[f"{ours}.branches.mlp.2.{kind}"] = theirs["ff.net.2"]
            state[f"{ours}.norms.self.{kind}"] = theirs["norm1"]
            state[f"{ours}.norms.mlp.{kind}"] = theirs["norm3"]
    part.load_state_dict(state)
    found = part({"model.tokens": Feature(golden.inputs["tokens"])}, ("tokens",))["tokens"].values
    torch.testing.assert_close(found, golden.outputs["context"], atol=1e-5, rtol=1e-5)
