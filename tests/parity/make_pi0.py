"""Goldens of pi0 (Black et al., 2024) and pi0.5 (2025), from LeRobot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from golden import gradients, recording, refill, save, uniform
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from torch import Tensor

BATCH, HORIZON, ACTION, STATE, LENGTH, VOCABULARY, STEPS = 3, 5, 4, 5, 6, 64, 4
IMAGE = (3, 28, 28)
CAMERAS = ("observation.images.front", "observation.images.wrist")
SIZES: dict[str, Any] = {
    "chunk_size": HORIZON,
    "n_action_steps": HORIZON,
    "max_state_dim": 7,
    "max_action_dim": 6,
    "num_inference_steps": STEPS,
    "min_period": 4e-3,
    "max_period": 4.0,
    "dtype": "float32",
}
# The number of heads is fixed in the original's joint attention.
PALIGEMMA = {"width": 32, "depth": 3, "mlp_dim": 48, "num_heads": 8, "num_kv_heads": 1, "head_dim": 8}
EXPERT = {"width": 24, "depth": 3, "mlp_dim": 40, "num_heads": 8, "num_kv_heads": 1, "head_dim": 8}
VISION = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE[1],
    "patch_size": 14,
    "projection_dim": PALIGEMMA["width"],
}


@contextmanager
def small(modeling: ModuleType) -> Iterator[None]:
    """Make the sizes that are fixed in the source of the original small."""

    def shrunk(original: Callable[..., Any]) -> Callable[..., Any]:
        def build(config: Any) -> Any:
            if hasattr(config, "vision_config"):
                for key, value in VISION.items():
                    setattr(config.vision_config, key, value)
                config.text_config.vocab_size = VOCABULARY
                config.image_token_index = 0
            else:
                config.vocab_size = VOCABULARY
            return original(config=config)

        return build

    sizes = {"gemma_2b": PALIGEMMA, "gemma_300m": EXPERT}
    with ExitStack() as patches:
        for name in ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"):
            if hasattr(modeling, name):
                patches.enter_context(mock.patch.object(modeling, name, shrunk(getattr(modeling, name))))
        patches.enter_context(
            mock.patch.object(modeling, "get_gemma_config", lambda name: modeling.GemmaConfig(**sizes[name]))
        )
        yield


def make(name: str, modeling: ModuleType, policy_class: type[Any], config_class: type[Any]) -> None:
    config = config_class(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
            **{key: PolicyFeature(FeatureType.VISUAL, IMAGE) for key in CAMERAS},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        image_resolution=IMAGE[1:],
        device="cpu",
        **SIZES,
    )
    with small(modeling):
        policy = policy_class(config).eval()
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
    images = [inputs[key] for key in CAMERAS]
    prefix = (images, list(inputs["image_mask"].T), inputs["tokens"], inputs["token_mask"])
    state = () if name == "pi05" else (policy.prepare_state(inputs),)
    actions = policy.prepare_action(inputs)
    with recording("normal"):
        noise = model.sample_noise(actions.shape, "cpu")
        time = model.sample_time(BATCH, "cpu")

    seen: dict[str, list[Any]] = {"suffix": [], "velocity": [], "layers": []}
    embed_suffix = model.embed_suffix
    model.embed_suffix = lambda *args: seen["suffix"].append(embed_suffix(*args)) or seen["suffix"][-1]
    model.action_out_proj.register_forward_hook(lambda _module, _args, out: seen["velocity"].append(out))
    layer = modeling.compute_layer_complete

    def layer_seen(*args: Any, **kwargs: Any) -> list[Tensor]:
        seen["layers"].append(layer(*args, **kwargs))
        return list(seen["layers"][-1])

    with mock.patch.object(modeling, "compute_layer_complete", layer_seen):
        errors = model(*prefix, *state, actions, noise, time)
    valid = ~inputs["action_is_pad"]
    masked = errors[..., :ACTION][valid].mean()
    masked.backward()
    suffix, _, _, condition = seen["suffix"].pop()
    prefix_embeddings, prefix_mask, _ = model.embed_prefix(*prefix)
    outputs = {
        "loss": errors[..., :ACTION].mean(),
        "loss_masked": masked,
        "loss_all_dims": errors.mean(),
        "velocity": seen["velocity"].pop(),
        "prefix": prefix_embeddings,
        "prefix_mask": prefix_mask,
        "suffix": suffix,
        "prefix_layers": torch.stack([both[0] for both in seen["layers"]]),
        "suffix_layers": torch.stack([both[1] for both in seen["layers"]]),
        **({} if condition is None else {"condition": condition}),
    }
    with recording("normal", seed=1):
        start = model.sample_noise(actions.shape, "cpu")
    outputs["sample"] = model.sample_actions(*prefix, *state, noise=start)
    outputs["step_velocities"] = torch.stack(seen["velocity"])
    save(
        name,
        config={**SIZES, "paligemma": PALIGEMMA, "expert": EXPERT, "vision": VISION, "image": list(IMAGE)},
        weights=weights,
        inputs=inputs,
        made_inputs=made,
        draws={"noise": noise, "time": time, "sampling_noise": start},
        outputs=outputs,
        gradients=gradients(policy),
        note="evaluation mode; gradients are of loss_masked; images as the vision tower gets them",
    )


if __name__ == "__main__":
    make("pi0", modeling_pi0, modeling_pi0.PI0Policy, PI0Config)
    make("pi05", modeling_pi05, modeling_pi05.PI05Policy, PI05Config)
