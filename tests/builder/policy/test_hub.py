"""A policy from a hub, or from a folder within a directory, is the policy with all that lies beside its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from policysmith.builder import Builder, RecipePolicy
from policysmith.schemas.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def policy(
    tiny: dict[str, Any], tmp_path: Path, saved_text_encoder: Any, saved_tokenizer: Any
) -> RecipePolicy:
    """One whose collator needs files, that exist only until it is saved."""
    tiny["collator"] = saved_tokenizer(tmp_path / "gone")
    text = saved_text_encoder(tmp_path / "gone")
    tiny["policy"]["backbones"]["text"] = text
    policy = Builder.from_recipe(tiny).build()
    assert isinstance(policy, RecipePolicy)
    policy.recipe_text = "# as it was written\n"
    return policy


@pytest.mark.parametrize("subfolder", ["", "policies/best"])
@pytest.mark.parametrize("place", ["directory", "hub"])
def test_files_beside_the_weights_come_along(
    place: str, subfolder: str, policy: RecipePolicy, tmp_path: Path, observation: dict[str, Any]
) -> None:
    home = tmp_path / "home"
    if place == "hub":
        cache = home / "models--someone--policy"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text(COMMIT)
        home = cache / "snapshots" / COMMIT
    policy.save_pretrained(home / subfolder)
    (tmp_path / "gone" / "tokenizer").rename(tmp_path / "elsewhere")
    options: dict[str, Any] = {"subfolder": subfolder} if subfolder else {}
    source = str(home)
    if place == "hub":
        source, options = "someone/policy", {**options, "cache_dir": str(tmp_path / "home")}
    loaded = AutoModel.from_pretrained(source, **options)
    assert loaded.recipe_text == policy.recipe_text
    assert torch.equal(loaded.select_action(observation), policy.select_action(observation))


def test_a_subfolder_without_a_policy_is_named(policy: RecipePolicy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "home")
    with pytest.raises(CheckpointError, match=r"home/wrong holds no config.json"):
        RecipePolicy.from_pretrained(tmp_path / "home", subfolder="wrong")


def test_a_hubs_home_in_the_environment(
    policy: RecipePolicy, tmp_path: Path, fresh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hf" / "hub" / "models--someone--policy"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    policy.save_pretrained(cache / "snapshots" / COMMIT)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    code = """
        import policysmith.builder
        from transformers import AutoModel
        policy = AutoModel.from_pretrained("someone/policy")
        assert policy._assets is not None and policy.recipe_text.startswith("# as it was")
    """
    done = fresh(code)
    assert done.returncode == 0, done.stderr
