"""Goldens of ACT (Zhao et al., 2023), from LeRobot."""

from __future__ import annotations

from typing import Any

import torch
from golden import gradients, recording, refill, save, uniform
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy, ACTTemporalEnsembler
from torch import Tensor

BATCH, HORIZON, ACTION, STATE, ENVIRONMENT = 3, 6, 4, 5, 7
IMAGE = (3, 64, 96)
CAMERAS = ("observation.images.front", "observation.images.wrist")
SIZES: dict[str, Any] = {
    "chunk_size": HORIZON,
    "n_action_steps": HORIZON,
    "dim_model": 32,
    "n_heads": 4,
    "dim_feedforward": 48,
    "latent_dim": 8,
    "dropout": 0.0,
    "use_vae": True,
    "kl_weight": 10.0,
    "pre_norm": False,
    "feedforward_activation": "relu",
}
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "act": ({"n_encoder_layers": 2, "n_decoder_layers": 1, "n_vae_encoder_layers": 2}, CAMERAS),
    "act_pre_norm": (
        {
            "n_encoder_layers": 1,
            "n_decoder_layers": 2,
            "use_vae": False,
            "pre_norm": True,
            "feedforward_activation": "gelu",
        },
        CAMERAS[:1],
    ),
    "act_states": ({"n_encoder_layers": 1, "n_decoder_layers": 1, "n_vae_encoder_layers": 1}, ()),
}


def make(name: str, options: dict[str, Any], cameras: tuple[str, ...]) -> None:
    visual = {key: PolicyFeature(FeatureType.VISUAL, IMAGE) for key in cameras}
    states = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))}
    if not cameras:
        states["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (ENVIRONMENT,))
    policy = ACTPolicy(
        ACTConfig(
            input_features={**states, **visual},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
            pretrained_backbone_weights=None,
            device="cpu",
            **SIZES | options,
        )
    )
    weights = refill(policy)
    made = dict.fromkeys(cameras, (BATCH, *IMAGE))
    observation = {
        "observation.state": uniform("state", (BATCH, STATE)),
        **{key: uniform(f"input/{key}", shape) for key, shape in made.items()},
    }
    if not cameras:
        observation["observation.environment_state"] = uniform("environment", (BATCH, ENVIRONMENT))
    batch = {
        **observation,
        "action": uniform("action", (BATCH, HORIZON, ACTION)),
        "action_is_pad": torch.arange(HORIZON) >= torch.tensor([HORIZON, 4, 1])[:, None],
    }

    outputs: dict[str, Tensor] = {}
    if cameras:
        outputs["feature_map"] = policy.model.backbone(batch[cameras[0]])["feature_map"]
    encoded: list[Tensor] = []
    policy.model.encoder.register_forward_hook(lambda _module, _args, out: encoded.append(out))
    policy.train()
    with recording("randn_like") as draws:
        loss, terms = policy.forward(batch)
    loss.backward()
    with recording("randn_like"):
        prediction, latent = policy.model(
            {**batch, **({"observation.images": [batch[key] for key in cameras]} if cameras else {})}
        )
    outputs |= {"loss": loss, "encoded": encoded[0].transpose(0, 1), "prediction": prediction}
    outputs |= {key: torch.tensor(value) for key, value in terms.items()}
    if latent[0] is not None:
        outputs |= {"mean": latent[0], "log_variance": latent[1]}
    outputs["sample"] = policy.predict_action_chunk(observation)
    save(
        name,
        config={**SIZES, **options, "cameras": list(cameras)},
        weights=weights,
        inputs=batch,
        made_inputs=made,
        draws={"epsilon": draws["randn_like.0"]} if draws else {},
        outputs=outputs,
        gradients=gradients(policy),
        note="loss, encoded and prediction are of training mode; sample of evaluation (latent zero)",
    )


def make_temporal_ensemble() -> None:
    chunks = uniform("chunks", (9, 2, 5, 3))
    ensembler = ACTTemporalEnsembler(0.01, chunk_size=5)
    actions = torch.stack([ensembler.update(chunk) for chunk in chunks])
    save(
        "act_temporal_ensemble",
        config={"coefficient": 0.01},
        weights={},
        inputs={"chunks": chunks},
        outputs={"actions": actions},
        note="chunks (steps, B, T, A), one predicted at each step; actions (steps, B, A), those executed",
    )


if __name__ == "__main__":
    for case, (options, cameras) in CASES.items():
        make(case, options, cameras)
    make_temporal_ensemble()
