"""Diffusion Policy against LeRobot's: the same weights, the same numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.builder.interop.lerobot import rgb_encoder
from policysmith.builder.interop.lerobot.policies.diffusion import is_of, to_lerobot, to_policysmith
from policysmith.builder.policy.recipe_policy import RecipePolicy
from policysmith.components.denoising.noise_schedules import signal_shares
from policysmith.components.features import masked_mean
from policysmith.components.heads import diffusion
from policysmith.schemas.errors import WeightsError
from policysmith.schemas.specs import Kind, Spec

from .golden import Golden, digest, load
from .policies import build

CASES = ("diffusion", "diffusion_shared_encoder", "diffusion_sample")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
GRADIENTS = {"atol": 1e-3, "rtol": 1e-3}  # sums over many values, in an order that the processor decides
KINDS = {"observation.state": "STATE", "observation.environment_state": "ENV"}


def config_of(golden: Golden) -> dict[str, Any]:
    """LeRobot's config.json of a golden."""
    features = {
        key: {"type": KINDS.get(key, "VISUAL"), "shape": list(value.shape[2:])}
        for key, value in golden.inputs.items()
        if key.startswith("observation")
    }
    features = {key: features[key] for key in (*KINDS, *golden.config["cameras"]) if key in features}
    action = {"action": {"type": "ACTION", "shape": [golden.inputs["action"].shape[-1]]}}
    defaults = {"vision_backbone": "resnet18", "resize_shape": None, "crop_shape": None}
    held = {key: value for key, value in golden.config.items() if key != "cameras"}
    return {"type": "diffusion", **defaults, **held, "input_features": features, "output_features": action}


def specs_of(golden: Golden) -> dict[str, Spec]:
    """Return a batch like a dataset's."""
    specs = {
        key: Spec(Kind.IMAGE if value.ndim == 5 else Kind.STATE, ("B", *value.shape[1:]))
        for key, value in golden.inputs.items()
        if key.startswith("observation")
    }
    return {**specs, "action": Spec(Kind.ACTION, ("B", *golden.inputs["action"].shape[1:]))}


@cache
def weights_of(name: str) -> dict[str, Tensor]:
    """LeRobot's state dict; the coordinates of maps are computed, so a golden does not hold them."""
    golden = load(name)
    weights = golden.weights()
    for key in [key for key in weights if key.endswith("pool.nets.bias")]:
        height, width = (2, 3)
        x, y = torch.meshgrid(torch.linspace(-1, 1, width), torch.linspace(-1, 1, height), indexing="xy")
        weights[key.replace("nets.bias", "pos_grid")] = torch.stack([x.flatten(), y.flatten()], dim=1)
    return weights


def loaded(name: str) -> RecipePolicy:
    golden = load(name)
    sections, weights = to_policysmith(weights_of(name), config_of(golden))
    policy = build(sections, specs_of(golden))
    policy.load_state_dict(weights)
    return policy.eval()


def noisy(policy: RecipePolicy, golden: Golden) -> Tensor:
    config = policy.head.config
    left = signal_shares(config.schedule, config.train_steps).float()[golden.draws["timestep"]][:, None, None]
    return left.sqrt() * golden.inputs["action"] + (1 - left).sqrt() * golden.draws["epsilon"]


@pytest.mark.parametrize("name", CASES)
def test_condition_and_prediction(name: str) -> None:
    policy, golden = loaded(name), load(name)
    context = policy.head.network.encode(policy.features(policy.transform(golden.inputs)))
    layer = policy.head.network.middle.first.film
    probe = torch.eye(layer.in_features)
    _, columns = to_lerobot(
        {**policy.state_dict(), "head.network.middle.first.film.weight": probe}, policy.content
    )
    order = columns["diffusion.unet.mid_modules.0.cond_encoder.1.weight"].argmax(0)
    width = golden.config["diffusion_step_embed_dim"]
    torch.testing.assert_close(
        context["condition"][:, order[width:] - width], golden.outputs["condition"], **CLOSE
    )
    torch.testing.assert_close(noisy(policy, golden), golden.outputs["noisy"], **CLOSE)
    prediction = policy.head.network(golden.outputs["noisy"], golden.draws["timestep"].float(), context)
    torch.testing.assert_close(prediction, golden.outputs["prediction"], **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_loss_of_a_batch_without_padding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, golden = loaded(name), load(name)
    draws = golden.draws["timestep"], golden.draws["epsilon"]
    monkeypatch.setattr(policy.head, "draw", lambda actions: draws)
    batch = {**golden.inputs, "action_is_pad": torch.zeros_like(golden.inputs["action_is_pad"])}
    torch.testing.assert_close(policy(batch)["loss"], golden.outputs["loss_unmasked"], **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    """LeRobot shows the network the padded actions, and leaves their errors out; we hide the actions too."""
    policy, golden = loaded(name), load(name)
    context = policy.head.network.encode(policy.features(policy.transform(golden.inputs)))
    actions, steps = golden.inputs["action"], golden.draws["timestep"]
    prediction = policy.head.network(noisy(policy, golden), steps.float(), context)
    target = golden.draws["epsilon"] if policy.head.config.predicts == "epsilon" else actions
    is_pad = golden.inputs["action_is_pad"][..., None].expand_as(actions)
    loss = masked_mean((prediction - target) ** 2, is_pad)
    torch.testing.assert_close(loss, golden.outputs["loss_masked"], **CLOSE)
    loss.backward()
    ours = {key: torch.zeros_like(value) for key, value in policy.state_dict().items()}
    ours |= {key: p.grad for key, p in policy.named_parameters() if p.grad is not None}
    _, gradients = to_lerobot(ours, policy.content)
    found = {key: digest(key, gradients[key]) for key in golden.gradients}
    torch.testing.assert_close(found, golden.gradients, **GRADIENTS)
    learned = {key for key in gradients if "running" not in key and not key.endswith(("tracked", "pos_grid"))}
    assert learned == golden.gradients.keys()


@pytest.mark.parametrize("name", CASES)
def test_samples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With LeRobot's schedule, whose float32 loses digits of 1 - a_t / a_(t-1); ours, in float64, agrees to 2e-5."""
    policy, golden = loaded(name), load(name)
    table = golden.outputs["alphas_cumprod"].double()
    torch.testing.assert_close(
        signal_shares(policy.head.config.schedule, len(table)), table, rtol=1e-5, atol=1e-8
    )
    monkeypatch.setattr(diffusion, "signal_shares", lambda *_: table)
    draws = iter([golden.draws["sampling_noise"], *golden.draws.get("step_noise", ())])
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(draws))
    seen: list[tuple[Tensor, float]] = []
    policy.head.network.register_forward_hook(
        lambda _module, inputs, _out: seen.append((inputs[0], inputs[1][0].item()))
    )
    observations = {key: value for key, value in golden.inputs.items() if key.startswith("observation")}
    trajectory = policy.inference(observations)
    assert [time for _, time in seen] == golden.outputs["timesteps"].tolist()
    torch.testing.assert_close(torch.stack([chunk for chunk, _ in seen]), golden.outputs["steps"], **CLOSE)
    torch.testing.assert_close(trajectory, golden.outputs["trajectory"], **CLOSE)
    run = trajectory[:, policy.present :][:, : policy.execute]
    torch.testing.assert_close(run, golden.outputs["sample"], **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str) -> None:
    policy, golden = loaded(name), load(name)
    exported, back = to_lerobot(policy.state_dict(), policy.content)
    weights, config = weights_of(name), config_of(golden)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    unused = {"crop_is_random"} if config["crop_shape"] is None else set()
    unused |= {"beta_start", "beta_end"} if config["beta_schedule"].startswith("squared") else set()
    compared = config.keys() & exported.keys() - unused
    assert {key: exported[key] for key in compared} == {key: config[key] for key in compared}
    assert is_of(policy.content["recipe"])


def test_weights_that_are_missing_or_too_many_are_named() -> None:
    golden, weights = load("diffusion_sample"), dict(weights_of("diffusion_sample"))
    del weights["diffusion.unet.final_conv.1.bias"]
    weights["diffusion.other"] = torch.zeros(1)
    message = r"missing: diffusion\.unet\.final_conv\.1\.bias; unexpected: diffusion\.other"
    with pytest.raises(WeightsError, match=message):
        to_policysmith(weights, config_of(golden))
    policy = loaded("diffusion_sample")
    ours = policy.state_dict()
    del ours["head.network.action_out.bias"]
    with pytest.raises(WeightsError, match=r"missing: head\.network\.action_out\.bias"):
        to_lerobot(ours, policy.content)


def test_coordinates_of_another_map_are_refused() -> None:
    golden, weights = load("diffusion"), dict(weights_of("diffusion"))
    weights["diffusion.rgb_encoder.0.pool.pos_grid"] = torch.zeros(6, 2)
    with pytest.raises(WeightsError, match="does not match a map of 2 x 3"):
        to_policysmith(weights, config_of(golden))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": {"predicts": "v"}}, "not v"),
        ({"head": {"schedule": {"type": "squaredcos_cap_v2", "max_beta": 0.9}}}, "to 0.999"),
        ({"head": {"reads": ["proprio", "keypoints_0"]}}, "the head reads proprio, keypoints_0; in LeRobot"),
        ({"backbones": {"other": {"type": "vit", "reads": None}}}, "no backbone like `other`"),
        ({"necks": {"keypoints_0": {"type": "attention_pool", "reads": ["vision_0"]}}}, "no neck like"),
    ],
)
def test_a_policy_that_lerobot_cannot_hold_is_refused(change: dict[str, Any], message: str) -> None:
    policy = loaded("diffusion")
    recipe = policy.content["recipe"]
    changed = {key: {**recipe["policy"][key], **value} for key, value in change.items()}
    content = {**policy.content, "recipe": {**recipe, "policy": {**recipe["policy"], **changed}}}
    with pytest.raises(WeightsError, match=message):
        to_lerobot(policy.state_dict(), content)


def test_chunks_that_begin_elsewhere_are_refused() -> None:
    policy = loaded("diffusion_sample")
    recipe = policy.content["recipe"]
    content = {**policy.content, "recipe": {**recipe, "data": {**recipe["data"], "past_actions": 0}}}
    with pytest.raises(WeightsError, match="with 1 past actions"):
        to_lerobot(policy.state_dict(), content)


def test_crops() -> None:
    config = {"resize_shape": [40, 60], "crop_shape": [33, 53], "crop_is_random": False}
    changes = rgb_encoder.transforms(config, (100, 100))
    assert changes == [
        {"type": "resize", "size": [40, 60]},
        {"type": "crop", "size": [33, 53], "corner": [4, 4]},
    ]
    whole = [{"keys": None, **change} for change in changes]
    assert rgb_encoder.shapes(whole, (100, 100)) == config
    assert rgb_encoder.grid(changes, (100, 100)) == (2, 2)
    with pytest.raises(WeightsError, match="one pixel off"):
        rgb_encoder.transforms({**config, "crop_is_random": True}, (100, 100))
    for bad, message in (
        ([*whole, whole[0]], "once"),
        ([{**whole[1], "corner": [0, 0]}], r"not at \[0, 0\]"),
        ([{**whole[1], "keys": ["observation.images.front"]}], "all images"),
    ):
        with pytest.raises(WeightsError, match=message):
            rgb_encoder.shapes(bad, (40, 60))
