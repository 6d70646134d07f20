"""Prompts: templates, the state in bins, appended tokens, and the bundled tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policysmith.components.collators.language import LanguageCollator
from policysmith.components.language.prompts import StateBins, clean_instruction, template_fields
from policysmith.components.pretrained.models import read_tokenizer
from policysmith.schemas.errors import DatasetError, SpecError
from policysmith.schemas.specs import Kind, Spec

PI05 = "Task: {task}, State: {state};\nAction: "
DATA = {"task": Spec(Kind.TEXT, ("B",)), "observation.state": Spec(Kind.STATE, ("B", 2, 3))}
STATISTICS = {
    "observation.state": {
        "q01": [-2.0, 0.0, 5.0],
        "q99": [2.0, 1.0, 5.0],
        "min": [-4.0, 0.0, 5.0],
        "max": [4.0, 2.0, 5.0],
    }
}


def make(statistics: Any = STATISTICS, **options: Any) -> LanguageCollator:
    config = LanguageCollator.Config(type="language", tokenizer="policysmith/tiny", max_length=64, **options)
    facts = {**LanguageCollator.facts(config), "statistics": statistics}
    LanguageCollator.specs(config, DATA, facts)
    return LanguageCollator(config, facts)


def text(part: LanguageCollator, **sample: Any) -> str:
    """Return the decoded tokens of a sample."""
    batch = part([sample])
    shown = batch["task.input_ids"][0][batch["task.attention_mask"][0].bool()]
    return read_tokenizer("policysmith/tiny").decode(shown[1:])  # type: ignore[no-any-return]


def state(*values: float) -> torch.Tensor:
    return torch.tensor([[9.0, 9.0, 9.0], values])


def test_the_prompt_of_pi05() -> None:
    sample = {"task": "open_the drawer\n", "observation.state": state(0.0, 1.0, 5.0)}
    part = make(prompt=PI05, task_text="cleaned")
    assert text(part, **sample) == "Task: open the drawer, State: 128 255 128;\nAction: "
    assert text(make(prompt=PI05), **sample) == "Task: open_the drawer\n, State: 128 255 128;\nAction: "
    assert text(make(prompt=PI05, state_range="min_max"), **sample).endswith("State: 128 128 128;\nAction: ")
    assert text(make(prompt="{task}\n"), **sample) == "open_the drawer\n\n"


def test_bins_are_those_of_openpi() -> None:
    values = np.array([-1.5, -1.0, -0.9999, -0.99, -1 / 128, 0.0, 0.99, 0.9999, 1.0, 1.5])
    expected = np.digitize(values, bins=np.linspace(-1, 1, 256 + 1)[:-1]) - 1
    width = len(values)
    bins = StateBins(256, "q99", {"observation.state": {"q01": [-1.0] * width, "q99": [1.0] * width}})
    assert bins(values) == " ".join(map(str, expected))
    assert bins(values).split()[:2] == ["-1", "0"]
    assert bins(values).split()[-1] == "255"


@given(
    st.floats(-1.0, 1.0, exclude_max=True), st.integers(2, 300), st.floats(-50.0, 50.0), st.floats(0.1, 50.0)
)
def test_a_value_lies_in_its_bin(normal: float, bins: int, center: float, scale: float) -> None:
    part = StateBins(
        bins, "min_max", {"observation.state": {"min": [center - scale], "max": [center + scale]}}
    )
    number = int(part(np.array([normal * scale + center])))
    low = -1.0 + 2.0 * number / bins
    assert low - 1e-9 <= normal <= low + 2.0 / bins + 1e-9


def test_a_rare_value_of_the_state_has_a_bin_of_its_own() -> None:
    held = {"q01": [0.0, -1.0], "q99": [0.0, 1.0], "min": [0.0, -1.0], "max": [1.0, 1.0]}
    write = StateBins(256, "q99", {"observation.state": held})
    assert write(np.array([0.0, 0.0])).split()[0] == "0"
    assert write(np.array([1.0, 0.0])).split()[0] == "255"


def test_templates_are_checked() -> None:
    assert template_fields("{task} {{x}} {state}") == {"task", "state"}
    for wrong in ("{instruction}", "{}", "{task!r}", "{task:>9}", "{task", "}"):
        with pytest.raises(SpecError) as caught:
            make(prompt=wrong)
        assert caught.value.field == "prompt"
    assert clean_instruction(" pick_up\nit ") == "pick up it"


def test_a_state_needs_data_and_statistics() -> None:
    with pytest.raises(SpecError, match="hold no `q01`") as caught:
        make({}, prompt=PI05)
    assert (caught.value.field, caught.value.source) == ("state_range", "observation.state")
    config = make(prompt=PI05).config
    facts = {"vocab_size": 380, "statistics": STATISTICS}
    with pytest.raises(SpecError, match="the data has none") as caught:
        LanguageCollator.specs(config, {"task": DATA["task"]}, facts)
    assert (caught.value.field, caught.value.source) == ("prompt", "observation.state")
    wide = {**DATA, "observation.state": Spec(Kind.STATE, ("B", 2, 4))}
    with pytest.raises(SpecError, match="statistics of 3 dimensions"):
        LanguageCollator.specs(config, wide, facts)
    with pytest.raises(DatasetError, match="the samples have no"):
        make(prompt=PI05)([{"task": "open"}])
    broken = {"observation.state": {**STATISTICS["observation.state"], "q01": [0.0, float("nan"), 0.0]}}
    with pytest.raises(DatasetError, match="is not finite"):
        make(broken, prompt=PI05)
    make({}, prompt="{task}")


def test_each_robot_is_written_by_its_own_statistics() -> None:
    narrow = {key: values[:2] for key, values in STATISTICS["observation.state"].items()}
    part = make({"b": {"observation.state": narrow}, "a": STATISTICS}, prompt="{state}")
    for number, expected in ((0, "255 0 128"), (1, "255 0")):
        sample = {
            "task": "open",
            "observation.state": state(2.0, 0.0, 0.0),
            "embodiment": torch.tensor(number),
        }
        assert text(part, **sample) == expected
    with pytest.raises(DatasetError, match="the samples have no `embodiment`"):
        part([{"task": "open", "observation.state": state(2.0, 0.0, 0.0)}])


def test_tokens_are_appended_and_survive_a_cut() -> None:
    part = make(append=["<eos>"])
    ids = part([{"task": "open the drawer"}])["task.input_ids"][0]
    assert ids[:6].tolist() == [*read_tokenizer("policysmith/tiny")("open the drawer").input_ids, 2, 0]
    config = part.config.model_copy(update={"max_length": 3, "truncate": "end"})
    short = LanguageCollator(config, {"statistics": STATISTICS})([{"task": "open the drawer"}])
    assert short["task.input_ids"][0].tolist() == [*ids[:2].tolist(), 2]
    with pytest.raises(SpecError, match="has no token `</s>`") as caught:
        make(append=["<eos>", "</s>"])
    assert caught.value.field == "append.1"
    assert "<eos>" in caught.value.help


def test_keys_tell_prompts_apart() -> None:
    part = make(prompt="do: {task}")
    keys = part([{"task": task} for task in ("open", "close", "open")])["task.key"]
    assert keys[0] == keys[2] != keys[1]


def test_prompts_with_the_state_are_not_to_be_remembered() -> None:
    """Keys would make the encoder read each prompt alone, without a benefit."""
    sample = {"task": "open", "observation.state": state(0.0, 1.0, 5.0)}
    assert "task.key" not in make(prompt="{task} {state}")([sample, sample])


def test_the_bundled_tokenizer_is_what_its_script_makes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "tools/tiny_tokenizer.py", str(tmp_path)], cwd=root, check=True)
    bundled = root / "components/pretrained/tokenizers/policysmith--tiny"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in bundled.iterdir()}
    assert (tmp_path / "tokenizer.json").read_bytes() == (bundled / "tokenizer.json").read_bytes()


@given(st.text(max_size=30))
def test_the_bundled_tokenizer_writes_any_text(anything: str) -> None:
    tokenizer = read_tokenizer("policysmith/tiny")
    ids = tokenizer(anything).input_ids
    assert max(ids) < len(tokenizer) <= 500
    assert tokenizer.decode(ids[1:]) == anything
