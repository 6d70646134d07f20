"""Mismatches are reported at both places, all at once, before a weight exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policysmith.builder import Builder
from policysmith.builder.wiring.parts import Parts, WiringError
from policysmith.builder.wiring.solve import wire
from policysmith.components.backbones.mlp import MlpBackbone
from policysmith.components.base import Feature
from policysmith.components.heads.mlp import MlpHead
from policysmith.components.registry import BACKBONES, COLLATORS
from policysmith.schemas.diagnostics import Diagnostic
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

OBSERVATIONS = {
    "observation.images.front": Spec(Kind.IMAGE, ("B", 1, 3, 32, 32)),
    "observation.state": Spec(Kind.STATE, ("B", 1, 5)),
    "task": Spec(Kind.TEXT, ("B",)),
    "action": Spec(Kind.ACTION, ("B", 4, 3)),
}
Wrong = Callable[..., tuple[Diagnostic, ...]]


@pytest.fixture
def wrong(tiny: dict[str, Any], to_yaml: Any, refused: Any) -> Wrong:
    """`wrong({dotted path: value})`: what is found in the tiny recipe with these changes."""

    def run(changes: dict[str, Any]) -> tuple[Diagnostic, ...]:
        for path, value in changes.items():
            *steps, last = path.split(".")
            place: Any = tiny
            for step in steps:
                place = place[int(step) if step.isdigit() else step]
            place[last] = value
        return tuple(refused(Builder.from_recipe(to_yaml(tiny)).check))

    return run


def test_a_misspelt_backbone(wrong: Wrong) -> None:
    (typo, unread) = wrong({"policy.head.reads": ["visoin", "proprio"]})[::-1]
    assert (typo.code, typo.span.text, typo.help) == (
        "E022 missing-input",
        '"visoin"',
        "did you mean `vision`?",
    )
    assert "nothing reads backbone `vision`" in unread.message


def test_an_unread_backbone(wrong: Wrong) -> None:
    (finding,) = wrong({"policy.head.reads": ["vision"]})
    assert "nothing reads backbone `proprio`" in finding.message
    assert "add `proprio` to `policy.head.reads`" in finding.help
    assert finding.span.text.startswith('"proprio"')


def test_a_backbone_read_twice(wrong: Wrong) -> None:
    (finding,) = wrong({"policy.head.reads": ["vision", "proprio", "vision.pooled"]})
    assert "reads `vision.pooled` twice" in finding.message


def test_a_size_that_clashes_names_both_places(wrong: Wrong) -> None:
    (finding,) = wrong({"policy.head.in_dim": 100})
    assert finding.code == "E021 dim-mismatch"
    assert finding.span.text == "100"
    places = {span.text.partition(":")[0] for span, _ in finding.related}
    assert places == {'"vision"', '"proprio"'}
    assert any("16" in label for _, label in finding.related)


def test_a_state_that_clashes_points_at_the_data(wrong: Wrong) -> None:
    (finding,) = wrong({"policy.backbones.proprio.in_dim": 7})
    assert finding.span.text == "7"
    ((span, label),) = finding.related
    assert span.text.endswith('drawer_open"')
    assert "`observation.state` is state (B, 1, 4)" in label


def test_an_image_that_clashes_points_at_the_transform_that_made_it(wrong: Wrong) -> None:
    (finding,) = wrong({"transforms.1.size": 40})
    assert finding.span.text == "16"  # the patch size
    ((span, label),) = finding.related
    assert span.line > finding.span.line
    assert "image (B, 1, 3, 40, 40)" in label


def test_tokens_asked_of_a_backbone_that_has_none(wrong: Wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MlpBackbone.specs
    monkeypatch.setattr(
        MlpBackbone,
        "specs",
        lambda config, inputs, facts: {"pooled": original(config, inputs, facts)["pooled"]},
    )
    monkeypatch.setattr(MlpHead, "accepts", (Kind.TOKENS,))
    (finding,) = wrong({})
    assert "head `mlp` reads tokens, but backbone `proprio` publishes pooled" in finding.message
    ((_, label),) = finding.related
    assert label == "publishes pooled"


def test_an_output_that_the_head_cannot_read(wrong: Wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MlpHead, "accepts", (Kind.POOLED,))
    (finding,) = wrong({"policy.head.reads": ["vision.tokens", "proprio"]})
    assert finding.span.text == '"vision.tokens"'
    assert "cannot read `tokens`" in finding.message


def test_language_without_its_collator(wrong: Wrong, tmp_path: Any) -> None:
    text = BACKBONES.get("language").example().model_dump()
    (finding,) = wrong({"policy.backbones.text": text})
    assert "token ids" in finding.message
    assert "collator: {type: language" in finding.help


def test_a_camera_the_dataset_lacks(wrong: Wrong) -> None:
    (finding,) = wrong({"data.cameras": ["corner"]})
    assert (finding.span.text, finding.help) == ('"corner"', "did you mean `corner2`?")


def test_all_that_the_data_lacks_at_once(wrong: Wrong) -> None:
    found = wrong({"data.cameras": ["corner"], "data.episodes": [0, 77], "data.horizon": 1000})
    assert [finding.span.text for finding in found] == ["1000", "77", '"corner"']
    assert "set `data.horizon` to" in found[0].help


def test_a_camera_or_an_episode_twice(wrong: Wrong) -> None:
    found = wrong({"data.cameras": ["corner2", "corner2"], "data.episodes": [0, 1, 0]})
    assert {finding.message for finding in found} == {
        "`data.cameras` must not contain duplicates",
        "`data.episodes` must not contain duplicates",
    }


def test_a_batch_larger_than_the_training_split(wrong: Wrong) -> None:
    (finding,) = wrong({"data.episodes": [0, 1], "data.validation": 0.5, "training.batch_size": 120})
    assert (finding.code, finding.span.text) == ("E023 bad-dataset", "120")
    assert "in 1 of 50 episodes" in finding.label
    assert "set `training.batch_size` to" in finding.help


def image(**options: Any) -> dict[str, Any]:
    return {"type": "normalize_image", **options}


@pytest.mark.parametrize(
    ("transforms", "place", "message", "cure"),
    [
        ([image(), {"type": "color_jitter"}], '"color_jitter"', "`color_jitter` changes", "put it before"),
        (
            [image(), {"type": "resize", "size": 32}, {"type": "color_jitter"}],
            '"color_jitter"',
            "`color_jitter` changes",
            "put it before",
        ),
        ([image(), image(stats="half")], '"half"', "corner2` is already normalized", "remove one of the two"),
        (
            [image(), {"type": "normalize"}, {"type": "normalize", "keys": ["action"]}],
            '"action"',
            "`action` is already normalized",
            "remove one of the two",
        ),
    ],
)
def test_transforms_in_an_order_that_spoils_the_values(
    transforms: list[dict[str, Any]], place: str, message: str, cure: str, wrong: Wrong
) -> None:
    (finding,) = wrong({"transforms": transforms})
    assert finding.code == "E020 bad-wiring"
    assert message in finding.message
    assert cure in finding.help
    lines = finding.span.source.lines
    assert any(place in line for line in lines[finding.span.line - 1 : finding.span.line + 4])
    ((span, label),) = finding.related
    assert span.line < finding.span.line
    assert label.endswith("is normalized here")


@pytest.mark.parametrize(
    "transforms",
    [
        [{"type": "color_jitter"}, image(stats="zero_one"), {"type": "color_jitter"}, image()],
        [image(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0]), image(), {"type": "crop", "size": 32}],
        [
            image(),
            {"type": "normalize", "modes": {"action": "identity"}},
            {"type": "normalize", "keys": ["action"]},
        ],
    ],
)
def test_transforms_in_an_order_that_works(tiny: dict[str, Any], transforms: list[dict[str, Any]]) -> None:
    Builder.from_recipe({**tiny, "transforms": transforms}).check()


def test_a_size_that_clashes_after_normalising_still_points_at_the_resize(wrong: Wrong) -> None:
    (finding,) = wrong({"transforms": [{"type": "resize", "size": 40}, image()]})
    ((span, label),) = finding.related
    assert '"resize"' in "".join(span.source.lines[span.line - 1 : span.line + 1])
    assert "image (B, 1, 3, 40, 40)" in label


def test_stochastic_depth_of_a_model_without_it(wrong: Wrong) -> None:
    vgg = {"type": "timm", "name": "vgg11", "drop_path": 0.1}
    (finding,) = wrong({"policy.backbones.vision": vgg, "transforms.1.size": 224})
    assert "`vgg11` has no stochastic depth" in finding.message
    assert (finding.span.text, finding.help[:22]) == ("0.1", "leave `drop_path` out,")


@pytest.mark.parametrize("error", [TypeError("no such option"), SpecError("too small", help="enlarge it")])
def test_a_part_that_cannot_be_built_is_named(
    error: Exception, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, config: Any, inputs: Any, facts: Any) -> None:
        raise error

    monkeypatch.setattr(MlpBackbone, "__init__", fail)
    (finding,) = wrong({})
    assert finding.span.text.startswith('"proprio"')
    assert finding.help == ("enlarge it" if isinstance(error, SpecError) else "the recipe is not at fault")
    assert str(error).partition(" (")[0] in finding.message


def test_more_executed_than_predicted(wrong: Wrong) -> None:
    (finding,) = wrong({"policy.execute": 5})
    assert finding.span.text == "5"
    assert [span.text for span, _ in finding.related] == ["4"]


def test_actions_of_the_past_are_not_executed(wrong: Wrong) -> None:
    (finding,) = wrong({"policy.execute": 4, "data.past_actions": 1})
    assert (
        finding.message
        == "`policy.execute`: cannot execute 4 actions of a chunk of 4, of which 1 lies in the past"
    )
    (finding,) = wrong({"policy.execute": None, "data.past_actions": 4})
    assert finding.message == "`data.past_actions`: of a chunk of 4 actions, 4 lie in the past"
    assert finding.span.text == "4"


def test_a_prefix_is_not_given_in_the_past(wrong: Wrong) -> None:
    head = {"type": "flow_matching", "network": {"type": "dit", "width": 16, "depth": 1, "heads": 2}}
    changes = {"policy.head": {**head, "delay": {"max": 2}}, "data.past_actions": 1, "policy.execute": 2}
    (finding,) = wrong(changes)
    assert finding.span.text == '"delay"'
    assert finding.help == "set `data.past_actions: 0`, or leave `delay` out"


@pytest.mark.parametrize("executed", [None, 2])
def test_predictions_that_do_not_overlap_are_not_averaged(executed: int | None, wrong: Wrong) -> None:
    (finding,) = wrong({"policy.execute": executed, "policy.ensemble": 0.01})
    assert finding.span.text == "0.01"
    assert finding.help == "set `policy.execute: 1`"
    assert [span.text for span, _ in finding.related] == ([] if executed is None else ["2"])


@pytest.mark.parametrize(
    "changes",
    [
        {"policy.freeze": ["backbones.vison.*"]},
        {"training.optimizer": {"groups": [{"match": "backbones.vison.*"}]}},
    ],
)
def test_a_pattern_that_matches_nothing(changes: dict[str, Any], wrong: Wrong) -> None:
    (finding,) = wrong(changes)
    assert "no parameter matches `backbones.vison.*`" in finding.message
    assert "backbones.vison" in finding.span.source.lines[finding.span.line - 1]
    assert "`backbones.vision." in finding.help


def test_a_group_whose_parameters_belong_to_earlier_groups(wrong: Wrong) -> None:
    groups = [{"match": "*", "lr_scale": 0.5}, {"match": "head.*", "lr_scale": 0.1}]
    (finding,) = wrong({"training.optimizer": {"groups": groups}})
    assert "all parameters that match `head.*` belong to earlier groups" in finding.message


def test_nothing_left_to_train(wrong: Wrong) -> None:
    (finding,) = wrong({"policy.freeze": ["*"]})
    assert "every parameter is frozen" in finding.message


def test_everything_wrong_with_the_parts_at_once(wrong: Wrong) -> None:
    """Two backbones that do not fit, a head that reads a third, and too many actions."""
    found = wrong(
        {
            "policy.backbones.proprio.in_dim": 7,
            "policy.backbones.vision.patch_size": 7,
            "policy.head.reads": ["vision", "proprio", "memory"],
            "policy.execute": 9,
        }
    )
    assert [finding.span.text for finding in found] == ["9", "7", "7", '"memory"']


def test_images_that_are_still_bytes_name_the_cure(wrong: Wrong, tiny: dict[str, Any]) -> None:
    (finding,) = wrong({"transforms": [tiny["transforms"][1], tiny["transforms"][3]]})
    assert "normalize_image" in finding.help
    assert finding.span.text.startswith('"vision"')


@pytest.mark.parametrize("defect", ["shape", "crash", "mask", "missing"])
def test_a_backbone_that_breaks_its_word_is_at_fault(
    defect: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, observations: Any, outputs: Any) -> Any:
        if defect == "crash":
            raise AttributeError("no such thing")
        values = torch.zeros(2, 9 if defect == "shape" else 8, device="meta")
        mask = torch.ones(2, 3, dtype=torch.bool, device="meta") if defect == "mask" else None
        return {} if defect == "missing" else {"pooled": Feature(values, mask)}

    monkeypatch.setattr(MlpBackbone, "forward", forward)
    (finding,) = wrong({})
    assert finding.label == "a defect of this part"
    assert finding.span.text.startswith('"proprio"')
    if defect == "shape":
        assert "published pooled (B, 8) for `proprio.pooled` but returns (2, 9)" in finding.message


def test_a_backbone_may_select_by_a_mask(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As vision towers of transformers do with patches, although torch has no masks on the meta device."""
    plain = MlpBackbone.forward

    def forward(self: Any, observations: Any, outputs: Any) -> Any:
        found = plain(self, observations, outputs)
        values = found["pooled"].values
        return {"pooled": Feature(values[torch.ones(len(values), dtype=torch.bool, device=values.device)])}

    monkeypatch.setattr(MlpBackbone, "forward", forward)
    Builder.from_recipe(tiny).check()


@pytest.mark.parametrize("method", ["sample", "loss"])
def test_a_head_that_breaks_its_word_is_at_fault(
    method: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        MlpHead, method, lambda *arguments: torch.zeros(2, 4, 5) if method == "sample" else {}
    )
    (finding,) = wrong({})
    assert finding.label == "a defect of this part"
    assert finding.span.text.startswith('"head"')


def test_checking_allocates_nothing(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter of a check is on meta, of a policy far larger than memory too."""
    tiny["policy"]["head"] = {"type": "mlp", "hidden": [3_000_000, 3_000_000]}
    made: set[str] = set()
    original = torch.nn.Parameter.__new__

    def watch(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        made.add(data.device.type)
        return original(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", watch)
    summary = Builder.from_recipe(tiny).check().summary
    assert made == {"meta"}
    assert summary is not None
    assert summary.parameters > 9e12


def recipe_parts(widths: dict[str, int], reads: list[str] | None, head: str = "mlp") -> Parts:
    return Parts.from_resolved(
        {
            "collator": {"type": "default"},
            "transforms": [],
            "policy": {
                "backbones": {name: {"type": "mlp", "width": width} for name, width in widths.items()},
                "head": {"type": head, "reads": reads},
            },
        }
    )


names = st.text("abcdef", min_size=1, max_size=4)


@settings(max_examples=30)
@given(st.dictionaries(names, st.integers(1, 64), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_wiring_does_not_depend_on_the_order_of_a_mapping(widths: dict[str, int], random: Any) -> None:
    """And what the head reads has the width of all that is published."""
    shuffled = list(widths.items())
    random.shuffle(shuffled)
    one = wire(recipe_parts(widths, None), OBSERVATIONS, {})
    other = wire(recipe_parts(dict(shuffled), None), dict(reversed(OBSERVATIONS.items())), {})
    assert list(one.features.items()) == list(other.features.items())
    assert list(one.collated) == list(other.collated)
    assert sum(spec.width for spec in one.features.values()) == sum(widths.values())
    assert one.action == OBSERVATIONS["action"]


@settings(max_examples=30)
@given(
    st.dictionaries(names, st.integers(1, 64), min_size=1, max_size=4),
    st.lists(names, min_size=1, max_size=4),
)
def test_reads_name_each_backbone_once_or_are_refused(widths: dict[str, int], reads: list[str]) -> None:
    parts = recipe_parts(widths, reads)
    if sorted(reads) == sorted(widths):
        assert list(wire(parts, OBSERVATIONS, {}).features) == [f"{name}.pooled" for name in reads]
        return
    with pytest.raises(WiringError) as caught:
        wire(parts, OBSERVATIONS, {})
    unknown = [name for name in reads if name not in widths]
    unread = set(widths) - set(reads)
    twice = len(reads) - len(set(reads)) - (len(unknown) - len(set(unknown)))
    assert len(caught.value.problems) == len(unknown) + len(unread) + twice


def test_a_head_takes_the_output_that_it_likes_best() -> None:
    assert list(wire(recipe_parts({"a": 4}, None), OBSERVATIONS, {}).features) == ["a.pooled"]
    flow = wire(recipe_parts({"a": 4}, None, "flow_matching"), OBSERVATIONS, {})
    assert list(flow.features) == ["a.tokens"]


def test_collators_are_wired_before_backbones(tmp_path: Any) -> None:
    collator = COLLATORS.get("language").example()
    parts = Parts.from_resolved(
        {
            "collator": collator.model_dump(),
            "transforms": [],
            "policy": {
                "backbones": {"state": {"type": "mlp", "width": 4}},
                "head": {"type": "mlp"},
            },
        }
    )
    wiring = wire(parts, OBSERVATIONS, {"collator": {"vocab_size": 7}})
    assert wiring.collated["task.input_ids"].vocab == 7
    assert wiring.into(0) is wiring.collated
