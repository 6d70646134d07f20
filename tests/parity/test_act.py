"""ACT against LeRobot's: the same weights, the same numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.builder.interop.lerobot.policies import act
from policysmith.builder.policy.acting.ensemble import Ensemble
from policysmith.builder.policy.recipe_policy import RecipePolicy
from policysmith.components.layers.blocks.detr import map_positions, step_positions
from policysmith.schemas.errors import WeightsError
from policysmith.schemas.specs import Kind, Spec

from .golden import Golden, digest, load
from .policies import build

CASES = ("act", "act_pre_norm", "act_states")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
KINDS = {"observation.state": "STATE", "observation.environment_state": "ENV"}


def named(name: str) -> Golden:
    """Load a golden and its name."""
    golden = load(name)
    golden.facts["name"] = name
    return golden


def config_of(golden: Golden) -> dict[str, Any]:
    """LeRobot's config.json of a golden."""
    features = {
        key: {"type": KINDS.get(key, "VISUAL"), "shape": list(value.shape[1:])}
        for key, value in golden.inputs.items()
        if key.startswith("observation")
    }
    features = {key: features[key] for key in (*KINDS, *golden.config["cameras"]) if key in features}
    vision = {"vision_backbone": "resnet18"}
    return {"type": "act", **vision, "n_vae_encoder_layers": 4, **golden.config, "input_features": features}


def specs_of(golden: Golden) -> dict[str, Spec]:
    """Return a batch like a dataset's; observations have a time axis here."""
    specs = {
        key: Spec(Kind.IMAGE if value.ndim == 4 else Kind.STATE, ("B", 1, *value.shape[1:]))
        for key, value in golden.inputs.items()
        if key.startswith("observation")
    }
    return {**specs, "action": Spec(Kind.ACTION, ("B", *golden.inputs["action"].shape[1:]))}


@cache
def weights_named(name: str) -> dict[str, Tensor]:
    return load(name).weights()


def weights_of(golden: Golden) -> dict[str, Tensor]:
    """LeRobot's state dict; the table of positions is computed, so a golden does not hold it."""
    weights = dict(weights_named(golden.facts["name"]))
    if golden.config["use_vae"]:
        size = 2 + golden.config["chunk_size"]
        weights["model.vae_encoder_pos_enc"] = step_positions(size, golden.config["dim_model"])[None]
    return weights


def loaded(golden: Golden) -> RecipePolicy:
    sections, weights = act.to_policysmith(weights_of(golden), config_of(golden))
    policy = build(sections, specs_of(golden))
    policy.load_state_dict(weights)
    return policy


def batch_of(golden: Golden) -> dict[str, Tensor]:
    return {k: v[:, None] if k.startswith("observation") else v for k, v in golden.inputs.items()}


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return named(request.param)


def test_losses_and_gradients(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = loaded(golden).train()
    if golden.draws:
        monkeypatch.setattr(torch, "randn_like", lambda like: golden.draws["epsilon"])
    output = policy(batch_of(golden))
    expected = golden.outputs
    torch.testing.assert_close(output["loss"], expected["loss"], **CLOSE)
    if golden.config["use_vae"]:
        torch.testing.assert_close(output["l1"], expected["l1_loss"], **CLOSE)
        torch.testing.assert_close(output["kl"], expected["kld_loss"], **CLOSE)
    output["loss"].backward()
    ours = {name: torch.zeros_like(value) for name, value in policy.state_dict().items()}
    ours |= {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    _, gradients = act.to_lerobot(ours, policy.content)
    found = {name: digest(name, gradient) for name, gradient in gradients.items()}
    torch.testing.assert_close({name: found[name] for name in golden.gradients}, golden.gradients, **CLOSE)
    assert not any(value.any() for name, value in found.items() if name not in golden.gradients)


def test_encoded_tokens_and_actions(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = loaded(golden).train()
    monkeypatch.setattr(torch, "randn_like", lambda like: golden.draws["epsilon"])
    encoded: list[Tensor] = []
    policy.head.encoder.register_forward_hook(lambda _module, _args, out: encoded.append(out))
    policy(batch_of(golden))
    torch.testing.assert_close(encoded[0], golden.outputs["encoded"], **CLOSE)
    observations = {k: v for k, v in batch_of(golden).items() if k.startswith("observation")}
    torch.testing.assert_close(policy.eval().inference(observations), golden.outputs["sample"], **CLOSE)


def test_distribution_of_the_latent() -> None:
    golden = named("act")
    policy = loaded(golden)
    features = policy.features(batch_of(golden))
    mean, log_variance = policy.head.posterior(
        features, golden.inputs["action"], golden.inputs["action_is_pad"]
    )
    torch.testing.assert_close(mean, golden.outputs["mean"], **CLOSE)
    torch.testing.assert_close(log_variance, golden.outputs["log_variance"], **CLOSE)


def test_there_and_back(golden: Golden) -> None:
    weights, config = weights_of(golden), config_of(golden)
    policy = loaded(golden)
    exported, back = act.to_lerobot(policy.state_dict(), policy.content)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    known = {key: value for key, value in config.items() if key in exported and key != "n_vae_encoder_layers"}
    assert {key: exported[key] for key in known} == known


def test_weights_that_are_missing_or_too_many_are_named() -> None:
    golden = named("act_states")
    weights, config = weights_of(golden), config_of(golden)
    del weights["model.action_head.bias"]
    weights["model.other"] = torch.zeros(1)
    message = r"missing: model\.action_head\.bias; unexpected: model\.other"
    with pytest.raises(WeightsError, match=message):
        act.to_policysmith(weights, config)
    policy = loaded(golden)
    ours = policy.state_dict()
    del ours["head.out.bias"]
    with pytest.raises(WeightsError, match=r"missing: head\.out\.bias"):
        act.to_lerobot(ours, policy.content)


def test_a_policy_that_lerobot_cannot_hold_is_refused() -> None:
    policy = loaded(named("act"))
    changes: list[tuple[str, Any, str]] = [
        (
            "head",
            {"reads": ["vision.tokens", "proprio.tokens"]},
            "LeRobot's ACT reads proprio.pooled, vision.tokens",
        ),
        ("head", {"posterior_reads": []}, "is empty; in LeRobot it is the state"),
        ("backbones", {"other": {"type": "vit", "reads": None}}, "no backbone like `other`"),
        ("necks", {"pool": {}}, "no necks"),
    ]
    for section, change, message in changes:
        recipe = policy.content["recipe"]
        changed = {**recipe["policy"], section: {**recipe["policy"][section], **change}}
        content = {"recipe": {**recipe, "policy": changed}}
        with pytest.raises(WeightsError, match=message):
            act.to_lerobot(policy.state_dict(), content)


def test_positions_of_a_map_tell_rows_and_columns_apart() -> None:
    places = map_positions(2, 3, 8, torch.device("cpu"))
    assert places.shape == (6, 8)
    assert torch.equal(places[0, :4], places[2, :4])
    assert torch.equal(places[0, 4:], places[3, 4:])
    assert len(places.unique(dim=0)) == 6


def test_temporal_ensemble() -> None:
    golden = load("act_temporal_ensemble")
    for sample in range(2):
        ensemble = Ensemble()
        chunks, actions = golden.inputs["chunks"][:, sample], golden.outputs["actions"][:, sample]
        acted = [ensemble.add(chunk, golden.config["coefficient"]) for chunk in chunks]
        torch.testing.assert_close(torch.stack(acted), actions, **CLOSE)
