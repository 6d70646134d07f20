"""Golden of SmolVLA (Shukor et al., 2025), from LeRobot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from golden import gradients, recording, refill, save, uniform
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.policies.smolvla import smolvlm_with_expert
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from transformers import SmolVLMConfig

BATCH, HORIZON, ACTION, STATE, LENGTH, VOCABULARY = 3, 5, 4, 5, 6, 64
IMAGE = (3, 32, 32)
CAMERAS = ("observation.images.front", "observation.images.wrist")
SIZES: dict[str, Any] = {
    "chunk_size": HORIZON,
    "n_action_steps": HORIZON,
    "max_state_dim": 7,
    "max_action_dim": 6,
    "num_steps": 4,
    "num_vlm_layers": 4,
    "self_attn_every_n_layers": 2,
    "attention_mode": "cross_attn",
    "expert_width_multiplier": 0.75,
    "min_period": 4e-3,
    "max_period": 4.0,
    "freeze_vision_encoder": False,
    "train_expert_only": False,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE[1],
    "patch_size": 8,
}


def build() -> SmolVLAPolicy:
    """Build a SmolVLA with a generated instead of a downloaded language model."""
    vlm = SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config=VISION, scale_factor=2, image_token_id=1
    )
    processor = SimpleNamespace(tokenizer=SimpleNamespace(fake_image_token_id=2, global_image_token_id=3))
    config = SmolVLAConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
            **{key: PolicyFeature(FeatureType.VISUAL, IMAGE) for key in CAMERAS},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        load_vlm_weights=False,
        device="cpu",
        **SIZES,
    )
    with (
        mock.patch.object(smolvlm_with_expert.AutoConfig, "from_pretrained", return_value=vlm),
        mock.patch.object(smolvlm_with_expert.AutoProcessor, "from_pretrained", return_value=processor),
    ):
        return SmolVLAPolicy(config).eval()


def make() -> None:
    policy = build()
    weights = refill(policy)
    model = policy.model
    made = dict.fromkeys(CAMERAS, (BATCH, *IMAGE))
    inputs = {
        **{key: uniform(f"input/{key}", shape) for key, shape in made.items()},
        "image_mask": torch.tensor([[True, True], [True, False], [True, True]]),
        "tokens": torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) * 7 % VOCABULARY,
        "token_mask": torch.arange(LENGTH) < torch.tensor([LENGTH, 4, 3])[:, None],
        "observation.state": uniform("state", (BATCH, STATE)),
        "action": uniform("action", (BATCH, HORIZON, ACTION)),
        "action_is_pad": torch.arange(HORIZON) >= torch.tensor([HORIZON, 3, 1])[:, None],
    }
    prefix = (
        [inputs[key] for key in CAMERAS],
        list(inputs["image_mask"].T),
        inputs["tokens"],
        inputs["token_mask"],
        policy.prepare_state(inputs),
    )
    actions = policy.prepare_action(inputs)
    with recording("normal"):
        noise = model.sample_noise(actions.shape, "cpu")
        time = model.sample_time(BATCH, "cpu")

    velocities: list[torch.Tensor] = []
    model.action_out_proj.register_forward_hook(lambda _module, _args, out: velocities.append(out))
    errors = model(*prefix, actions, noise, time)
    valid = ~inputs["action_is_pad"]
    masked = errors[..., :ACTION][valid].mean()
    masked.backward()
    embeddings, mask, blocks = model.embed_prefix(*prefix)
    suffix, _, _ = model.embed_suffix(time[:, None, None] * noise + (1 - time)[:, None, None] * actions, time)
    outputs = {
        "loss": errors[..., :ACTION].mean(),
        "loss_masked": masked,
        "velocity": velocities.pop(),
        "prefix": embeddings,
        "prefix_mask": mask,
        "suffix": suffix,
    }
    with recording("normal", seed=1):
        start = model.sample_noise(actions.shape, "cpu")
    with torch.no_grad():
        outputs["sample"] = model.sample_actions(*prefix, noise=start)
        _, cache = model.vlm_with_expert(
            attention_mask=make_att_2d_masks(mask, blocks),
            position_ids=mask.cumsum(1) - 1,
            inputs_embeds=[embeddings, None],
            use_cache=True,
        )
    outputs["step_velocities"] = torch.stack(velocities)
    outputs["keys"] = torch.stack([layer.keys for layer in cache.layers])
    outputs["values"] = torch.stack([layer.values for layer in cache.layers])
    save(
        "smolvla",
        config={**SIZES, "text": TEXT, "vision": VISION, "scale_factor": 2, "image": list(IMAGE)},
        weights=weights,
        inputs=inputs,
        made_inputs=made,
        draws={"noise": noise, "time": time, "sampling_noise": start},
        outputs=outputs,
        gradients=gradients(policy),
        note="evaluation mode; gradients are of loss_masked; images as the vision tower gets them; "
        "keys and values (layers, B, heads, N, head_dim) of the prefix, keys after RoPE",
    )


if __name__ == "__main__":
    make()
