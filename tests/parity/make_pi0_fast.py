"""Golden of the network of pi0-FAST (Pertsch et al., 2025), from LeRobot; its tokenizer of actions is not part of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from golden import gradients, refill, save, uniform
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pi0_fast import modeling_pi0_fast as modeling
from lerobot.policies.pi0_fast.configuration_pi0_fast import PI0FastConfig
from make_pi0 import ACTION, BATCH, CAMERAS, IMAGE, LENGTH, PALIGEMMA, STATE, VISION, VOCABULARY, small
from torch import Tensor

CODES, STEPS = 6, 5
BEGIN, END = 2, 3
SIZES: dict[str, Any] = {"max_action_tokens": CODES, "dtype": "float32", "temperature": 0.0}


def make() -> None:
    config = PI0FastConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
            **{key: PolicyFeature(FeatureType.VISUAL, IMAGE) for key in CAMERAS},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        image_resolution=IMAGE[1:],
        device="cpu",
        **SIZES,
    )
    tokenizer = SimpleNamespace(bos_token_id=BEGIN, convert_tokens_to_ids=lambda _token: END)
    with small(modeling):
        model = modeling.PI0FastPytorch(config, paligemma_tokenizer=tokenizer).eval()
    weights = refill(model)
    made = dict.fromkeys(CAMERAS, (BATCH, *IMAGE))
    codes = 4 + torch.arange(BATCH * CODES).reshape(BATCH, CODES) * 11 % (VOCABULARY - 4)
    codes[:, 0] = BEGIN
    inputs = {
        **{key: uniform(f"input/{key}", shape) for key, shape in made.items()},
        "image_mask": torch.tensor([[True, True], [True, False], [True, True]]),
        "tokens": torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) * 7 % VOCABULARY,
        "token_mask": torch.arange(LENGTH) < torch.tensor([LENGTH, 4, 3])[:, None],
        "action_tokens": codes,
        "action_token_mask": torch.arange(CODES) < torch.tensor([CODES, 4, 5])[:, None],
    }
    prefix = (
        [inputs[key] for key in CAMERAS],
        list(inputs["image_mask"].T),
        inputs["tokens"],
        inputs["token_mask"],
    )
    logits: list[Tensor] = []
    model.paligemma_with_expert.paligemma.lm_head.register_forward_hook(
        lambda _module, _args, out: logits.append(out)
    )
    loss = model(*prefix, inputs["action_tokens"], inputs["action_token_mask"])["loss"]
    loss.backward()
    predicted = logits.pop()
    sample = model.sample_actions_fast_kv_cache(*prefix, max_decoding_steps=STEPS)
    torch.testing.assert_close(sample, model.sample_actions_fast(*prefix, max_decoding_steps=STEPS))
    save(
        "pi0_fast",
        config={**SIZES, "begin": BEGIN, "paligemma": PALIGEMMA, "vision": VISION, "image": list(IMAGE)},
        weights=weights,
        inputs=inputs,
        made_inputs=made,
        outputs={
            "loss": loss,
            "logits": predicted,
            "sample": sample,
            "sample_logits": torch.cat(logits[:STEPS], dim=1),
        },
        gradients=gradients(model),
        note="evaluation mode; logits (B, codes, vocabulary) of all positions, of which the last is not trained; "
        "sample (B, steps) is greedy, after the prompt and one begin token",
    )


if __name__ == "__main__":
    make()
