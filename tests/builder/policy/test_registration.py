"""Names of policies: known to the Auto classes, never taken in silence."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from policysmith.builder import BasePolicyModel, Builder, DataCollatorRegistry
from policysmith.builder.policy.registration import registry
from policysmith.schemas.errors import RegistryError

Refused = Callable[[Callable[[], Any]], Any]


def test_the_auto_classes_know_a_recipe_by_its_name(tiny: dict[str, Any], batch: Any) -> None:
    policy = Builder.from_recipe(tiny).build()
    config = AutoConfig.for_model("tiny")
    assert config.recipe == policy.config.recipe
    torch.manual_seed(policy.config.recipe["training"]["seed"])
    again = AutoModel.from_config(config)
    assert type(again) is type(policy)
    assert type(again).__name__ == "PolicysmithTinyPolicy"
    assert again.state_dict().keys() == policy.state_dict().keys()
    again.load_state_dict(policy.state_dict())
    assert torch.equal(again.inference(batch()), policy.inference(batch()))


def test_a_filled_config_is_nobody_elses(tiny: dict[str, Any]) -> None:
    Builder.from_recipe(tiny).build()
    AutoConfig.for_model("tiny").recipe["policy"]["execute"] = 99
    assert AutoConfig.for_model("tiny").recipe["policy"]["execute"] == 2


@pytest.mark.parametrize("name", ["vit", "bert", "policysmith_policy"])
def test_a_name_that_is_taken_is_refused_at_its_place(
    name: str, tiny: dict[str, Any], refused: Refused, to_yaml: Any
) -> None:
    builder = Builder.from_recipe(to_yaml({**tiny, "name": name}))
    (finding,) = refused(builder.check)
    assert finding.span.text == f'"{name}"'
    assert "choose another name" in finding.message


def test_the_same_recipe_twice_is_one_class(tiny: dict[str, Any]) -> None:
    assert type(Builder.from_recipe(tiny).build()) is type(Builder.from_recipe(tiny).build())


def test_training_anew_under_the_same_name_keeps_its_own_settings(tiny: dict[str, Any]) -> None:
    first = Builder.from_recipe(tiny).build()
    builder = Builder.from_recipe(tiny).override(
        {"training.optimizer.lr": 0.5, "policy.execute": 1, "data.episodes": [4, 5]}
    )
    second = builder.build()
    assert type(first) is type(second)
    assert second.config.recipe == builder.recipe.resolved()
    assert second.config.statistics != first.config.statistics
    assert first.config.recipe["training"]["optimizer"]["lr"] == 3e-4
    assert AutoConfig.for_model("tiny").recipe == second.config.recipe


def test_a_sweep_under_one_name_gives_it_to_the_latest(
    tiny: dict[str, Any], batch: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    builder = Builder.from_recipe(tiny)
    first = builder.build()
    caplog.clear()
    other = builder.override({"policy.head.hidden": [7]}).check()
    second = other.build()
    (record,) = caplog.records
    assert "`tiny` named a recipe with another policy.head;" in record.getMessage()
    assert AutoConfig.for_model("tiny").recipe["policy"]["head"]["hidden"] == [7]
    assert type(AutoModel.from_config(AutoConfig.for_model("tiny"))) is type(second) is not type(first)

    expected = first.inference(batch())
    copied = pickle.loads(pickle.dumps(first))
    assert type(copied) is type(first)
    assert type(AutoModel.from_config(first.config)) is type(first)
    first.save_pretrained(tmp_path)
    for again in (copied, AutoModel.from_pretrained(tmp_path), type(first).from_pretrained(tmp_path)):
        assert torch.equal(again.inference(batch()), expected)
    assert isinstance(AutoConfig.for_model("tiny"), type(second.config))  # pickles take no name over
    assert len(caplog.records) == 1

    assert type(builder.build()) is type(first)
    assert isinstance(AutoConfig.for_model("tiny"), type(first.config))


def test_a_name_that_somebody_else_took_is_noticed(tiny: dict[str, Any], refused: Refused) -> None:
    class Stranger(PretrainedConfig):
        model_type = "tiny"

    Builder.from_recipe(tiny).build()
    checked = Builder.from_recipe(tiny).check()
    AutoConfig.register("tiny", Stranger)  # transformers replaces the former in silence
    (finding,) = refused(Builder.from_recipe(tiny).check)
    assert "Stranger" in finding.message
    with pytest.raises(RegistryError, match="Stranger"):
        checked.build()
    assert AutoConfig.for_model("tiny").__class__ is Stranger
    CONFIG_MAPPING._extra_content.pop("tiny")


class _Config(PretrainedConfig):
    model_type = "lonely"

    def transform(self) -> tuple[None, list[int], list[int]]:
        return None, [0], [0]


def _policy(config: Any) -> Any:
    return type("Lonely", (BasePolicyModel,), {"config_class": config, "__module__": __name__})


def test_hand_written_policies_must_keep_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_POLICIES", {})
    with pytest.raises(RegistryError, match="set `config_class`"):
        BasePolicyModel.register("lonely")(_policy(None))
    with pytest.raises(RegistryError, match=r"registers as `other`, but _Config.model_type is `lonely`"):
        BasePolicyModel.register("other")(_policy(_Config))
    no_transform = type("NoTransform", (PretrainedConfig,), {"model_type": "lonely"})
    with pytest.raises(RegistryError, match=r"must implement `transform\(\)`"):
        BasePolicyModel.register("lonely")(_policy(no_transform))
    for name in ("composed", "vit"):
        config = type("Config", (_Config,), {"model_type": name})
        with pytest.raises(RegistryError, match="choose another"):
            BasePolicyModel.register(name)(_policy(config))


def test_two_policies_or_collators_of_one_name_are_an_error_naming_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_POLICIES", {})
    monkeypatch.setattr(DataCollatorRegistry, "_collators", {})
    BasePolicyModel.register("lonely")(_policy(_Config))
    other = type("Other", (BasePolicyModel,), {"config_class": _Config, "__module__": "elsewhere"})
    with pytest.raises(RegistryError, match=r"Lonely and by elsewhere\.Other"):
        BasePolicyModel.register("lonely")(other)
    BasePolicyModel.register("lonely")(_policy(_Config))  # the same again, as in a notebook

    def one(samples: Any) -> Any:
        return samples

    def two(samples: Any) -> Any:
        return samples

    assert DataCollatorRegistry.register("lonely")(one) is one
    with pytest.raises(RegistryError, match=r"one and by .*two"):
        DataCollatorRegistry.register("lonely")(two)
    assert DataCollatorRegistry.get("lonely") is one
    with pytest.raises(RegistryError, match=r"registered: lonely"):
        DataCollatorRegistry.get("nobody")
    CONFIG_MAPPING._extra_content.pop("lonely", None)
