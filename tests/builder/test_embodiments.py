"""Two robots of different widths in one policy, from the recipe to the action."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from policysmith.builder import Builder
from policysmith.builder.evaluation import evaluate
from policysmith.builder.evaluation.rollout import roll_out
from policysmith.builder.interop.lerobot.convert import export_policy
from policysmith.builder.planning.checks.compatibility import needs_of
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.schemas import console
from policysmith.schemas.errors import SpecError, WeightsError

from .data.synthetic import FPS, write_robot
from .evaluation.reach import ReachEnvironment

OBSERVATIONS = {
    "arm": {"observation.images.front": torch.full((3, 48, 64), 90, dtype=torch.uint8), "observation.state": torch.ones(3)},
    "dog": {"observation.images.front": torch.full((3, 32, 32), 90, dtype=torch.uint8), "observation.state": torch.ones(7)},
}  # fmt: skip
WIDTHS = {"arm": 2, "dog": 6}


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("robots")
    write_robot(root / "arm", state=3, action=2, cameras={"top": (48, 64)}, shift=5.0)
    write_robot(root / "dog", state=7, action=6, cameras={"front": (32, 32)})
    return root


@pytest.fixture
def recipe(datasets: Path) -> dict[str, Any]:
    """A recipe of both that trains in a second."""
    return {
        "recipe": 1,
        "name": "both",
        "data": {
            "sources": {
                "dog": {"path": str(datasets / "dog"), "weight": 3.0},
                "arm": {"path": str(datasets / "arm"), "cameras": {"front": "top"}, "resize": 32},
            },
            "horizon": 4,
            "validation": 0.25,
        },
        "policy": {
            "execute": 2,
            "backbones": {
                "vision": {"type": "vit", "patch_size": 16, "width": 16, "depth": 1, "heads": 2},
                "proprio": {"type": "mlp", "hidden": [8], "width": 8},
            },
            "head": {
                "type": "flow_matching",
                "steps": 2,
                "network": {"type": "dit", "width": 16, "depth": 1, "heads": 2, "per_embodiment": True},
            },
        },
        "transforms": [{"type": "normalize_image", "stats": "half"}, {"type": "normalize"}],
        "training": {"steps": 4, "batch_size": 8, "log_every": 1},
    }


@pytest.fixture
def batch(recipe: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """`batch()`: samples of both robots, as training sees them."""
    builder = Builder.from_recipe(recipe)
    dataset, policy = builder.datasets()[0], builder.build(device="meta")
    samples = [dataset[index] for index in (0, 40, 5, 60, 20, 50)]
    return lambda: copy.deepcopy(builder.collate(policy)(samples))


def test_specs_and_statistics_are_of_all_and_of_each(recipe: dict[str, Any]) -> None:
    config = Builder.from_recipe(recipe).build().config
    assert config.specs["action"]["dims"] == ["B", 4, 6]
    assert config.specs["observation.state"]["dims"] == ["B", 1, 7]
    assert config.specs["observation.images.front"]["dims"] == ["B", 1, 3, 32, 32]
    assert config.specs["embodiment"]["vocab"] == 2
    assert {name: len(held["action"]["mean"]) for name, held in config.statistics.items()} == WIDTHS
    assert config.robots["arm"]["observation.images.front"]["dims"] == ["B", 1, 3, 48, 64]


def test_robots_of_other_frame_rates_are_a_warning_that_can_be_silenced(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    code = "W008 frame-rates"
    assert code not in {each.code for each in Builder.from_recipe(recipe).warnings}
    write_robot(tmp_path / "fast", state=3, action=2, cameras={"top": (48, 64)}, fps=3 * FPS)
    builder = Builder.from_recipe(recipe).override({"data.sources.arm.path": str(tmp_path / "fast")})
    (found,) = [each for each in builder.warnings if each.code == code]
    assert found.span.path == "data.sources.dog"
    assert f"`arm` has {3 * FPS} frames per second and `dog` {FPS}" in found.message
    assert code not in {each.code for each in builder.override({"silence": ["W008"]}).warnings}


def test_each_robot_is_normalised_to_the_same_range(recipe: dict[str, Any]) -> None:
    builder = Builder.from_recipe(recipe).override({"data.validation": 0.0})
    policy, dataset = builder.build(), builder.datasets()[0]
    samples = [dataset[index] for index in range(len(dataset))]  # type: ignore[arg-type]
    normal = policy.transform(builder.collate(policy)(samples))
    for number, (name, state) in enumerate((("arm", 3), ("dog", 7))):
        own = normal["embodiment"] == number
        for values, width in (
            (normal["observation.state"][own, 0], state),
            (normal["action"][own, 0], WIDTHS[name]),
        ):
            torch.testing.assert_close(values[:, :width].mean(0), torch.zeros(width), atol=1e-4, rtol=0.0)
            torch.testing.assert_close(
                values[:, :width].std(0, correction=0), torch.ones(width), atol=1e-4, rtol=0.0
            )
            assert not values[:, width:].any()


def step(policy: Any, given: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    policy.zero_grad()
    torch.manual_seed(7)
    loss = policy.train()(given)["loss"]
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head", ["flow_matching", "mlp"])
def test_what_stands_in_padded_dimensions_changes_nothing(
    head: str, recipe: dict[str, Any], batch: Callable[[], dict[str, Any]]
) -> None:
    if head == "mlp":
        recipe["policy"]["head"] = {"type": "mlp", "hidden": [16], "per_embodiment": True}
    policy, clean = Builder.from_recipe(recipe).build(), batch()
    for parameter in policy.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    loss, gradients = step(policy, clean)
    for filling in (1e6, torch.nan):
        dirty = batch()
        arms = dirty["embodiment"] == 0
        dirty["action"][arms, :, 2:] = filling
        dirty["observation.state"][arms, :, 3:] = filling
        other, changed = step(policy, dirty)
        assert torch.equal(loss, other)
        assert all(torch.equal(gradients[name], changed[name]) for name in gradients)
    moved = batch()
    moved["action"][:, 0, 0] += 1.0
    assert not torch.equal(loss, step(policy, moved)[0])


def test_a_robot_s_projections_learn_from_its_own_samples(
    recipe: dict[str, Any], batch: Callable[[], dict[str, Any]]
) -> None:
    policy, given = Builder.from_recipe(recipe).build(), batch()
    torch.nn.init.normal_(policy.head.network.action_out.weight, std=0.02)
    arms = given["embodiment"] == 0
    own = {
        k: v[arms] if isinstance(v, Tensor) else [v[i] for i in arms.nonzero()[:, 0]]
        for k, v in given.items()
    }
    _, gradients = step(policy, own)
    for name in ("action_in.weight", "action_in.bias", "action_out.weight", "action_out.bias"):
        gradient = gradients[f"head.network.{name}"]
        assert gradient[0].any()
        assert not gradient[1].any()
    bias = gradients["head.network.action_out.bias"][0]
    assert bias[:2].all()
    assert not bias[2:].any()  # what the head says of dimensions that the arm does not have is no error


def test_a_resumed_run_is_the_uninterrupted_run_to_the_bit(recipe: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder.from_recipe(recipe).override({"training.save_every": 2, "training.keep": 9})
    whole = builder.train(output=tmp_path / "whole", device="cpu").checkpoint
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000004")
    resumed = builder.train(output=tmp_path / "cut", resume=True, device="cpu").checkpoint
    one, two = (load_file(path / "model.safetensors") for path in (whole, resumed))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    logged = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert any("validation/loss" in line for line in logged)


def test_batches_hold_the_shares_of_the_recipe(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    from policysmith.builder.policy.recipe_policy import RecipePolicy

    seen: list[Tensor] = []
    forward = RecipePolicy.forward

    def watch(self: RecipePolicy, batch: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        if self.training:
            seen.append(batch["embodiment"])
        return forward(self, batch, **kwargs)

    monkeypatch.setattr(RecipePolicy, "forward", watch)
    recipe["policy"] = {
        "backbones": {"proprio": {"type": "mlp", "hidden": [], "width": 2}},
        "head": {"type": "mlp"},
    }
    changes = {"training.steps": 60, "training.batch_size": 32, "data.validation": 0.0}
    Builder.from_recipe(recipe).override(changes).train(output=tmp_path, device="cpu")
    assert len(seen) == 61  # the first pass counts operations
    share = torch.cat(seen[1:]).float().mean().item()
    assert share == pytest.approx(0.75, abs=3 * (0.75 * 0.25 / 1920) ** 0.5)


def act(policy: Any, name: str, **changes: Any) -> Tensor:
    policy.reset()
    observation = {**OBSERVATIONS[name], "task": "move", "embodiment": name, **changes}
    result: Tensor = policy.select_action(observation, generator=torch.Generator().manual_seed(0))
    return result


def test_a_saved_policy_drives_each_robot_in_its_own_units(recipe: dict[str, Any], tmp_path: Path) -> None:
    policy = Builder.from_recipe(recipe).build()
    policy.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    for name, width in WIDTHS.items():
        action = act(loaded, name)
        assert action.shape == (width,)
        assert torch.equal(action, act(policy, name))
        windowed = {key: value[None] for key, value in OBSERVATIONS[name].items()}
        chunk = loaded.chunk({**windowed, "task": "move", "embodiment": name})
        assert chunk.shape == (4, width)


def test_deployment_computes_what_training_does(
    recipe: dict[str, Any], batch: Callable[[], dict[str, Any]]
) -> None:
    """An observation of a robot, alone and by name, and its sample in a batch of all: one chunk."""
    recipe["policy"]["head"] = {"type": "mlp", "hidden": [16], "per_embodiment": True}
    builder = Builder.from_recipe(recipe)
    policy, dataset = builder.build(), builder.datasets()[0]
    together = policy.inference(batch())
    for row, (index, name) in enumerate(((0, "arm"), (40, "dog"))):
        part = dataset.parts[row]  # type: ignore[union-attr]
        own = part.source[index - row * len(dataset.parts[0])]  # type: ignore[union-attr]
        camera = "top" if name == "arm" else "front"
        observation = {
            "observation.images.front": own[f"observation.images.{camera}"],
            "observation.state": own["observation.state"],
            "embodiment": name,
        }
        torch.testing.assert_close(policy.chunk(observation), together[row, :, : WIDTHS[name]])
        assert not together[row, :, WIDTHS[name] :].any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"embodiment": None}, r"`embodiment` is missing.*name one of `arm`, `dog`"),
        ({"embodiment": "dg"}, r"no robot 'dg'.*did you mean `dog`\?"),
        ({"observation.state": torch.ones(7)}, r"must be float32 \(3,\), but it is float32 \(7,\)"),
        (
            {"observation.images.front": torch.zeros(3, 32, 32, dtype=torch.uint8)},
            r"must be uint8 \(3, 48, 64\)",
        ),
    ],
)
def test_an_observation_is_held_against_the_robot_s_own(
    changes: Any, said: str, recipe: dict[str, Any]
) -> None:
    policy = Builder.from_recipe(recipe).build()
    with pytest.raises(SpecError, match=said):
        act(policy, "arm", **changes)


def test_robots_do_not_share_an_episode(recipe: dict[str, Any]) -> None:
    policy = Builder.from_recipe(recipe).build()
    act(policy, "arm")
    with pytest.raises(SpecError, match=r"drives `arm`, but this observation is of `dog`.*reset"):
        policy.select_action({**OBSERVATIONS["dog"], "embodiment": "dog"})
    assert act(policy, "dog").shape == (6,)


def test_each_robot_is_judged_by_itself(recipe: dict[str, Any], tmp_path: Path, datasets: Path) -> None:
    shutil.copytree(datasets / "arm", tmp_path / "arm")
    recipe["data"]["sources"]["arm"]["path"] = str(tmp_path / "arm")
    Builder.from_recipe(recipe).train(output=tmp_path / "run", device="cpu")
    for name, width in WIDTHS.items():
        result = evaluate(tmp_path / "run", open_loop=True, embodiment=name, device="cpu")
        assert result.output == tmp_path / "run" / "evaluation" / name
        assert result.open_loop is not None
        assert result.open_loop.mae.shape == (width,)
        assert result.open_loop.action_names == tuple(f"motor_{i}" for i in range(width))
        assert result.lines[0] == f"robot          {name}"
        assert not result.notes
        assert f"--embodiment {name}" in result.command
        held = json.loads((result.output / "result.json").read_text())
        assert held["embodiment"] == name
    with pytest.raises(SpecError, match="`embodiment` is missing"):
        evaluate(tmp_path / "run", open_loop=True, device="cpu")
    shutil.rmtree(tmp_path / "arm")
    write_robot(tmp_path / "arm", state=3, action=2, cameras={"top": (48, 64)}, shift=4.0)
    (note,) = evaluate(tmp_path / "run", open_loop=True, embodiment="arm", device="cpu").notes
    assert "has changed since the policy was trained" in note


def test_an_environment_is_asked_by_its_own_names(recipe: dict[str, Any], tmp_path: Path) -> None:
    Builder.from_recipe(recipe).build().save_pretrained(tmp_path)
    needs = needs_of(SavedPolicy.find(tmp_path), "arm")
    assert (needs.cameras, needs.vectors, needs.action_dim) == (
        {"top": (48, 64)},
        {"observation.state": 3},
        2,
    )
    seen = needs.select({"observation.images.top": 1, "observation.images.side": 2, "observation.state": 3})
    assert seen == {"observation.images.front": 1, "observation.state": 3, "embodiment": "arm"}
    with pytest.raises(SpecError, match="is missing"):
        needs_of(SavedPolicy.find(tmp_path))


def test_check_shows_the_robots(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "both.yaml"
    path.write_text(json.dumps(recipe))
    assert console.policysmith(["check", str(path)]) == console.OK
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    frames = [str(source.frames(source.training)) for source in Builder.from_recipe(recipe).sources]
    assert ["arm", "2", "3", "front", "32", "x", "32", frames[0], "25%"] in rows
    assert ["dog", "6", "7", "front", "32", "x", "32", frames[1], "75%"] in rows


def test_one_dataset_is_as_it_was(tiny: dict[str, Any]) -> None:
    builder = Builder.from_recipe(tiny)
    policy, sample = builder.build(device="meta"), builder.datasets()[0][0]
    assert not {"embodiment", "action_dim_is_pad"} & sample.keys()
    assert "embodiment" not in policy.config.specs
    assert policy.config.robots is None
    with pytest.raises(SpecError, match="is for one robot"):
        SavedPolicy(Path(), "policysmith_policy", policy.content).robot("arm")


def test_one_source_is_a_robot_with_a_name(recipe: dict[str, Any]) -> None:
    del recipe["data"]["sources"]["arm"]
    policy = Builder.from_recipe(recipe).build()
    assert act(policy, "dog").shape == (6,)


def test_transforms_that_change_widths_keep_padding_where_it_belongs(
    recipe: dict[str, Any], batch: Callable[[], dict[str, Any]]
) -> None:
    """The dog has a rotation in its first three actions and states, the arm has two joints."""
    recipe["data"]["sources"]["arm"]["cameras"] = {"front": "top"}
    turn = {"type": "rotation", "start": 3, "source": "axis_angle", "target": "rotation_6d"}
    recipe["transforms"] += [
        {"type": "pad_dims", "sizes": {"action": 12}},
        {"type": "state_noise", "std": 0.5},
    ]
    recipe["transforms"][1:1] = [{**turn, "key": "action"}]
    policy, given = Builder.from_recipe(recipe).build().train(), batch()
    seen = policy.transform(given)
    assert seen["action"].shape == (6, 4, 12)
    expected = {0: [False] * 2 + [True] * 10, 1: [False] * 9 + [True] * 3}
    for row, robot in enumerate(given["embodiment"].tolist()):
        assert seen["action_dim_is_pad"][row].tolist() == expected[robot]
        assert not seen["action"][row][:, expected[robot]].any()
    arms = given["embodiment"] == 0
    assert not seen["observation.state"][arms][..., 3:].any()  # no noise where there is nothing
    assert (
        seen["observation.state"][~arms] != policy.eval().transform(given)["observation.state"][~arms]
    ).all()
    for name, width in WIDTHS.items():
        assert act(policy, name).shape == (width,)


def test_a_rollout_in_an_environment_with_names_of_its_own(tmp_path: Path, recipe: dict[str, Any]) -> None:
    write_robot(tmp_path / "plane", state=4, action=2, cameras={"top": (16, 16)})
    recipe["data"]["sources"]["plane"] = {
        "path": str(tmp_path / "plane"),
        "cameras": {"front": "top"},
        "resize": 32,
    }
    Builder.from_recipe(recipe).build().save_pretrained(tmp_path / "policy")
    saved = SavedPolicy.find(tmp_path / "policy")
    needs, environment = needs_of(saved, "plane"), ReachEnvironment(16, True)
    rolled = roll_out(saved.load(), environment, index=0, seed=3, needs=needs)
    assert rolled.episode.steps == len(environment.actions)
    assert {action.shape for action in environment.actions} == {(2,)}


def test_lerobot_has_no_policy_of_several_robots(tmp_path: Path, recipe: dict[str, Any]) -> None:
    Builder.from_recipe(recipe).build().save_pretrained(tmp_path / "policy")
    with pytest.raises(WeightsError, match="for 2 robots, `arm`, `dog`"):
        export_policy(tmp_path / "policy", output=tmp_path / "out")


HAND_WRITTEN = """
import torch
from torch import nn
from transformers import PretrainedConfig

from policysmith.builder import BasePolicyModel, DataCollatorRegistry


class TwoArmsConfig(PretrainedConfig):
    model_type = "two_arms"
    size = 6

    def transform(self):
        return None, [0], list(range(4))


@BasePolicyModel.register("two_arms")
class TwoArms(BasePolicyModel):
    config_class = TwoArmsConfig

    def __init__(self, config):
        super().__init__(config)
        self.bias = nn.Parameter(torch.ones(2, config.size))

    def forward(self, batch):
        prediction = self.bias[batch["embodiment"]][:, None].expand(-1, 4, -1)
        error = (prediction - batch["action"]).square().masked_fill(batch["is_pad"], 0.0)
        return {"loss": error.mean(), "prediction": prediction}

    def inference(self, batch, generator=None):
        return self(batch)["prediction"]


@DataCollatorRegistry.register("two_arms")
def collate(samples):
    batch = {key: torch.stack([s[key] for s in samples]) for key in ("embodiment", "action", "observation.state")}
    pads = [s["action_is_pad"][:, None] | s["action_dim_is_pad"] for s in samples]
    return {**batch, "is_pad": torch.stack(pads)}
"""


def test_a_hand_written_policy_is_told_the_robot_too(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "two_arms.py").write_text(HAND_WRITTEN)
    del recipe["data"]["horizon"]
    recipe |= {"imports": [str(tmp_path / "two_arms.py")], "policy": {"type": "two_arms"}}
    recipe["transforms"] = [{"type": "normalize"}]
    result = Builder.from_recipe(recipe, allow_imports=True).train(output=tmp_path / "run", device="cpu")
    policy: Any = AutoModel.from_pretrained(result.checkpoint)
    for number, (name, width) in enumerate(WIDTHS.items()):
        held = policy.content["statistics"][name]["action"]
        action = act(policy, name)
        bias = policy.bias[number].detach()[:width]
        torch.testing.assert_close(action, bias * torch.tensor(held["std"]) + torch.tensor(held["mean"]))
    judged = evaluate(tmp_path / "run", open_loop=True, embodiment="arm", device="cpu", allow_imports=True)
    assert judged.open_loop is not None
    assert judged.open_loop.mae.shape == (2,)
