"""Every claim of the guide to writing a policy by hand, each by the real way from recipe to robot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModel, ViTConfig, ViTModel

from policysmith.builder import BasePolicyModel, Builder, DataCollatorRegistry
from policysmith.builder.policy.registration import registry
from policysmith.schemas.errors import SpecError

GUIDE = Path(__file__).with_name("guide_policy.py")
CAMERA = "observation.images.corner2"
Refused = Callable[[Callable[[], Any]], Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[[], dict[str, Any]]) -> Path:
    """What a newcomer has: one Python file, pretrained weights, and a recipe."""
    home = tmp_path_factory.mktemp("guide")
    shutil.copy(GUIDE, home / "guide_policy.py")
    sizes = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32
    )
    torch.manual_seed(7)
    ViTModel(sizes).save_pretrained(home / "vit")
    recipe = make_tiny()
    recipe |= {
        "name": "by_hand",
        "imports": ["guide_policy.py"],
        "policy": {"type": "custom_model", "vit_name": str(home / "vit"), "hidden_dim": 24, "execute": 2},
    }
    del recipe["data"]["horizon"]
    (home / "recipe.yaml").write_text(json.dumps(recipe, indent=2))
    return home


@pytest.fixture
def builder(home: Path) -> Builder:
    return Builder.from_recipe(home / "recipe.yaml", allow_imports=True)


@pytest.fixture(scope="module")
def run(home: Path) -> Any:
    """A finished training run."""
    return Builder.from_recipe(home / "recipe.yaml", allow_imports=True).train(
        output=home / "run", device="cpu"
    )


def raw_batch(builder: Builder, policy: Any, size: int = 3) -> Any:
    training, _ = builder.datasets()
    (batch,) = DataLoader(
        torch.utils.data.Subset(training, range(size)), batch_size=size, collate_fn=builder.collate(policy)
    )
    return batch


def test_the_stock_command_trains_it(home: Path, forked: Callable[..., Any], run: Any) -> None:
    """One fresh process, as `build-and-train` starts it; the same weights come out as from Python."""
    pytest.importorskip("policysmith.builder.cli")
    code = """
        import sys
        from policysmith.schemas.console import build_and_train
        sys.exit(build_and_train())
    """
    options = ["--allow-imports", "--output", str(home / "by_command"), "--device", "cpu"]
    done = forked(code, home / "recipe.yaml", *options)
    assert done.returncode == 0, done.stderr + done.stdout
    same = AutoModel.from_pretrained(home / "by_command" / "policy").state_dict()
    assert all(torch.allclose(value, same[key]) for key, value in run.policy.state_dict().items())


def test_training_goes_through_the_stock_trainer(home: Path, run: Any) -> None:
    assert run.steps == 4
    assert type(run.policy).__name__ == "CustomPolicyModel"
    assert run.checkpoint.name == "step-00000004"
    initial = Builder.from_recipe(home / "recipe.yaml", allow_imports=True).build()
    changed = {k for k, v in run.policy.state_dict().items() if not torch.equal(v, initial.state_dict()[k])}
    assert changed == {"mlp.0.weight", "mlp.0.bias", "mlp.3.weight", "mlp.3.bias"}  # the ViT is frozen


def test_a_fresh_process_acts_the_same_to_the_bit(
    home: Path, run: Any, forked: Callable[..., Any], observation: dict[str, Any]
) -> None:
    torch.save(observation, home / "observation.pt")
    code = """
        import sys, torch
        torch.set_num_threads(1)
        sys.path.insert(0, sys.argv[1])
        import guide_policy
        from transformers import AutoModel
        policy = AutoModel.from_pretrained(sys.argv[2])
        observation = torch.load(sys.argv[1] + "/observation.pt")
        torch.save([policy.select_action(observation) for _ in range(3)], sys.argv[1] + "/actions.pt")
    """
    done = forked(code, home, run.checkpoint)
    assert done.returncode == 0, done.stderr
    run.policy.reset()
    expected = [run.policy.select_action(observation) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(expected, torch.load(home / "actions.pt"), strict=True))
    assert torch.equal(expected[0], expected[2])  # `execute: 2`
    assert expected[0].shape == (4,)


def test_select_action_gives_the_units_of_the_robot(builder: Builder, observation: dict[str, Any]) -> None:
    policy: Any = builder.build()
    with torch.no_grad():
        for parameter in policy.mlp.parameters():
            parameter.zero_()
    mean = policy.config.policysmith["statistics"]["action"]["mean"]
    torch.testing.assert_close(policy.select_action(observation), torch.tensor(mean))


def test_configs_serialise_all_hyper_parameters(run: Any) -> None:
    """Class attributes too, which transformers would leave out."""
    config = json.loads((run.checkpoint / "config.json").read_text())
    wanted = {"model_type": "custom_model", "freeze_vit": True, "hidden_dim": 24, "output_dim": 4}
    wanted |= {"dropout": 0.0, "n_obs_steps": 1, "horizon": 4}
    assert {key: config[key] for key in wanted} == wanted
    assert "training" not in config  # settings of the run are no hyper-parameters
    assert AutoConfig.from_pretrained(run.checkpoint).hidden_dim == 24


def test_an_edited_default_does_not_change_a_saved_policy(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(run.policy.config), "horizon", 9)
    assert AutoModel.from_pretrained(run.checkpoint).mlp[3].out_features == 16


def test_configs_manage_default_values(builder: Builder) -> None:
    builder.check()
    config = AutoConfig.for_model("custom_model")
    assert (config.hidden_dim, config.horizon) == (256, 4)
    assert AutoConfig.for_model("custom_model", hidden_dim=3).hidden_dim == 3


def test_the_config_reaches_the_constructor(builder: Builder) -> None:
    policy: Any = builder.override({"policy.hidden_dim": 10, "policy.dropout": 0.25}).build()
    assert policy.mlp[0].out_features == 10
    assert policy.mlp[2].p == 0.25


def test_pretrained_weights_load_inside_the_constructor(home: Path, builder: Builder, run: Any) -> None:
    expected = ViTModel.from_pretrained(home / "vit").state_dict()
    for policy in (builder.build(), AutoModel.from_pretrained(run.checkpoint)):
        state = policy.vit.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in expected.items())


@pytest.mark.parametrize("freeze", [True, False])
def test_freeze_vit_is_honoured(freeze: bool, builder: Builder) -> None:
    policy: Any = builder.override({"policy.freeze_vit": freeze}).build()
    assert all(p.requires_grad is not freeze for p in policy.vit.parameters())


def test_forward_returns_a_dictionary_with_the_loss(builder: Builder) -> None:
    policy = builder.build()
    batch = raw_batch(builder, policy)
    output = policy.train()(batch)
    assert set(output) == {"loss", "prediction"}
    expected = torch.nn.functional.mse_loss(output["prediction"], batch["actions"])
    assert torch.equal(output["loss"], expected)
    assert set(policy.eval()(batch)) == {"prediction"}


def test_inference_gives_action_chunks(builder: Builder) -> None:
    policy = builder.build()
    assert policy.inference(raw_batch(builder, policy)).shape == (3, 4, 4)


def test_inference_may_give_one_chunk_without_a_batch(
    builder: Builder, observation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide asks for (n_actions, action_dim)."""
    policy: Any = builder.build()
    original = policy.inference
    expected = policy.chunk(observation | {CAMERA: observation[CAMERA][None]} | _steps(observation))
    monkeypatch.setattr(policy, "inference", lambda batch: original(batch)[0])
    assert torch.equal(policy.chunk(_steps(observation)), expected)
    monkeypatch.setattr(policy, "inference", lambda batch: original(batch)[:, :2])
    with pytest.raises(SpecError, match=r"\(1, 2, 4\) for 1 observation; return \(1, 4, 4\)"):
        policy.chunk(_steps(observation))


def _steps(observation: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value[None] if isinstance(value, torch.Tensor) else value for key, value in observation.items()
    }


def _transform(builder: Builder, monkeypatch: pytest.MonkeyPatch, result: Any) -> Builder:
    """The same policy, whose config's `transform()` gives something else."""
    _ = builder.recipe
    config = registry.policies()["custom_model"].config_class
    monkeypatch.setattr(config, "transform", lambda self: result)
    return builder


def halve(sample: Any) -> dict[str, Any]:
    return {**sample, CAMERA: sample[CAMERA] * 0.5}


@pytest.mark.parametrize(
    ("transforms", "factor"), [(None, 1.0), (halve, 0.5), ([halve, halve], 0.25), ((), 1.0)]
)
def test_transform_gives_none_one_or_several_transforms(
    transforms: Any, factor: float, builder: Builder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come after the recipe's own."""
    plain = raw_batch(builder, builder.build())["images"]
    other = Builder.from_recipe(home / "recipe.yaml", allow_imports=True)
    _transform(other, monkeypatch, (transforms, [0], list(range(4))))
    assert torch.equal(raw_batch(other, other.build())["images"], plain * factor)


def test_transform_decides_the_time_steps(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = _transform(builder, monkeypatch, (None, [0, 1, 2], [0, 1, 2, 3])).datasets()[0][0]
    assert sample["observation.state"].shape == (3, 4)
    assert sample["action"].shape == (4, 4)


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ((None, [0]), "return (transforms, observation indices, action indices)"),
        (None, "return (transforms, observation indices, action indices)"),
        (("resize", [0], [0]), "return None, one transform or a list"),
        ((None, [], [0]), "as observation indices; return a list"),
        ((None, [0], [0.5]), "as action indices; return a list"),
        ((None, [0], [-2, -1]), "returns the action indices [-2, -1]"),
        ((None, [0], [0, 2, 4]), "a chunk is executed step by step from 0, which is now"),
        ((None, [0], [1, 2]), "returns the action indices [1, 2]"),
        ((None, [0], [1, 0]), "returns the action indices [1, 0]"),
    ],
)
def test_transform_must_give_three_things(
    result: Any, complaint: str, builder: Builder, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    (finding,) = refused(_transform(builder, monkeypatch, result).check)
    assert complaint in finding.message
    assert finding.span.text == '"custom_model"'


def test_action_indices_that_are_not_consecutive_name_the_cure(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    (finding,) = refused(_transform(builder, monkeypatch, (None, [0], [0, 2, 4])).check)
    assert finding.help == "return `list(range(3))`"


def test_a_recipe_may_not_contradict_transform(builder: Builder, refused: Refused) -> None:
    found = refused(builder.override({"data.horizon": 8, "policy.execute": 5}).check)
    assert {finding.code for finding in found} == {"E021 dim-mismatch"}
    assert any("`data.horizon` is 8, but the policy's config needs 4" in f.message for f in found)
    assert any("cannot execute 5 actions of a chunk of 4" in f.message for f in found)
    builder.override({"data.horizon": 4}).check()


def test_the_collator_is_any_callable(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Collate:
        def __call__(self, samples: Any) -> dict[str, Any]:
            return {"images": torch.stack([s[CAMERA][-1] for s in samples]), "count": len(samples)}

    policy = builder.build()
    monkeypatch.setitem(DataCollatorRegistry._collators, "custom_model", Collate())
    assert raw_batch(builder, policy)["count"] == 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({CAMERA: torch.zeros(96, 96, 3, dtype=torch.uint8)}, "transpose it to channels first"),
        ({CAMERA: torch.zeros(3, 96, 96)}, "give uint8"),
        ({"observation.state": torch.zeros(1)}, "give 4 values"),
        ({"observation.state": None}, "not an array of numbers"),
        ({"task": ["open"]}, "is list, and must be a str"),
    ],
)
def test_observations_are_held_against_the_data(
    change: dict[str, Any], complaint: str, builder: Builder, observation: dict[str, Any]
) -> None:
    policy = builder.build()
    with pytest.raises(SpecError, match=complaint):
        policy.select_action(observation | change)
    with pytest.raises(SpecError, match=f"`{next(iter(change))}`"):
        policy.select_action(
            {k: v for k, v in observation.items() if k not in change} | {"more": 1, **change}
        )


def test_what_the_data_had_must_be_seen_and_texts_only_where_they_are_read(
    builder: Builder, observation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = builder.build()
    mute = {key: value for key, value in observation.items() if key != "task"}
    assert torch.equal(policy.select_action(mute), builder.build().select_action(observation))
    with pytest.raises(SpecError, match=r"lacks `observation.state`.*float32 \(4,\).*given: `task`"):
        policy.select_action({"task": "", CAMERA: observation[CAMERA]})
    original = DataCollatorRegistry.get("custom_model")

    def reading(samples: Any) -> Any:
        assert all(sample["task"] for sample in samples)
        return original(samples)

    monkeypatch.setitem(DataCollatorRegistry._collators, "custom_model", reading)
    policy.reset()
    with pytest.raises(SpecError, match="lacks `task`, which CustomPolicyModel reads"):
        policy.select_action(mute)


def test_the_resolved_recipe_and_the_data_are_saved_with_it(home: Path, run: Any, builder: Builder) -> None:
    lock = run.checkpoint / "recipe.lock.yaml"
    shutil.copy(lock, home / "again.yaml")
    again = Builder.from_recipe(home / "again.yaml", allow_imports=True).check()
    assert again.recipe.sections.policy == builder.recipe.sections.policy
    assert again.recipe.sections.data.horizon == 4
    held = json.loads((run.checkpoint / "config.json").read_text())["policysmith"]["provenance"]
    training, _ = Builder.from_recipe(home / "recipe.yaml", allow_imports=True).datasets()
    assert held["dataset"] == training.source.fingerprint  # type: ignore[attr-defined]


def test_building_again_leaves_a_policy_its_own_config(builder: Builder) -> None:
    first = builder.build()
    first.content["provenance"]["dataset"] = "abc"
    builder.build()
    builder.datasets()
    assert first.config.policysmith["provenance"]["dataset"] == "abc"


def test_one_file_imported_by_the_recipe_and_by_the_user_is_one_definition(
    home: Path, run: Any, forked: Callable[..., Any]
) -> None:
    code = """
        import sys
        from policysmith.builder import Builder
        builder = Builder.from_recipe(sys.argv[1] + "/recipe.yaml", allow_imports=True).check()
        sys.path.insert(0, sys.argv[1])
        import guide_policy
        from transformers import AutoConfig, AutoModel
        policy = AutoModel.from_pretrained(sys.argv[2])
        assert type(policy) is guide_policy.CustomPolicyModel
        assert type(policy.config) is type(AutoConfig.for_model("custom_model")) is guide_policy.CustomPolicyConfig
        before = builder.build()  # its config was made by the first definition
        assert isinstance(before.config, type(before).config_class)
        assert Builder.from_recipe(sys.argv[1] + "/recipe.yaml", allow_imports=True).build().__class__ is type(policy)
    """
    done = forked(code, home, run.checkpoint)
    assert done.returncode == 0, done.stderr
    assert "is defined again" in done.stderr


def test_two_files_of_one_name_are_two_definitions(
    home: Path, tmp_path: Path, builder: Builder, refused: Refused
) -> None:
    builder.check()
    shutil.copy(home / "guide_policy.py", tmp_path / "guide_policy.py")
    recipe = json.loads((home / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe, indent=2))
    (finding,) = refused(Builder.from_recipe(tmp_path / "recipe.yaml", allow_imports=True).check)
    assert "`custom_model` is registered twice" in finding.message


def test_a_missing_collator_is_named(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    _ = builder.recipe
    monkeypatch.delitem(DataCollatorRegistry._collators, "custom_model")
    (finding,) = refused(builder.check)
    assert '@DataCollatorRegistry.register("custom_model")' in finding.message
    assert finding.span.text == '"custom_model"'


def test_a_collator_in_the_recipe_would_be_ignored_and_is_refused(builder: Builder, refused: Refused) -> None:
    (finding,) = refused(builder.override({"collator": {"type": "default"}}).check)
    assert "has its own collator" in finding.message


def test_the_auto_classes_know_it(builder: Builder, run: Any) -> None:
    """The guide's two registration lines at the end of the file did no harm."""
    builder.check()
    assert type(AutoConfig.for_model("custom_model")).__name__ == "CustomPolicyConfig"
    assert type(AutoModel.from_pretrained(run.checkpoint)) is registry.policies()["custom_model"]
    assert issubclass(registry.policies()["custom_model"], BasePolicyModel)


def test_no_core_code_is_edited_and_none_runs_unasked(home: Path, refused: Refused) -> None:
    (finding,) = refused(Builder.from_recipe(home / "recipe.yaml").check)
    assert finding.code == "E011 import-refused"


def test_an_unknown_policy_names_the_ones_there_are(builder: Builder, refused: Refused) -> None:
    (finding,) = refused(builder.override({"policy.type": "custom_modell"}).check)
    assert finding.help == "did you mean `custom_model`?"


def test_options_are_held_against_the_config_class(home: Path, tmp_path: Path, refused: Refused) -> None:
    recipe = json.loads((home / "recipe.yaml").read_text())
    recipe["imports"] = [str(home / "guide_policy.py")]
    recipe["policy"] |= {"hiden_dim": 3, "dropout": "much", "freeze_vit": 1, "output_dim": 4.5}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe, indent=2))
    found = refused(Builder.from_recipe(tmp_path / "recipe.yaml", allow_imports=True).check)
    by_text = {finding.span.text: finding for finding in found}
    assert by_text['"hiden_dim"'].code == "E003 unknown-key"
    assert by_text['"hiden_dim"'].label == "did you mean `hidden_dim`?"
    for text in ('"much"', "1", "4.5"):
        assert by_text[text].code == "E005 wrong-type"
    assert len(found) == 4


def test_transforms_of_the_recipe_are_wired(builder: Builder, refused: Refused) -> None:
    change = {"transforms": [{"type": "resize", "size": 32, "keys": ["observation.images.wrist"]}]}
    (finding,) = refused(builder.override(change).check)
    assert "`observation.images.wrist` is not an image" in finding.message


def test_errors_of_its_own_code_are_located(builder: Builder, refused: Refused) -> None:
    (finding,) = refused(builder.override({"policy.vit_name": "./nowhere"}).build)
    assert "CustomPolicyModel cannot be built: " in finding.message
    assert finding.notes[0].startswith("raised at ")


def test_patterns_are_held_against_its_parameters(builder: Builder, refused: Refused) -> None:
    (finding,) = refused(builder.override({"training.optimizer.groups": [{"match": "vitt.*"}]}).build)
    assert "no parameter matches `vitt.*`" in finding.message
    builder.override({"training.optimizer.groups": [{"match": "vit.*", "lr_scale": 0.1}]}).build()
