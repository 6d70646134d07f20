"""Behavior of a composed policy with batches and observations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModel, Trainer, TrainingArguments

from policysmith.builder import Builder, RecipePolicy
from policysmith.components.heads.mlp import MlpHead
from policysmith.schemas.errors import SpecError

Batches = Callable[..., dict[str, Any]]
DIT = {"type": "dit", "width": 16, "depth": 1, "heads": 2}
FLOW = {"type": "flow_matching", "network": DIT, "steps": 3}


def build(recipe: dict[str, Any], **changes: Any) -> RecipePolicy:
    policy = Builder.from_recipe(recipe).override(changes).build()
    assert isinstance(policy, RecipePolicy)
    return policy


def test_evaluation_predicts_in_the_units_of_the_robot(tiny: dict[str, Any], batch: Batches) -> None:
    policy = build(tiny)
    with torch.no_grad():
        for parameter in policy.head.parameters():
            parameter.zero_()  # predicts the normalised 0 everywhere, which is the mean of the data
    output = policy(batch())
    mean = torch.tensor(policy.config.statistics["action"]["mean"])
    torch.testing.assert_close(output["prediction"], mean.expand(2, 4, 4))
    assert output["loss"].ndim == 0
    assert torch.equal(output["prediction"], policy.inference(batch()))


def test_training_does_not_sample(
    tiny: dict[str, Any], batch: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = build(tiny, **{"policy.head": FLOW})

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(policy.head, "sample", refuse)
    assert set(policy.train()(batch())) == {"loss"}
    with pytest.raises(AssertionError, match="sampled"):
        policy.eval()(batch())


def test_without_actions_there_is_a_prediction_and_no_loss(tiny: dict[str, Any], batch: Batches) -> None:
    seen = {key: value for key, value in batch().items() if not key.startswith("action")}
    assert set(build(tiny)(seen)) == {"prediction"}


def test_inference_does_not_look_at_actions_nor_change_mode_or_batch(
    tiny: dict[str, Any], batch: Batches
) -> None:
    policy = build(tiny).train()
    given = batch()
    kept = {
        key: value.clone() if isinstance(value, torch.Tensor) else list(value) for key, value in given.items()
    }
    expected = policy.inference(given)
    assert policy.training
    assert all(
        torch.equal(value, kept[key]) if isinstance(value, torch.Tensor) else value == kept[key]
        for key, value in given.items()
    )
    given["action"] = given["action"] + torch.nan
    assert torch.equal(policy.inference(given), expected)


def test_a_generator_decides_what_flow_matching_samples(tiny: dict[str, Any], batch: Batches) -> None:
    policy = build(tiny, **{"policy.head": FLOW})

    def act(seed: int) -> torch.Tensor:
        return policy.inference(batch(), generator=torch.Generator().manual_seed(seed))

    assert torch.equal(act(1), act(1))
    assert not torch.equal(act(1), act(2))


def test_select_action_runs_part_of_each_chunk(
    tiny: dict[str, Any], observation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = build(tiny)
    looks = []
    original = policy.inference

    def watch(batch: Any, generator: Any = None) -> torch.Tensor:
        looks.append(batch)
        return original(batch, generator)

    monkeypatch.setattr(policy, "inference", watch)
    actions = [policy.select_action(observation) for _ in range(5)]
    assert len(looks) == 3  # `execute: 2`
    assert torch.equal(actions[0], actions[2])
    assert not torch.equal(actions[0], actions[1])
    assert actions[0].shape == (4,)
    policy.reset()
    policy.select_action(observation)
    assert len(looks) == 4
    with pytest.raises(RuntimeError, match=r"call `policy.eval\(\)`"):
        policy.train().select_action(observation)


def test_actions_of_the_past_are_predicted_but_not_run(
    tiny: dict[str, Any], observation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder.from_recipe(tiny).override({"data.past_actions": 1, "policy.execute": 2})
    training, _ = builder.datasets()
    horizon = builder.recipe.sections.data.horizon
    assert torch.equal(training[1]["action"][1:], training[2]["action"][:-1])
    assert training[0]["action_is_pad"].tolist() == [True] + [False] * (horizon - 1)
    policy = builder.build()
    chunk = torch.arange(horizon)[None, :, None].expand(1, -1, 4).float()
    monkeypatch.setattr(policy, "inference", lambda batch, generator=None: chunk)
    acted = [policy.select_action(observation)[0].item() for _ in range(3)]
    assert acted == [1.0, 2.0, 1.0]


def test_a_history_starts_with_its_first_frame(tiny: dict[str, Any], observation: dict[str, Any]) -> None:
    policy = build(tiny, **{"data.observation_steps": 3, "policy.execute": 1})
    seen: list[torch.Tensor] = []
    policy.backbones["proprio"].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0]["observation.state"][0, :, 0])
    )
    rows = torch.arange(4.0)[:, None].expand(4, 4)
    for row in rows:
        policy.select_action({**observation, "observation.state": row})
    low = torch.stack(seen)
    steps = (low - low[0, 0]) / (low[1, 2] - low[0, 0])
    expected = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]])
    torch.testing.assert_close(steps, expected)


def test_frozen_parts_do_not_change(tiny: dict[str, Any], batch: Batches) -> None:
    vision = {"type": "timm", "name": "test_efficientnet"}
    patterns = ["backbones.vision.*", "head.layers.0.bias"]
    builder = Builder.from_recipe(tiny).override(
        {"policy.backbones.vision": vision, "policy.freeze": patterns}
    )
    policy = builder.build().train()
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        policy(batch())["loss"].backward()
        optimizer.step()
    stayed = {key for key, value in policy.state_dict().items() if torch.equal(value, before[key])}
    assert stayed == {key for key in before if key.startswith("backbones.vision.") or key == patterns[1]}
    assert any(key.endswith("running_mean") for key in stayed)
    assert policy.backbones["vision"].model.conv_stem.weight.grad is None
    parameters = sum(p.numel() for p in policy.backbones["vision"].parameters())
    assert builder.summary is not None
    assert builder.summary.frozen == {patterns[0]: parameters, patterns[1]: 16}
    assert builder.summary.trainable == sum(p.numel() for p in policy.parameters() if p.requires_grad)


def test_freezing_survives_a_reload(tiny: dict[str, Any], tmp_path: Path) -> None:
    build(tiny, **{"policy.freeze": ["backbones.vision.*"]}).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).train()
    assert not any(p.requires_grad for p in loaded.backbones["vision"].parameters())
    assert not loaded.backbones["vision"].training
    assert loaded.head.training


def test_a_stock_trainer_trains_the_policy(tiny: dict[str, Any], tmp_path: Path, batch: Batches) -> None:
    builder = Builder.from_recipe(tiny).override({"data.episodes": [0], "policy.head.loss": "l2"})
    policy = builder.build()
    training, _ = builder.datasets()
    samples = torch.utils.data.Subset(training, range(16))

    def loss() -> float:
        (whole,) = DataLoader(samples, batch_size=16, collate_fn=builder.collate(policy))
        with torch.no_grad():
            return float(policy.eval()(whole)["loss"])

    before = loss()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=30, per_device_train_batch_size=8, learning_rate=1e-2,
        remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(policy, arguments, train_dataset=samples, data_collator=builder.collate(policy))
    trainer.train()
    assert loss() < 0.7 * before
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.inference(batch()), policy.inference(batch()))
    assert isinstance(policy.head, MlpHead)


def test_transforms_are_exact_under_autocast(tiny: dict[str, Any], batch: Batches) -> None:
    """The trainer's default precision rounds products of matrices to bf16; targets must stay as they are measured."""
    turned = {
        "type": "rotation",
        "key": "action",
        "start": 0,
        "source": "axis_angle",
        "target": "rotation_6d",
    }
    tiny["transforms"].insert(0, turned)
    policy = Builder.from_recipe(tiny).build()
    exact = policy.transform(batch())["action"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(policy.transform(batch())["action"], exact)


def test_a_config_holds_its_content_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Also after a checkpoint that held it twice."""
    Builder.from_recipe(tiny).build().save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "config.json"
    held = json.loads(path.read_text())
    assert path.read_text().count('"statistics"') == 1
    path.write_text(json.dumps({**held, "content": {"statistics": held["statistics"]}}))
    (tmp_path / "policy" / "manifest.json").unlink()  # which version 0.1 did not write
    AutoModel.from_pretrained(tmp_path / "policy").save_pretrained(tmp_path / "again")
    assert "content" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_layers_are_computed_again_where_a_trainer_asks(tiny: dict[str, Any], batch: Batches) -> None:
    policy = Builder.from_recipe(tiny).build().train()

    def gradient() -> torch.Tensor:
        policy.zero_grad()
        torch.manual_seed(0)
        policy(batch())["loss"].backward()
        return torch.cat(
            [p.grad.flatten() for p in policy.backbones["vision"].parameters() if p.grad is not None]
        )

    plain = gradient()
    policy.gradient_checkpointing_enable()
    torch.testing.assert_close(gradient(), plain)
    del policy.backbones["vision"]
    with pytest.raises(SpecError, match="leave `gradient_checkpointing` out"):
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
