"""Parallel decoding against its formula, and tokens that cannot be dealt to steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.heads.oft import Oft
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

ACTION = {"action": Spec(Kind.ACTION, ("B", 4, 3))}


def norm(values: Tensor) -> Tensor:
    return (values - values.mean(-1, keepdim=True)) / (
        values.var(-1, keepdim=True, correction=0) + 1e-5
    ).sqrt()


@pytest.mark.parametrize("each", [1, 3])
def test_each_step_is_predicted_from_its_own_tokens(each: int) -> None:
    inputs = {"vlm.queries": Spec(Kind.TOKENS, ("B", 4 * each, 6)), **ACTION}
    part = Oft(Oft.Config(type="oft"), inputs, {}).double()
    tokens = torch.randn(2, 4 * each, 6).double()
    predicted = part.sample({"vlm.queries": Feature(tokens)})
    for step in range(4):
        mine = tokens[:, step * each : (step + 1) * each].flatten(1)
        hidden = F.relu(norm(mine) @ part.linear_in.weight.T + part.linear_in.bias)
        for block in part.residual:
            hidden = hidden + F.relu(norm(hidden) @ block[1].weight.T + block[1].bias)  # type: ignore[index]
        expected = norm(hidden) @ part.linear_out.weight.T + part.linear_out.bias
        torch.testing.assert_close(predicted[:, step], expected)


def test_the_hidden_size_is_that_of_a_token() -> None:
    inputs = {"vlm.queries": Spec(Kind.TOKENS, ("B", 8, 6)), **ACTION}
    assert Oft(Oft.Config(type="oft"), inputs, {}).linear_in.weight.shape == (6, 12)


@pytest.mark.parametrize("count", [6, "L"])
def test_tokens_that_cannot_be_dealt_to_the_steps(count: Any) -> None:
    with pytest.raises(SpecError, match="cannot be divided among the 4 steps") as caught:
        Oft.specs(Oft.Config(type="oft"), {"vlm.queries": Spec(Kind.TOKENS, ("B", count, 6)), **ACTION}, {})
    assert caught.value.source == "vlm.queries"
    assert "queries: 4" in caught.value.help
