"""Goldens of VQ-BeT (Lee et al., 2024), from LeRobot."""

from __future__ import annotations

from typing import Any

import torch
from golden import gradients, recording, refill, save, uniform
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.vqbet.configuration_vqbet import VQBeTConfig
from lerobot.policies.vqbet.modeling_vqbet import VQBeTPolicy
from torch import Tensor

BATCH, STEPS, TOKENS, CHUNK, ACTION, STATE = 3, 2, 3, 3, 4, 5
LENGTH = STEPS + TOKENS + CHUNK - 2
IMAGE = (3, 64, 96)
CAMERA = "observation.images.front"
SIZES: dict[str, Any] = {
    "n_obs_steps": STEPS,
    "n_action_pred_token": TOKENS,
    "action_chunk_size": CHUNK,
    "vqvae_n_embed": 5,
    "vqvae_embedding_dim": 6,
    "vqvae_enc_hidden_dim": 10,
    "gpt_block_size": 16,
    "gpt_input_dim": 12,
    "gpt_output_dim": 14,
    "gpt_n_layer": 2,
    "gpt_n_head": 2,
    "gpt_hidden_dim": 16,
    "dropout": 0.0,
    "spatial_softmax_num_keypoints": 4,
    "use_group_norm": True,
    "crop_shape": None,
    "offset_loss_weight": 10000.0,
    "primary_code_loss_weight": 5.0,
    "secondary_code_loss_weight": 0.5,
    "bet_softmax_temperature": 0.1,
}


def build(**options: Any) -> tuple[VQBeTPolicy, dict[str, list[int]]]:
    policy = VQBeTPolicy(
        VQBeTConfig(
            input_features={
                "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
                CAMERA: PolicyFeature(FeatureType.VISUAL, IMAGE),
            },
            output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
            pretrained_backbone_weights=None,
            device="cpu",
            **SIZES | options,
        )
    )
    return policy.eval(), refill(policy)


def make(name: str, sequential: bool) -> None:
    policy, weights = build(sequentially_select=sequential)
    model = policy.vqbet
    model.action_head.vqvae_model.discretized.fill_(True)
    model.action_head.vqvae_model.vq_layer.freeze_codebook.fill_(True)
    made = {CAMERA: (BATCH, STEPS, *IMAGE)}
    inputs = {
        "observation.state": uniform("state", (BATCH, STEPS, STATE)),
        CAMERA: uniform(f"input/{CAMERA}", made[CAMERA]),
        "action": uniform("action", (BATCH, LENGTH, ACTION)),
    }
    batch = {**inputs, "observation.images": inputs[CAMERA].unsqueeze(2)}
    features: list[Tensor] = []
    model.action_head.register_forward_hook(lambda _module, args, _out: features.append(args[0]))
    with recording("multinomial"):
        predicted, terms = model(batch, rollout=False)
    terms["loss"].backward()
    targets = inputs["action"][:, model.select_target_actions_indices].flatten(0, 1)
    with torch.no_grad():
        _, codes = model.action_head.vqvae_model.get_code(targets)
    with recording("multinomial", seed=1) as sampling, torch.no_grad():
        sample = model(batch, rollout=True)
    save(
        name,
        config={**SIZES, "sequentially_select": sequential},
        weights=weights,
        inputs=inputs,
        made_inputs=made,
        draws={
            "codes": predicted["sampled_centers"],
            **{f"sampling.{key}": value for key, value in sampling.items()},
        },
        outputs={
            "loss": terms["loss"],
            "code_loss": torch.tensor(terms["classification_loss"]),
            "offset_loss": torch.tensor(terms["offset_loss"]),
            "features": features[0],
            "logits": predicted["cbet_logits"],
            "decoded": predicted["decoded_action"],
            "prediction": predicted["predicted_action"],
            "targets": targets,
            "target_codes": codes,
            "sample": sample,
        },
        gradients=gradients(policy),
        note="phase 2, evaluation mode; rows of logits, decoded and targets are (B * tokens), the token runs fastest",
    )


def make_vae() -> None:
    policy, weights = build()
    model = policy.vqbet.action_head.vqvae_model.train()
    codebooks = [layer._codebook for layer in model.vq_layer.layers]
    for codebook in codebooks:
        codebook.embed_avg.copy_(codebook.embed)
        codebook.cluster_size.fill_(1.0)
    chunks = uniform("chunks", (8, CHUNK, ACTION))
    loss, (error, commitment, codes, _) = model.vqvae_forward(chunks)
    loss.backward()
    save(
        "vqbet_vae",
        config=SIZES,
        weights={key: shape for key, shape in weights.items() if "vqvae_model" in key},
        inputs={"chunks": chunks},
        outputs={
            "loss": loss,
            "l1": error,
            "commitment": commitment,
            "codes": codes,
            "codebooks": torch.cat([codebook.embed for codebook in codebooks]),
            "counts": torch.cat([codebook.cluster_size for codebook in codebooks]),
            "sums": torch.cat([codebook.embed_avg for codebook in codebooks]),
        },
        gradients=gradients(policy),
        note="phase 1, one step of training; codebooks, counts and sums are those after the step, "
        "before it the sums are the codes and the counts one",
    )


if __name__ == "__main__":
    make("vqbet", sequential=False)
    make("vqbet_sequential", sequential=True)
    make_vae()
