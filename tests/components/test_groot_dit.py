"""GR00T's transformer against its formulas in float64, token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.networks.groot_dit import GrootDit
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

WIDTH, HEADS, HIDDEN, HORIZON, ACTION = 16, 2, 12, 4, 3
SPECS = {
    "vlm.tokens": Spec(Kind.TOKENS, ("B", 5, 10)),
    "text.tokens": Spec(Kind.TOKENS, ("B", 3, 8)),
    "proprio.pooled": Spec(Kind.POOLED, ("B", 7)),
    "action": Spec(Kind.ACTION, ("B", HORIZON, ACTION)),
}
ROBOTS = {"embodiment": Spec(Kind.EMBODIMENT, ("B",), vocab=3)}
ROBOT = torch.tensor([2, 0, 2])


def specs(*keys: str, robots: bool = False) -> dict[str, Spec]:
    return {**{key: SPECS[key] for key in (*keys, "action")}, **(ROBOTS if robots else {})}


def features() -> dict[str, Feature]:
    return {
        "vlm.tokens": Feature(torch.randn(3, 5, 10), torch.arange(5) < torch.tensor([[5], [2], [4]])),
        "text.tokens": Feature(torch.randn(3, 3, 8), torch.arange(3) > torch.tensor([[-1], [0], [1]])),
        "proprio.pooled": Feature(torch.randn(3, 7)),
        "embodiment": Feature(ROBOT),
    }


def make(inputs: dict[str, Spec], told: str = "unit", **options: Any) -> GrootDit:
    sizes = {"type": "groot_dit", "width": WIDTH, "heads": HEADS, "hidden": HIDDEN, "depth": 5}
    config = GrootDit.Config.model_validate({**sizes, **options})
    GrootDit.specs(config, inputs, {"time": told})
    part = GrootDit(config, inputs, {"time": told}).eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return part


def normal(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + eps)


def reference(
    part: GrootDit,
    row: int,
    chunk: Tensor,
    step: int,
    states: list[Tensor],
    contexts: list[tuple[Tensor, Tensor]],
    shown: list[bool],
    robot: int | None,
) -> Tensor:
    """Prediction (H, A) of one sample; `contexts` are tokens (N, C) with masks (N,), one for each turn."""
    w = {key: value.double() for key, value in part.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return weight @ x + bias if weight.ndim == 2 else x @ weight[robot] + bias[robot]

    def two(name: str, x: Tensor, act: Any) -> Tensor:
        return linear(f"{name}.layers.1", act(linear(f"{name}.layers.0", x)))

    tau = [step * 10_000 ** (-2 * i / WIDTH) for i in range(WIDTH // 2)]
    tau = torch.tensor([*map(math.sin, tau), *map(math.cos, tau)], dtype=torch.float64)
    frequencies = [step * 10_000 ** (-i / 127) for i in range(128)]
    told = torch.tensor([*map(math.cos, frequencies), *map(math.sin, frequencies)], dtype=torch.float64)
    condition = F.silu(linear("time.2", F.silu(linear("time.0", told))))

    tokens = [two("states.proprio_pooled", state, torch.relu) for state in states]
    if part.config.queries:
        tokens += list(w["queries"][0])
    before = len(tokens)
    for i, action in enumerate(chunk.double()):
        pair = torch.cat([linear("action_in", action), tau])
        tokens.append(two("action_mlp", pair, F.silu) + w["action_positions"][0, i])
    valid = [True] * before + [shown[i] or i == 0 for i in range(HORIZON)]
    for index in range(part.config.depth):
        name = f"blocks.{index}"
        scale, shift = linear(f"{name}.modulation", condition).chunk(2)
        queries = [normal(x, 1e-5) * (1 + scale) + shift for x in tokens]
        seen = [x for x, ok in zip(queries, valid, strict=True) if ok]
        if index % 2 == 0:
            context, mask = contexts[index // 2 % len(contexts)]
            seen = [x for x, ok in zip(context.double(), mask, strict=True) if ok]
        pairs = [linear(f"{name}.attention.key_value", x).chunk(2) for x in seen]
        following = []
        for x, query in zip(tokens, queries, strict=True):
            asked, heads = linear(f"{name}.attention.query", query), []
            for head in range(HEADS):
                part_of = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                scores = torch.stack([asked[part_of] @ key[part_of] for key, _ in pairs])
                weights = (scores / math.sqrt(WIDTH // HEADS)).softmax(0)
                heads.append(sum(p * value[part_of] for p, (_, value) in zip(weights, pairs, strict=True)))
            x = x + linear(f"{name}.attention.out", torch.cat(heads))  # type: ignore[arg-type]
            hidden = F.gelu(linear(f"{name}.mlp.0", normal(x, 1e-5)), approximate="tanh")
            following.append(x + linear(f"{name}.mlp.3", hidden))
        tokens = following
    shift, scale = linear("modulation", condition).chunk(2)
    out = [linear("out", normal(x, 1e-6) * (1 + scale) + shift) for x in tokens[before:]]
    return torch.stack([two("action_out", x, torch.relu) for x in out])


@pytest.mark.parametrize("robots", [False, True])
@pytest.mark.parametrize("attend", ["together", "in_turn"])
def test_it_is_the_formula(robots: bool, attend: str) -> None:
    turns = ("vlm.tokens", "text.tokens") if attend == "in_turn" else ("vlm.tokens",)
    inputs = specs(*turns, "proprio.pooled", robots=robots)
    part, given = make(inputs, attend=attend, queries=2 if robots else 0), features()
    chunk, time = torch.randn(3, HORIZON, ACTION), torch.tensor([0.0, 0.3337, 0.9989])
    is_pad = torch.arange(HORIZON) >= torch.tensor([[4], [2], [0]])
    out = part(chunk, time, part.encode(given), is_pad)
    assert out.dtype == torch.float32
    for row in range(3):
        contexts = [(given[key].values[row], given[key].mask[row]) for key in turns]  # type: ignore[index]
        expected = reference(
            part,
            row,
            chunk[row],
            int(time[row] * 1000),
            [given["proprio.pooled"].values[row].double()],
            contexts,
            (~is_pad[row]).tolist(),
            ROBOT[row].item() if robots else None,  # type: ignore[arg-type]
        )
        torch.testing.assert_close(out[row], expected.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [4, 10, 20, 37])
def test_steps_of_sampling_are_those_of_the_original(count: int) -> None:
    """Round k / N of 1000 down, whatever float32 makes of k / N."""
    part = make(specs("vlm.tokens"))
    context = part.encode(features())
    chunk = torch.randn(3, HORIZON, ACTION)
    by_step = make(specs("vlm.tokens"), told="steps")
    by_step.load_state_dict(part.state_dict())
    for k in range(count):
        time = torch.full((3,), 1.0 - (1.0 - k / count))
        expected = by_step(chunk, torch.full((3,), float(int(k / count * 1000))), context)
        assert torch.equal(part(chunk, time, context), expected)


def test_what_stands_in_the_sequence_can_be_named() -> None:
    inputs = specs("vlm.tokens", "text.tokens", "proprio.pooled")
    named = make(inputs, sequence=["text"], attend="in_turn")
    context = named.encode(features())
    assert context["tokens"].shape == (3, 3, WIDTH)
    assert "tokens_mask" in context
    assert context["seen0"].shape == (3, 5, 10)
    assert context["seen1"].shape == (3, 1, 7)


def test_robots_do_not_share_encoders() -> None:
    part, given = make(specs("vlm.tokens", "proprio.pooled", robots=True)), features()
    chunk, time = torch.randn(1, HORIZON, ACTION).expand(3, -1, -1), torch.full((3,), 0.5)
    same = {key: Feature(f.values[:1].expand_as(f.values)) for key, f in given.items()} | {
        "embodiment": given["embodiment"]
    }
    first, second, third = part(chunk, time, part.encode(same))
    torch.testing.assert_close(first, third)
    assert not torch.allclose(first, second)


def test_dropout_is_of_training_alone() -> None:
    part, given = make(specs("vlm.tokens"), dropout=0.5), features()
    chunk, time, context = torch.randn(3, HORIZON, ACTION), torch.rand(3), part.encode(given)
    assert torch.equal(part(chunk, time, context), part(chunk, time, context))
    part.train()
    assert not torch.equal(part(chunk, time, context), part(chunk, time, context))


@pytest.mark.parametrize(
    ("keys", "options", "field", "message"),
    [
        (("vlm.tokens",), {"heads": 3}, "width", "16 cannot be shared by 3 heads"),
        (("vlm.tokens",), {"width": 15, "heads": 5}, "width", "15 cannot be shared by 5 heads"),
        (("proprio.pooled",), {}, None, r"nothing to attend to: proprio\.pooled are"),
        (("vlm.tokens",), {"sequence": ["vlm"]}, "sequence", "nothing to attend to"),
        (("vlm.tokens",), {"sequence": ["proprio"]}, "sequence.0", "`proprio` is not among"),
        (("vlm.tokens", "text.tokens"), {}, "attend", r"vlm\.tokens has 10, text\.tokens has 8"),
        (
            ("vlm.tokens", "text.tokens"),
            {"attend": "in_turn", "depth": 2},
            "depth",
            "2 layers do not attend to 2",
        ),
    ],
)
def test_what_does_not_fit_is_told(keys: Any, options: Any, field: str | None, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make(specs(*keys), **options)
    assert caught.value.field == field
    assert caught.value.help
