"""Several robots: values by the statistics of each, and projections that belong to one of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policysmith.components.base import Feature
from policysmith.components.embodiments import embodiments, facts_by_robot
from policysmith.components.heads.flow_matching import FlowMatching
from policysmith.components.heads.mlp import MlpHead
from policysmith.components.networks.dit import Dit
from policysmith.components.transforms.normalize import Normalize
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

WIDTHS = {
    "arm": {"observation.state": 3, "action": 2},
    "dog": {"action": 4},
    "fly": {"observation.state": 5, "action": 1},
}
INPUTS = {
    "observation.state": Spec(Kind.STATE, ("B", 1, 5)),
    "action": Spec(Kind.ACTION, ("B", 4, 4)),
    "embodiment": Spec(Kind.EMBODIMENT, ("B",), vocab=3),
}
IDS = torch.tensor([2, 0, 1, 0, 2, 1])


def statistics(seed: int = 0) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)

    def of(width: int) -> dict[str, list[float]]:
        low, spread = torch.randn(width, generator=random) * 9, torch.rand(width, generator=random) * 5 + 0.1
        high = low + spread
        return {
            name: values.tolist()
            for name, values in {
                "mean": low, "std": spread, "min": low, "max": high, "q01": low, "q99": high,
            }.items()
        }  # fmt: skip

    return {robot: {key: of(width) for key, width in widths.items()} for robot, widths in WIDTHS.items()}


def batch(seed: int = 0, filling: float = 0.0) -> dict[str, torch.Tensor]:
    """Return values whose dimensions beyond the robot's own are `filling`."""
    random = torch.Generator().manual_seed(seed)
    made = {
        "observation.state": torch.randn(6, 1, 5, generator=random) * 9,
        "action": torch.randn(6, 4, 4, generator=random) * 9,
    }
    for key, values in made.items():
        for row, number in enumerate(IDS.tolist()):
            values[row, :, list(WIDTHS.values())[number].get(key, 0) :] = filling
    return {**made, "embodiment": IDS}


def normalize(mode: str, inputs: Any = INPUTS, facts: Any = None) -> Normalize:
    config = Normalize.Config.model_validate({"type": "normalize", "mode": mode})
    return Normalize(config, inputs, {"statistics": statistics()} if facts is None else facts)


@pytest.mark.parametrize("mode", ["mean_std", "min_max"])
@settings(max_examples=25)
@given(seed=st.integers(0, 1000))
def test_each_sample_is_normalized_as_its_robot_alone_would_be(mode: str, seed: int) -> None:
    together, given_batch = normalize(mode), batch(seed)
    result = together(given_batch)
    back = together.inverse(result)
    for row, number in enumerate(IDS.tolist()):
        name = list(WIDTHS)[number]
        for key in ("observation.state", "action"):
            width = WIDTHS[name].get(key, 0)
            if width:
                own = {key: Spec(INPUTS[key].kind, (*INPUTS[key].dims[:2], width))}
                alone = normalize(mode, own, {"statistics": statistics()[name]})
                expected = alone({key: given_batch[key][row : row + 1, :, :width]})[key][0]
                assert torch.equal(result[key][row, :, :width], expected)
            assert not result[key][row, :, width:].any()
            torch.testing.assert_close(back[key][row], given_batch[key][row], rtol=1e-4, atol=1e-4)


def test_what_stands_in_dimensions_that_a_robot_does_not_have_is_forgotten() -> None:
    for transform in (normalize("mean_std"), normalize("min_max")):
        clean, dirty = transform(batch()), transform(batch(filling=torch.nan))
        back = transform.inverse(
            {**clean, "action": torch.where(clean["action"] == 0.0, 7.0, clean["action"])}
        )
        for key in ("observation.state", "action"):
            assert torch.equal(clean[key], dirty[key])
        assert torch.equal(back["action"] == 0.0, batch()["action"] == 0.0)


def test_a_batch_without_robots_is_refused() -> None:
    with pytest.raises(SpecError, match=r"lacks `embodiment`.*sorted names"):
        normalize("mean_std")({"action": torch.zeros(1, 4, 4)})


def test_statistics_that_are_wider_than_the_common_vectors_are_refused() -> None:
    facts = {"statistics": statistics()}
    facts["statistics"]["dog"]["action"]["mean"] += [0.0]
    with pytest.raises(SpecError, match="5 dimensions, its values have 4"):
        normalize("mean_std", facts=facts)


def test_facts_of_one_robot_are_the_facts() -> None:
    alone = {key: spec for key, spec in INPUTS.items() if key != "embodiment"}
    facts = {"statistics": {"action": {}}, "other": 1}
    assert facts_by_robot(alone, facts) == [facts]
    assert embodiments(alone) is None
    assert [own["statistics"].keys() for own in facts_by_robot(INPUTS, {"statistics": statistics()})] == [
        WIDTHS[name].keys() for name in sorted(WIDTHS)
    ]


HEAD_INPUTS = {
    "vision.tokens": Spec(Kind.TOKENS, ("B", 6, 10)),
    "state.pooled": Spec(Kind.POOLED, ("B", 7)),
    **INPUTS,
}
del HEAD_INPUTS["observation.state"]
CONFIGS = {
    "mlp": MlpHead.Config(type="mlp", hidden=[16, 16], per_embodiment=True),
    "linear": MlpHead.Config(type="mlp", hidden=[], per_embodiment=True),
    "dit": FlowMatching.Config(
        type="flow_matching", steps=3, repeats=2,
        network=Dit.Config(type="dit", width=16, depth=1, heads=2, per_embodiment=True),
    ),
}  # fmt: skip
OWN = {
    "mlp": ["layers.layers.0", "layers.layers.4"],
    "linear": ["layers.layers.0"],
    "dit": ["network.action_in", "network.action_out"],
}


def head(kind: str) -> Any:
    torch.manual_seed(0)
    part = (FlowMatching if kind == "dit" else MlpHead)(CONFIGS[kind], HEAD_INPUTS, {})  # type: ignore[arg-type]
    for parameter in part.parameters():  # those that start at zero would pass no gradient on
        torch.nn.init.normal_(parameter, std=0.2)
    return part


def features(ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Feature]:
    random, count = torch.Generator().manual_seed(1), len(ids)
    padding = torch.arange(4) >= torch.tensor([2, 4, 1])[ids][:, None]
    return {
        "vision.tokens": Feature(torch.randn(count, 6, 10, generator=random).to(dtype)),
        "state.pooled": Feature(torch.randn(count, 7, generator=random).to(dtype)),
        "embodiment": Feature(ids),
        "action_dim_is_pad": Feature(padding),
    }


def loss(part: Any, ids: torch.Tensor, filling: float = 0.0) -> torch.Tensor:
    given_features = features(ids)
    is_pad = given_features["action_dim_is_pad"].values[:, None].expand(-1, 4, -1)
    actions = torch.randn(len(ids), 4, 4, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    result: torch.Tensor = part.loss(given_features, torch.where(is_pad, filling, actions), is_pad)["loss"]
    return result


@pytest.mark.parametrize("kind", CONFIGS)
def test_projections_of_a_robot_learn_from_its_own_samples_alone(kind: str) -> None:
    part = head(kind)
    loss(part, torch.tensor([2, 0, 2, 0])).backward()
    found = dict(part.named_parameters())
    for name in OWN[kind]:
        for gradient in (found[f"{name}.weight"].grad, found[f"{name}.bias"].grad):
            assert gradient.shape[0] == 3
            assert gradient[[0, 2]].flatten(1).any(1).all()
            assert not gradient[1].any()
    shared = [n for n in found if not any(n.startswith(name) for name in OWN[kind])]
    assert all(found[name].shape[0] != 3 for name in shared)


@pytest.mark.parametrize("kind", CONFIGS)
def test_dimensions_that_a_robot_does_not_have_reach_neither_loss_nor_gradient(kind: str) -> None:
    results = []
    for filling in (0.0, 1e4, torch.nan):
        part = head(kind)
        value = loss(part, IDS, filling)
        value.backward()
        results.append((value, [parameter.grad for parameter in part.parameters()]))
    for value, gradients in results[1:]:
        assert torch.equal(value, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0][1], strict=True))
    weight = dict(part.named_parameters())[f"{OWN[kind][-1]}.weight"].grad
    narrow = weight[2].reshape(weight.shape[1], -1, 4)  # robot 2 has one dimension of four
    assert narrow[..., 0].any()
    assert not narrow[..., 1:].any()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_sample_is_that_of_its_robot_in_whatever_company(kind: str, dtype: torch.dtype) -> None:
    part = head(kind).to(dtype)

    def sampled(ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = part.sample(features(ids, dtype), torch.Generator().manual_seed(0))
        assert result.isfinite().all()
        return result

    one = sampled(torch.tensor([0, 0, 2]))
    other = sampled(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(one[[0, 2]], other[[0, 2]])
    assert (one[1] != other[1]).any()


@pytest.mark.parametrize("kind", CONFIGS)
def test_projections_by_robot_need_robots(kind: str) -> None:
    inputs = {key: spec for key, spec in HEAD_INPUTS.items() if key != "embodiment"}
    with pytest.raises(SpecError, match="which robot a sample is from") as caught:
        type(head(kind)).specs(CONFIGS[kind], inputs, {})
    assert caught.value.field == ("network.per_embodiment" if kind == "dit" else "per_embodiment")
    assert "data.sources" in caught.value.help
