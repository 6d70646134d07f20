"""The expert beside a language model, against both streams written out in float64, token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.kernels import cached_attention, few_rows
from policysmith.components.networks.expert import Expert
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

LAYERS, GROUPS, SIZE, HEADS, PREFIX, STATES, HORIZON, ACTION, WIDTH = 3, 2, 6, 4, 5, 2, 4, 3, 16
BASE = 100.0
SPECS = {
    "vlm.key_values": Spec(Kind.KEY_VALUES, ("B", LAYERS, 2, GROUPS, PREFIX, SIZE), rope=BASE),
    "proprio.tokens": Spec(Kind.TOKENS, ("B", STATES, 7)),
    "action": Spec(Kind.ACTION, ("B", HORIZON, ACTION)),
}
SMALL = {"type": "expert", "width": WIDTH, "hidden": 20, "heads": HEADS}


def make(specs: dict[str, Spec] | None = None, told: str = "unit", **options: Any) -> Expert:
    config, specs = Expert.Config.model_validate({**SMALL, **options}), specs or SPECS
    Expert.specs(config, specs, {"time": told})
    part = Expert(config, specs, {"time": told})
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return part


# --- both streams, written out -----------------------------------------------------------------------------------


def rms(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps)


def turned(head: Tensor, position: float) -> Tensor:
    """Rotate one head at one position, plane by plane of coordinates (i, i + E / 2)."""
    half, out = len(head) // 2, head.clone()
    for i in range(half):
        angle = position * BASE ** (-2 * i / len(head))
        out[i] = head[i] * math.cos(angle) - head[i + half] * math.sin(angle)
        out[i + half] = head[i + half] * math.cos(angle) + head[i] * math.sin(angle)
    return out


@dataclass
class Model:
    """A language model of our own: weights of each layer, and the embeddings of a prefix."""

    layers: list[dict[str, Tensor]]
    prefix: Tensor

    @classmethod
    def random(cls) -> Model:
        width = 8
        shapes = {"query": HEADS * SIZE, "key": GROUPS * SIZE, "value": GROUPS * SIZE, "up": 12}
        layers = [
            {
                **{name: torch.randn(out, width).double() / 3 for name, out in shapes.items()},
                "out": torch.randn(width, HEADS * SIZE).double() / 5,
                "down": torch.randn(width, 12).double() / 3,
            }
            for _ in range(LAYERS)
        ]
        return cls(layers, torch.randn(3, PREFIX, width).double())


def double(part: Expert) -> dict[str, Tensor]:
    return {key: value.double() for key, value in part.state_dict().items()}


def normed(part: Expert, w: dict[str, Tensor], name: str, x: Tensor, condition: Tensor | None) -> Any:
    gemma = part.config.family == "gemma"
    if condition is None:
        return rms(x, 1e-6 if gemma else 1e-5) * (w[f"{name}.weight"] + gemma), torch.ones_like(x)
    made = w[f"{name}.modulation.weight"] @ condition + w[f"{name}.modulation.bias"]
    scale, shift, gate = made.chunk(3)
    return rms(x, 1e-6) * (1 + scale) + shift, gate


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", torch.zeros(()).double())


def attend(query: list[Tensor], keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Attend with the heads of one token over the keys that it sees, (heads * E,)."""
    out = []
    for head in range(HEADS):
        group = slice(head // (HEADS // GROUPS) * SIZE, (head // (HEADS // GROUPS) + 1) * SIZE)
        scores = torch.stack([query[head] @ key[group] for key in keys]) / math.sqrt(SIZE)
        out.append(sum(p * value[group] for p, value in zip(scores.softmax(0), values, strict=True)))
    return torch.cat(out)  # type: ignore[arg-type]


def turn_groups(x: Tensor, position: float) -> Tensor:
    return torch.cat([turned(head, position) for head in x.split(SIZE)])


def reference(
    part: Expert,
    model: Model,
    chunk: Tensor,
    time: float,
    row: int,
    seen: Tensor,
    known: Tensor,
    states: Tensor,
    shown: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run one sample through both streams at once: prediction (H, A), keys and values (L, 2, G, N, E)."""
    w, config = double(part), part.config
    half = WIDTH // 2
    periods = [4e-3 * (4.0 / 4e-3) ** (i / (half - 1)) for i in range(half)]
    angles = torch.tensor([2 * math.pi * time / period for period in periods], dtype=torch.float64)
    told = torch.cat([angles.sin(), angles.cos()])

    def by_time(x: Tensor) -> Tensor:
        return linear(w, "time.2", F.silu(linear(w, "time.0", x)))

    actions = [linear(w, "action_in", step) for step in chunk.double()]
    condition = None
    if config.time == "adarms":
        condition = F.silu(by_time(told))
    else:
        actions = [by_time(torch.cat([action, told])) for action in actions]
    tokens = [linear(w, "project.proprio_tokens", state) for state in states.double()] + actions
    prefix = list(model.prefix[row])
    stream = [*prefix, *tokens]
    valid = [*seen.tolist(), *known.tolist(), *shown.tolist()]
    places = (torch.tensor(valid).cumsum(0) - 1).double().tolist()
    places[-HORIZON:] = [sum(valid[:-HORIZON]) + step for step in range(HORIZON)]
    first = PREFIX + STATES

    def block(i: int) -> int:
        if i < PREFIX:
            return 0
        return 1 if i < first else (2 + i - first if config.action_attention == "causal" else 2)

    held = []
    for index in range(LAYERS):
        theirs, name = model.layers[index], f"layers.{index}."
        joint = index % config.joint_every == 0
        queries, keys, values, gates = [], [], [], []
        for i, x in enumerate(stream):
            if i < PREFIX:
                normal, gate = rms(x, 1e-6), torch.ones_like(x)
                q, k, v = (theirs[part] @ normal for part in ("query", "key", "value"))
            else:
                normal, gate = normed(part, w, f"{name}attention_norm", x, condition)
                q = linear(w, f"{name}query", normal)
                k, v = (
                    (linear(w, f"{name}key", normal), linear(w, f"{name}value", normal))
                    if joint
                    else (None, None)
                )
            place = places[i] if joint or i < PREFIX else places[i] - sum(valid[:PREFIX])
            queries.append([turned(head, place) for head in q.split(SIZE)])
            keys.append(None if k is None else turn_groups(k, places[i]))
            values.append(v)
            gates.append(gate)
        held.append(torch.stack([torch.stack(keys[:PREFIX]), torch.stack(values[:PREFIX])]))  # type: ignore[arg-type]
        following = []
        for i, x in enumerate(stream):
            ours = i >= PREFIX
            visible = [j for j in range(len(stream)) if (valid[j] and block(j) <= block(i)) or j == i]
            k, v = [keys[j] for j in visible], [values[j] for j in visible]
            if ours and not joint:
                inside = [j for j in range(PREFIX) if valid[j]]
                k = [linear(w, f"{name}key", keys[j]) for j in inside]
                v = [linear(w, f"{name}value", values[j]) for j in inside]
            mixed = attend(queries[i], k, v)  # type: ignore[arg-type]
            x = x + gates[i] * (linear(w, f"{name}out", mixed) if ours else theirs["out"] @ mixed)
            if ours:
                normal, gate = normed(part, w, f"{name}mlp_norm", x, condition)
                hidden = linear(w, f"{name}mlp.gate", normal)
                act = F.gelu(hidden, approximate="tanh") if config.family == "gemma" else F.silu(hidden)
                x = x + gate * linear(w, f"{name}mlp.down", act * linear(w, f"{name}mlp.up", normal))
            else:
                x = x + theirs["down"] @ torch.tanh(theirs["up"] @ rms(x, 1e-6))
            following.append(x)
        stream = following
    out = [linear(w, "action_out", normed(part, w, "norm", x, condition)[0]) for x in stream[-HORIZON:]]
    return torch.stack(out), torch.stack(held).unflatten(3, (GROUPS, SIZE)).transpose(2, 3)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"time": "adarms"},
    {"family": "llama", "action_attention": "causal", "joint_every": 2},
    {"time": "adarms", "joint_every": 3, "action_attention": "causal"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_one_sequence_through_two_streams(options: dict[str, Any], masked: bool) -> None:
    """The expert needs only the model's keys and values, because the model never sees the expert."""
    part, model = make(**options), Model.random()
    chunk, states = torch.randn(3, HORIZON, ACTION), torch.randn(3, STATES, 7)
    time = torch.tensor([0.0, 0.3, 1.0])
    seen = torch.ones(3, PREFIX, dtype=torch.bool)
    known = torch.ones(3, STATES, dtype=torch.bool)
    shown = torch.ones(3, HORIZON, dtype=torch.bool)
    if masked:
        seen[0, 2], seen[1, 3:], known[1, 0], known[2, 1], shown[0, 2:], shown[2] = (False,) * 6
    results = [
        reference(part, model, chunk[i], time[i].item(), i, seen[i], known[i], states[i], shown[i])
        for i in range(3)
    ]
    key_values = torch.stack([held for _, held in results]).float()
    features = {
        "vlm.key_values": Feature(key_values, seen if masked else None, seen.sum(1)),
        "proprio.tokens": Feature(states, known if masked else None),
    }
    out = part(chunk, time, part.encode(features), ~shown if masked else None)
    assert out.dtype == torch.float32
    counted = shown[..., None]
    expected = torch.stack([prediction for prediction, _ in results]).float()
    torch.testing.assert_close(out * counted, expected * counted, atol=2e-5, rtol=1e-4)


# --- what it does without --------------------------------------------------------------------------------------------


def features(states: bool, mask: bool) -> dict[str, Feature]:
    seen = torch.ones(3, PREFIX, dtype=torch.bool)
    found = {
        "vlm.key_values": Feature(
            torch.randn(3, LAYERS, 2, GROUPS, PREFIX, SIZE), seen if mask else None, torch.full((3,), PREFIX)
        )
    }
    return {**found, "proprio.tokens": Feature(torch.randn(3, STATES, 7))} if states else found


@pytest.mark.parametrize(
    ("states", "mask", "causal", "made"),
    [
        (False, False, False, False),
        (True, False, False, True),
        (False, True, False, True),
        (False, False, True, True),
    ],
)
def test_no_mask_is_made_where_all_see_all(
    states: bool, mask: bool, causal: bool, made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = SPECS if states else {key: spec for key, spec in SPECS.items() if key != "proprio.tokens"}
    part = make(specs, action_attention="causal" if causal else "bidirectional")
    given = []
    sdpa = F.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Tensor | None = None) -> Tensor:
        given.append(attn_mask)
        return sdpa(*args, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    part(torch.randn(3, HORIZON, ACTION), torch.rand(3), part.encode(features(states, mask)))
    assert [mask is not None for mask in given] == [made] * LAYERS


def test_every_token_sees_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where neither the model nor the chunk has a valid token, as kernels differ in what they make of that."""
    part, given = make(), features(states=False, mask=True)
    values, end = given["vlm.key_values"].values, given["vlm.key_values"].end
    nothing = {
        "vlm.key_values": Feature(values, torch.zeros(3, PREFIX, dtype=torch.bool), end),
        "proprio.tokens": Feature(torch.randn(3, STATES, 7), torch.zeros(3, STATES, dtype=torch.bool)),
    }
    sdpa = F.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Tensor) -> Tensor:
        assert attn_mask.any(-1).all()
        return sdpa(*args, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    hidden = torch.ones(3, HORIZON, dtype=torch.bool)
    assert part(torch.randn(3, HORIZON, ACTION), torch.rand(3), part.encode(nothing), hidden).isfinite().all()


def test_a_mask_of_ones_is_none() -> None:
    part, given = make(joint_every=2), features(states=True, mask=True)
    chunk, time = torch.randn(3, HORIZON, ACTION), torch.rand(3)
    plain = {
        **given,
        "vlm.key_values": Feature(given["vlm.key_values"].values, None, given["vlm.key_values"].end),
    }
    none = torch.zeros(3, HORIZON, dtype=torch.bool)
    torch.testing.assert_close(
        part(chunk, time, part.encode(given), none), part(chunk, time, part.encode(plain))
    )


def test_fewer_layers_attend_to_every_nth() -> None:
    held = features(states=False, mask=False)["vlm.key_values"]
    specs = {
        "vlm.key_values": Spec(Kind.KEY_VALUES, ("B", 6, 2, GROUPS, PREFIX, SIZE), rope=BASE),
        "action": SPECS["action"],
    }
    part = make(specs, depth=3)
    wide = torch.randn(3, 6, 2, GROUPS, PREFIX, SIZE)
    wide[:, ::2] = held.values
    assert len(part.layers) == 3
    context = part.encode({"vlm.key_values": Feature(wide, None, held.end)})
    assert torch.equal(context["key_values"], held.values)


def test_steps_of_a_diffusion_schedule_are_times_in_thousands() -> None:
    given = features(states=True, mask=True)
    unit, steps = make(told="unit"), make(told="steps")
    steps.load_state_dict(unit.state_dict())
    chunk = torch.randn(3, HORIZON, ACTION)
    torch.testing.assert_close(
        unit(chunk, torch.tensor([0.0, 0.25, 0.75]), unit.encode(given)),
        steps(chunk, torch.tensor([0.0, 250.0, 750.0]), steps.encode(given)),
    )


def test_the_language_model_learns_through_its_keys_and_values() -> None:
    part, given = make(joint_every=2), features(states=True, mask=True)
    values = given["vlm.key_values"].values.requires_grad_()
    part(torch.randn(3, HORIZON, ACTION), torch.rand(3), part.encode(given)).square().sum().backward()
    assert values.grad is not None
    assert values.grad.flatten(3).any(-1).all()


# --- compositions that do not fit ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "options", "field", "message"),
    [
        (
            {"vlm.key_values": None},
            {},
            None,
            r"attends to the keys .* but the head reads `proprio\.tokens` \(tokens\)",
        ),
        ({"other.key_values": SPECS["vlm.key_values"]}, {}, None, "one language model"),
        ({}, {"heads": 3}, "heads", "3 heads cannot share the 2 key and value heads"),
        ({}, {"depth": 2}, "depth", r"2 layers cannot attend to 3 layers.*`vlm\.key_values` is key_values"),
        ({}, {"depth": 6}, "depth", "6 layers cannot attend to 3 layers"),
        ({}, {"width": 15}, "width", "width of 15"),
        (
            {"vlm.key_values": Spec(Kind.KEY_VALUES, ("B", LAYERS, 2, GROUPS, PREFIX, SIZE))},
            {},
            None,
            r"keys of `vlm\.key_values` have none",
        ),
    ],
)
def test_what_does_not_fit_is_told(changed: Any, options: Any, field: str | None, message: str) -> None:
    specs = {key: spec for key, spec in {**SPECS, **changed}.items() if spec is not None}
    with pytest.raises(SpecError, match=message) as caught:
        make(specs, **options)
    assert caught.value.field == field
    assert caught.value.label


def test_an_image_encoder_is_told_the_cure() -> None:
    specs = {"vision.tokens": SPECS["proprio.tokens"], "action": SPECS["action"]}
    with pytest.raises(SpecError) as caught:
        make(specs)
    assert "`vlm`" in caught.value.help
    assert "{type: dit}" in caught.value.help
    assert Expert.accepts[0] is Kind.KEY_VALUES


@pytest.mark.parametrize(
    "options", [{}, {"time": "adarms"}, {"joint_every": 2}, {"family": "llama"}], ids=str
)
def test_kernels_compute_what_torch_computes(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    part, given, chunk = make(**options), features(states=True, mask=True), torch.randn(3, HORIZON, ACTION)
    for layer in part.layers:
        layer.pack()
        layer.mlp.pack()
    with torch.no_grad():
        context, time = part.encode(given), torch.rand(3)
        expected = part(chunk, time, context)
        for kernel in (cached_attention, few_rows):
            monkeypatch.setattr(kernel, "serves", lambda values: True)
        torch.testing.assert_close(part(chunk, time, context), expected, rtol=1e-4, atol=1e-5)
