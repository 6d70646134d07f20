"""Statistics after transforms that change values: those of what really arrives, saved, and never stale."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

from policysmith.builder import Builder
from policysmith.builder.planning.checks.compatibility import needs_of
from policysmith.builder.policy import BasePolicyModel
from policysmith.builder.policy.sample_pipeline import KEY, SamplePipeline
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.schemas.errors import SpecError

STATE = "observation.state"
RELATIVE = {"type": "relative_actions", "absolute": [-1]}
WIDE = {"type": "rotation", "key": "action", "start": 0, "source": "axis_angle", "target": "rotation_6d"}
Make = Callable[..., Builder]


@pytest.fixture
def make(tiny: dict[str, Any]) -> Make:
    """`make(*transforms)`: the tiny recipe without its camera, with these transforms."""

    def run(*transforms: dict[str, Any], **data: Any) -> Builder:
        del tiny["policy"]["backbones"]["vision"]
        tiny["transforms"] = list(transforms)
        tiny["data"] |= data
        return Builder.from_recipe(tiny)

    return run


def raw(builder: Builder) -> dict[str, torch.Tensor]:
    """All training samples."""
    dataset, _ = builder.datasets()
    samples = [dataset[index] for index in range(len(dataset))]  # type: ignore[arg-type]
    keys = (STATE, "action", "action_is_pad")
    return {key: torch.stack([sample[key] for sample in samples]) for key in keys}


def measured(policy: BasePolicyModel, position: int) -> dict[str, Any]:
    found: dict[str, Any] = policy.content["facts"].get(f"transforms.{position}", {}).get("measured", {})
    return found


def check(held: dict[str, list[float]], values: torch.Tensor) -> None:
    """Statistics against numpy, in double precision."""
    rows = values.double().numpy()
    expected = {
        "mean": rows.mean(0), "std": rows.std(0), "min": rows.min(0), "max": rows.max(0),
        "q01": np.quantile(rows, 0.01, axis=0), "q99": np.quantile(rows, 0.99, axis=0), "count": [len(rows)],
    }  # fmt: skip
    assert held.keys() == expected.keys()
    for name, numbers in expected.items():
        np.testing.assert_allclose(held[name], numbers, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("observation_steps", [1, 2])
def test_relative_actions_are_normalized_by_their_own_statistics(make: Make, observation_steps: int) -> None:
    builder = make(RELATIVE, {"type": "normalize"}, observation_steps=observation_steps)
    policy, batch = builder.build(), raw(builder)
    kept = torch.tensor([1.0, 1.0, 1.0, 0.0])
    relative = batch["action"] - batch[STATE][:, -1:] * kept
    assert measured(policy, 1).keys() == {"action"}  # the state is as it was
    check(measured(policy, 1)["action"], relative[~batch["action_is_pad"]])
    normal = policy.transform(batch)["action"][~batch["action_is_pad"]]
    torch.testing.assert_close(normal.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    expected = torch.tensor([1.0, 1.0, 1.0, 0.0])  # the gripper is constant in these demonstrations
    torch.testing.assert_close(normal.std(0), expected, atol=1e-3, rtol=0)


def test_each_normalisation_sees_what_reaches_it(make: Make) -> None:
    bounded = {"type": "normalize", "keys": ["action"], "mode": "identity",
               "dims": [{"key": "action", "dims": [0], "mode": "min_max"}]}  # fmt: skip
    sines, noise = {"type": "sin_cos", "dims": [0]}, {"type": "state_noise", "std": 0.1}
    builder = make(sines, {"type": "normalize", "keys": [STATE]}, WIDE, noise, bounded)
    policy, batch = builder.build(), raw(builder)
    assert measured(policy, 1).keys() == {STATE}
    assert measured(policy, 4).keys() == {"action"}
    state = batch[STATE][:, -1]
    check(measured(policy, 1)[STATE], torch.cat([state[:, 1:], state[:, :1].sin(), state[:, :1].cos()], -1))
    values = policy.transforms[2](batch)["action"]
    check(measured(policy, 4)["action"], values[~batch["action_is_pad"]])
    changed = policy.transform(batch)
    first = changed["action"][~batch["action_is_pad"]][:, 0]
    torch.testing.assert_close(torch.stack([first.min(), first.max()]), torch.tensor([-1.0, 1.0]))
    for transform in reversed(policy.transforms):
        changed = transform.inverse(changed)
    torch.testing.assert_close(changed["action"][..., :3], batch["action"][..., :3], atol=1e-5, rtol=0)
    torch.testing.assert_close(changed[STATE], batch[STATE], atol=1e-5, rtol=0)


def test_what_changes_no_value_costs_no_pass(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "policysmith.builder.planning.statistics.RunningStatistics.__init__",
        lambda self: pytest.fail("measured"),
    )
    noise, shift = {"type": "state_noise", "std": 0.1}, {"type": "random_shift"}
    policy = make(shift, noise, {"type": "normalize"}).build()
    assert policy.content["facts"] == {}


def test_only_training_episodes_are_measured(make: Make) -> None:
    builder = make(RELATIVE, {"type": "normalize"}, validation=0.5)
    held = measured(builder.build(), 1)["action"]
    assert held["count"] == [float((~raw(builder)["action_is_pad"]).sum())]


def test_a_checkpoint_knows_them(make: Make, tmp_path: Path) -> None:
    builder = make(RELATIVE, WIDE, {"type": "normalize"}, {"type": "pad_dims", "sizes": {"action": 12}})
    policy, batch = builder.build(), raw(builder)
    policy.save_pretrained(tmp_path / "policy")
    loaded = type(policy).from_pretrained(tmp_path / "policy").eval()
    assert measured(loaded, 2) == measured(policy, 2)
    assert torch.equal(loaded.inference(batch), policy.inference(batch))
    assert policy.inference(batch).shape[1:] == (4, 4)
    inputs = policy.transform(batch)
    assert inputs["action"].shape[-1] == 12
    assert inputs["action_dim_is_pad"][0].tolist() == [False] * 7 + [True] * 5


def test_the_actions_that_come_out_are_the_robots(make: Make) -> None:
    """With a head that answers the right normalised chunk, inference gives the demonstration."""
    steps = [
        RELATIVE,
        WIDE,
        {"type": "normalize", "mode": "quantiles"},
        {"type": "pad_dims", "sizes": {"action": 9}},
    ]
    builder = make(*steps)
    policy, batch = builder.build(), raw(builder)
    answer = policy.transform(batch)["action"]
    policy.head.sample = lambda features, generator=None: answer
    torch.testing.assert_close(policy.inference(batch), batch["action"], atol=1e-5, rtol=0)


def test_samples_of_a_policy_written_by_hand_go_the_same_way(make: Make) -> None:
    class Config(PretrainedConfig):  # type: ignore[misc]
        def transform(self) -> tuple[None, list[int], list[int]]:
            return None, [0], list(range(4))

    builder = make(RELATIVE, WIDE, {"type": "normalize"})
    policy, dataset = builder.build(), builder.datasets()[0]
    config = Config()
    setattr(config, KEY, policy.content)
    pipeline = SamplePipeline(config)
    samples = [pipeline(dataset[index]) for index in range(5)]
    actions = torch.stack([sample["action"] for sample in samples])
    given = torch.stack([dataset[index]["action"] for index in range(5)])
    assert actions.shape[-1] == pipeline.transformed["action"].width == 7
    torch.testing.assert_close(actions, policy.transform(raw(builder))["action"][:5])
    torch.testing.assert_close(pipeline.inverse(actions, samples), given, atol=1e-5, rtol=0)
    without = [{k: v for k, v in sample.items() if not k.startswith("action_")} for sample in samples]
    with pytest.raises(SpecError, match="cannot be undone"):
        pipeline.inverse(actions, without)


def test_a_state_that_only_a_transform_needs_is_asked_of_the_robot(
    tiny: dict[str, Any], observation: dict[str, Any], tmp_path: Path
) -> None:
    del tiny["policy"]["backbones"]["proprio"]
    plain = Builder.from_recipe(tiny).build()
    assert plain.observed.required.keys() == {"observation.images.corner2"}
    tiny["transforms"] = [RELATIVE, *tiny["transforms"]]
    policy = Builder.from_recipe(tiny).build()
    assert policy.observed.required.keys() == {"observation.images.corner2", STATE}
    with pytest.raises(SpecError, match=f"lacks `{STATE}`"):
        policy.select_action({k: v for k, v in observation.items() if k != STATE})
    policy.reset()
    assert policy.select_action(observation).shape == (4,)
    policy.save_pretrained(tmp_path / "policy")
    assert needs_of(SavedPolicy.find(tmp_path / "policy")).vectors == {STATE: 4}


@pytest.fixture
def own(make: Make, to_yaml: Any, tiny: dict[str, Any], tmp_path: Path) -> Make:
    """`own(**options)`: a recipe with a transform of the user's own before `normalize`."""
    shutil.copy(Path(__file__).with_name("own_transform.py"), tmp_path / "own_transform.py")

    def run(**options: Any) -> Builder:
        make({"type": "doubled", **options}, {"type": "normalize"})
        return Builder.from_recipe(to_yaml({**tiny, "imports": ["own_transform.py"]}), allow_imports=True)

    return run


def test_a_transform_that_says_nothing_is_measured_too(own: Make) -> None:
    builder = own()
    batch = raw(builder)
    check(measured(builder.build(), 1)["action"], 2 * batch["action"][~batch["action_is_pad"]])


def test_a_transform_that_fails_on_numbers_is_named(own: Make, refused: Any) -> None:
    (finding,) = refused(own(needs_images=True).check)
    assert "`doubled` fails on states and actions of the training episodes" in finding.message
    assert "KeyError" in finding.message
    assert "doubled" in finding.span.text


def test_what_does_not_fit_is_said_once(make: Make, refused: Any) -> None:
    (finding,) = refused(make({"type": "normalize"}, RELATIVE).check)
    assert "`observation.state` is normalized" in finding.message
    assert finding.related
