"""AdamW in one pass over gradients, weights, their average and their bfloat16 copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....components.kernels.adamw import adamw_step, flat, same_memory_order
from ....components.kernels.eight_bit import BLOCK, coded, decode, encode, moment_bytes
from ..distributed.sharding import local, put, spread_as, whole
from .ema import WeightAverage

_MOMENTS = {"exp_avg": False, "exp_avg_sq": True}
"""Names of the moments, and whether they are of squares."""
_PIECE = 2**24
"""Numbers that are encoded at once, a multiple of 256."""
_Kind = tuple[torch.dtype, bool]
"""What one launch has in common: the type of gradients, and whether moments are kept in eight bits."""


@dataclass(frozen=True)
class _Launch:
    """Weights that one launch updates, and what goes with them from step to step."""

    weights: Sequence[nn.Parameter]
    places: Sequence[int]
    """Of each, among all weights."""
    groups: Sequence[int]
    fixed: Mapping[str, Any]
    """Tensors that stay: count, moments and their scales, averages, and copies."""


class FusedAdamW(torch.optim.AdamW):
    """torch's AdamW (Loshchilov & Hutter, 2019), with its state, and a step that a CUDA graph can capture.

    Of weights that are spread over processes, each updates its part. Two launches for all weights: they clip
    (`grad_scale`), update, average, and write the copies that modules compute with. Where `found_inf` is not 0, a step
    changes nothing. Rates lie on the device, and follow `set_rates`. All weights with gradients of one type, and moments
    alike, share one count of steps.

    With `eight_bit`, moments of weights of 4096 numbers or more, of those that this process holds, are kept in eight bits,
    by two launches more. In and out of states they are float32: rounded to nearest on their way in, which changes nothing of
    what came out.
    """

    grad_scale: Tensor
    found_inf: Tensor

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        average: WeightAverage | None = None,
        eight_bit: bool = False,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        device = self.param_groups[0]["params"][0].device
        self.grad_scale, self.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
        self._average, self._eight_bit = average, eight_bit
        self._copies: Mapping[nn.Parameter, nn.Parameter] = {}
        self._held = self._weights()
        """All weights, or the copies of those that have one: what gradients are of."""
        self._met: list[torch.dtype | None] = []
        """Types of the gradients of the last step."""
        self._launches: list[_Launch] = []
        """Those that go with them."""
        self._counts: dict[_Kind, Tensor] = {}
        self._loaded: dict[nn.Parameter, float] = {}
        """Steps that weights had taken when a state was loaded."""
        self._ordered: dict[int, Tensor] = {}
        self._rates, self._decays = (torch.zeros(len(self.param_groups), device=device) for _ in range(2))
        self.set_rates()

    def follow(self, copies: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """From now on gradients are those of the copies, which every step writes anew."""
        self._copies, self._met = copies, []
        self._held = [copies.get(weight, weight) for weight in self._weights()]

    def set_rates(self) -> None:
        """Take over the learning rates and weight decays of the groups."""
        for index, group in enumerate(self.param_groups):
            self._rates[index].fill_(group["lr"])
            self._decays[index].fill_(group["weight_decay"])

    def gradients(self) -> list[Tensor]:
        """Those that there are, of the weights or of their copies."""
        return [gradient for held in self._held if (gradient := held.grad) is not None]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all weights that have gradients. A closure is not supported."""
        assert closure is None
        gradients = [held.grad for held in self._held]
        met = [None if gradient is None else gradient.dtype for gradient in gradients]
        if met != self._met:
            self._met, self._launches = met, [self._launch(*found) for found in self._by_kind(met).items()]
        first, average = self.param_groups[0], self._average
        for launch in self._launches:
            parts = [local(weight) for weight in launch.weights]
            adamw_step(
                parts,
                [
                    self._ordered_as(part, local(gradients[place]), place)  # type: ignore[arg-type]
                    for part, place in zip(parts, launch.places, strict=True)
                ],
                rates=self._rates,
                decays=self._decays,
                groups=launch.groups,
                **launch.fixed,
                clip=self.grad_scale.reciprocal(),
                found_inf=self.found_inf,
                betas=first["betas"],
                eps=first["eps"],
                average_decay=average.decay if average is not None else 0.0,
            )
        if average is not None and self._counts:
            self._follow(
                [weight for weight, kind in zip(self._weights(), met, strict=True) if kind is None], average
            )

    def rehearse(self) -> None:
        """Take a step that changes nothing, so that a graph can capture the next one on the same tensors."""
        found = self.found_inf
        self.found_inf = torch.ones_like(found)
        self.step()
        self.found_inf = found

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of weights and copies."""
        super().zero_grad(set_to_none=set_to_none)
        for copy in self._copies.values():
            copy.grad = None

    @property
    def saving(self) -> str:
        """What moments in eight bits take in this process, and would take in float32; nothing where there are none."""
        weights = [local(weight) for weight in self._weights()]
        kept, full = (
            moment_bytes(weights, eight_bit=eight_bit) / 1e9 for eight_bit in (self._eight_bit, False)
        )
        return f"moments in 8 bits: {kept:,.3g} GB instead of {full:,.3g} GB" if self._eight_bit else ""

    def state_dict(self) -> dict[str, Any]:
        """As torch's AdamW gives it, where every weight has a count of its own.

        Moments in eight bits come as float32, whole and on the CPU, one after the other, so that there need not be room for
        them where they lie. All processes that weights are spread over call it, and go through them in one order, whatever
        the order in which each first met their gradients.
        """
        found, weights = super().state_dict(), self._weights()
        states = {
            key: {
                "step": state["step"].clone(),
                **{name: self._moment(weights[key], state, name) for name in _MOMENTS},
            }
            for key, state in sorted(found["state"].items())
        }
        return {**found, "state": states}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over moments and count, also those of torch's own AdamW."""
        states = state_dict["state"]
        counts = {key: {"step": state["step"]} for key, state in states.items()}
        super().load_state_dict({**state_dict, "state": counts})
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for key, weight in zip(keys, self._weights(), strict=True):
            if key not in states:
                continue
            self._begin(weight)
            for name in _MOMENTS:
                self._keep(weight, name, states[key][name])
        self._counts, self._met = {}, []
        self._loaded = {w: float(self.state[w]["step"]) for w in self._weights() if w in self.state}
        self.set_rates()

    def _weights(self) -> list[nn.Parameter]:
        return [weight for group in self.param_groups for weight in group["params"]]

    def _groups(self) -> list[int]:
        """The place of each weight's group."""
        return [index for index, group in enumerate(self.param_groups) for _ in group["params"]]

    def _begin(self, weight: nn.Parameter) -> None:
        """Moments of a weight that has none are 0."""
        state, part = self.state[weight], local(weight)
        for name in _MOMENTS:
            if coded(part, eight_bit=self._eight_bit):
                state[name] = torch.zeros_like(part, dtype=torch.uint8)
                state[f"{name}_scales"] = torch.zeros(-(-part.numel() // BLOCK), device=part.device)
            else:
                state[name] = torch.zeros_like(weight)

    def _keep(self, weight: nn.Parameter, name: str, loaded: Tensor) -> None:
        """Take over a moment, float32 and whole."""
        state, moment = self.state[weight], torch.empty_like(weight)
        put(moment, loaded)
        if f"{name}_scales" not in state:
            state[name] = moment
            return
        values, codes = (flat(local(tensor)).split(_PIECE) for tensor in (moment, state[name]))
        scales = state[f"{name}_scales"].split(_PIECE // BLOCK)
        for piece, into in zip(values, zip(codes, scales, strict=True), strict=True):
            torch._foreach_copy_(into, encode(piece, squared=_MOMENTS[name]))

    def _moment(self, weight: nn.Parameter, state: dict[str, Tensor], name: str) -> Tensor:
        """A moment as `state_dict` gives it."""
        moment = state[name]
        if f"{name}_scales" in state:
            moment = torch.empty_like(local(weight))
            flat(moment).copy_(decode(flat(state[name]), state[f"{name}_scales"], squared=_MOMENTS[name]))
            moment = spread_as(weight, moment)
        return whole(moment).cpu() if self._eight_bit else moment

    def _follow(self, rest: Sequence[nn.Parameter], average: WeightAverage) -> None:
        """Averages of the weights that had no gradient in this step come nearer to them, too."""
        if rest:
            count = next(iter(self._counts.values()))
            taken = 1.0 - ((1.0 + count) / (10.0 + count)).clamp_max(average.decay)
            taken = taken * (self.found_inf == 0)
            for weight in rest:
                local(average.of(weight)).lerp_(local(weight), taken)

    def _by_kind(self, met: Sequence[torch.dtype | None]) -> dict[_Kind, list[int]]:
        """Places of the weights that have gradients, of these types, by kind."""
        found: dict[_Kind, list[int]] = {}
        for place, (weight, dtype) in enumerate(zip(self._weights(), met, strict=True)):
            if dtype is not None:
                kind = dtype, coded(local(weight), eight_bit=self._eight_bit)
                found.setdefault(kind, []).append(place)
        return found

    def _launch(self, kind: _Kind, places: Sequence[int]) -> _Launch:
        """That of the weights of a kind."""
        everything, groups = self._weights(), self._groups()
        weights = [everything[place] for place in places]
        count = self._count(kind, weights)
        states = [self._state(weight, count) for weight in weights]
        narrow, average = kind[1], self._average
        fixed = {
            "first": [local(state["exp_avg"]) for state in states],
            "second": [local(state["exp_avg_sq"]) for state in states],
            "step": count,
            "averages": [local(average.of(weight)) for weight in weights] if average is not None else (),
            "shadows": [self._copies[weight] for weight in weights] if kind[0] == torch.bfloat16 else (),
            "first_scales": [state["exp_avg_scales"] for state in states] if narrow else (),
            "second_scales": [state["exp_avg_sq_scales"] for state in states] if narrow else (),
        }
        return _Launch(weights, places, [groups[place] for place in places], fixed)

    def _ordered_as(self, part: Tensor, gradient: Tensor, place: int) -> Tensor:
        """The gradient, in the order in which the part of a weight lies in memory, at an address that stays."""
        if same_memory_order(gradient, part):
            return gradient
        if place not in self._ordered:
            self._ordered[place] = torch.empty_like(part, dtype=gradient.dtype)
        return self._ordered[place].copy_(gradient)

    def _state(self, weight: nn.Parameter, count: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            self._begin(weight)
        state["step"] = count
        return state

    def _count(self, kind: _Kind, weights: Sequence[nn.Parameter]) -> Tensor:
        """Steps that weights of a kind have taken, also before a state was loaded."""
        if kind not in self._counts:
            before = [self._loaded[weight] for weight in weights if weight in self._loaded]
            begun = max(before or self._loaded.values(), default=0.0)
            self._counts[kind] = torch.full((), begun, device=weights[0].device)
        return self._counts[kind]
