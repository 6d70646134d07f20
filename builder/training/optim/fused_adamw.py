"""AdamW in one pass over gradients, weights, their average and their bfloat16 copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....components.kernels.adamw import adamw_step, flat, same_memory_order
from ....components.kernels.eight_bit import BLOCK, coded, decode, encode, moment_bytes
from ... import compat
from ..distributed.sharding import local, put, spread_as, whole
from .adamw import AdamW
from .ema import WeightAverage

_MOMENTS = {"exp_avg": False, "exp_avg_sq": True}
"""Names of the moments, and whether they are moments of squares."""
_PIECE = 2**24
"""Numbers that are encoded at once, a multiple of 256."""
_Kind = tuple[torch.dtype, bool]
"""Weights of one launch share the dtype of their gradients, and whether moments are in eight bits."""


@dataclass(frozen=True)
class _Launch:
    """Weights that one launch updates, and the tensors that stay the same from step to step."""

    weights: Sequence[nn.Parameter]
    places: Sequence[int]
    """Index of each among all weights."""
    groups: Sequence[int]
    fixed: Mapping[str, Any]
    """Step count, moments and their scales, averages, and copies."""


class FusedAdamW(AdamW):
    """AdamW, with the state of torch's, whose step a CUDA graph can capture.

    Two launches for all weights clip, update, average, and write the copies that modules compute with.
    Learning rates lie on the device. All weights with gradients of one dtype, and moments of one kind, share
    one count of steps. Where weights are spread over processes, each process updates its part.

    With `eight_bit`, moments of weights of 4096 numbers or more, of those that this process holds, are kept
    in eight bits, by two more launches. State dicts hold them in float32; rounding them to nearest on the way
    in restores the same codes.
    """

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
        super().__init__(groups, lr=lr, betas=betas, eps=eps, average=average)
        self._eight_bit = eight_bit
        self._copies: Mapping[nn.Parameter, nn.Parameter] = {}
        self._sources: list[nn.Parameter] = self.weights
        """All weights, or the copies of those that have one: the parameters that get gradients."""
        self._dtypes: list[torch.dtype | None] = []
        """Dtypes of the gradients of the last step."""
        self._launches: list[_Launch] = []
        """The launches for these dtypes."""
        self._counts: dict[_Kind, Tensor] = {}
        self._loaded: dict[nn.Parameter, float] = {}
        """Steps that weights had taken when a state was loaded."""
        self._reordered: dict[int, Tensor] = {}
        device = self.grad_scale.device
        self._rates, self._decays = (torch.zeros(len(self.param_groups), device=device) for _ in range(2))
        self._write_rates()

    def follow(self, copies: Mapping[nn.Parameter, nn.Parameter]) -> None:
        self._copies, self._dtypes = copies, []
        self._sources = [copies.get(weight, weight) for weight in self.weights]

    def set_rate(self, rate: float) -> None:
        super().set_rate(rate)
        self._write_rates()

    def gradients(self) -> list[Tensor]:
        return [gradient for source in self._sources if (gradient := source.grad) is not None]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        gradients = [source.grad for source in self._sources]
        dtypes = [None if gradient is None else gradient.dtype for gradient in gradients]
        if dtypes != self._dtypes:
            self._dtypes = dtypes
            self._launches = [self._launch(*found) for found in self._by_kind(dtypes).items()]
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
            idle = [weight for weight, dtype in zip(self.weights, dtypes, strict=True) if dtype is None]
            self._average_idle(idle, average)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of weights and copies."""
        super().zero_grad(set_to_none=set_to_none)
        for copy in self._copies.values():
            copy.grad = None

    @property
    def memory_note(self) -> str:
        if not self._eight_bit:
            return ""
        parts = [local(weight) for weight in self.weights]
        kept, full = (moment_bytes(parts, eight_bit=eight_bit) / 1e9 for eight_bit in (True, False))
        return f"moments in 8 bits: {kept:,.3g} GB instead of {full:,.3g} GB"

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch's AdamW does, with a step count for every weight.

        Moments in eight bits come as float32, whole and on the CPU, one after the other, so that they need
        not fit on the device. All processes that weights are spread over call it, and go through the weights
        in one order, whatever the order in which each first met their gradients.
        """
        found, weights = super().state_dict(), self.weights
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
        """Take over moments and step counts, also those of torch's own AdamW."""
        states = state_dict["state"]
        counts = {key: {"step": state["step"]} for key, state in states.items()}
        super().load_state_dict({**state_dict, "state": counts})
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for key, weight in zip(keys, self.weights, strict=True):
            if key not in states:
                continue
            self._zero_moments(weight)
            for name in _MOMENTS:
                self._load_moment(weight, name, states[key][name])
        self._counts, self._dtypes = {}, []
        self._loaded = {w: float(self.state[w]["step"]) for w in self.weights if w in self.state}
        self._write_rates()

    def _write_rates(self) -> None:
        """Copy the learning rates and weight decays of the groups to the device."""
        for index, group in enumerate(self.param_groups):
            self._rates[index].fill_(group["lr"])
            self._decays[index].fill_(group["weight_decay"])

    def _zero_moments(self, weight: nn.Parameter) -> None:
        state, part = self.state[weight], local(weight)
        for name in _MOMENTS:
            if coded(part, eight_bit=self._eight_bit):
                state[name] = torch.zeros_like(part, dtype=torch.uint8)
                state[f"{name}_scales"] = torch.zeros(-(-part.numel() // BLOCK), device=part.device)
            else:
                state[name] = torch.zeros_like(weight)

    def _load_moment(self, weight: nn.Parameter, name: str, loaded: Tensor) -> None:
        """Take over a moment that is float32 and whole."""
        state, moment = self.state[weight], torch.empty_like(weight)
        put(moment, loaded)
        if f"{name}_scales" not in state:
            state[name] = moment
            return
        values, codes = (flat(local(tensor)).split(_PIECE) for tensor in (moment, state[name]))
        scales = state[f"{name}_scales"].split(_PIECE // BLOCK)
        for piece, targets in zip(values, zip(codes, scales, strict=True), strict=True):
            compat.foreach_copy_(targets, encode(piece, squared=_MOMENTS[name]))

    def _moment(self, weight: nn.Parameter, state: dict[str, Tensor], name: str) -> Tensor:
        """Return a moment as `state_dict` holds it."""
        moment = state[name]
        if f"{name}_scales" in state:
            moment = torch.empty_like(local(weight))
            flat(moment).copy_(decode(flat(state[name]), state[f"{name}_scales"], squared=_MOMENTS[name]))
            moment = spread_as(weight, moment)
        return whole(moment).cpu() if self._eight_bit else moment

    def _average_idle(self, idle: Sequence[nn.Parameter], average: WeightAverage) -> None:
        """Move the averages of weights without a gradient in this step, too."""
        if idle:
            count = next(iter(self._counts.values()))
            taken = 1.0 - ((1.0 + count) / (10.0 + count)).clamp_max(average.decay)
            taken = taken * (self.found_inf == 0)
            for weight in idle:
                local(average.of(weight)).lerp_(local(weight), taken)

    def _by_kind(self, dtypes: Sequence[torch.dtype | None]) -> dict[_Kind, list[int]]:
        """Return the indices of the weights that have gradients, of these dtypes, by kind."""
        found: dict[_Kind, list[int]] = {}
        for place, (weight, dtype) in enumerate(zip(self.weights, dtypes, strict=True)):
            if dtype is not None:
                kind = dtype, coded(local(weight), eight_bit=self._eight_bit)
                found.setdefault(kind, []).append(place)
        return found

    def _launch(self, kind: _Kind, places: Sequence[int]) -> _Launch:
        """Build the launch for the weights of one kind."""
        everything = self.weights
        groups = [index for index, group in enumerate(self.param_groups) for _ in group["params"]]
        weights = [everything[place] for place in places]
        count = self._count(kind, weights)
        states = [self._state(weight, count) for weight in weights]
        (dtype, narrow), average = kind, self._average
        fixed = {
            "first": [local(state["exp_avg"]) for state in states],
            "second": [local(state["exp_avg_sq"]) for state in states],
            "step": count,
            "averages": [local(average.of(weight)) for weight in weights] if average is not None else (),
            "shadows": [self._copies[weight] for weight in weights] if dtype == torch.bfloat16 else (),
            "first_scales": [state["exp_avg_scales"] for state in states] if narrow else (),
            "second_scales": [state["exp_avg_sq_scales"] for state in states] if narrow else (),
        }
        return _Launch(weights, places, [groups[place] for place in places], fixed)

    def _ordered_as(self, part: Tensor, gradient: Tensor, place: int) -> Tensor:
        """Return the gradient in the memory order of a weight's part, at an address that stays."""
        if same_memory_order(gradient, part):
            return gradient
        if place not in self._reordered:
            self._reordered[place] = torch.empty_like(part, dtype=gradient.dtype)
        return self._reordered[place].copy_(gradient)

    def _state(self, weight: nn.Parameter, count: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            self._zero_moments(weight)
        state["step"] = count
        return state

    def _count(self, kind: _Kind, weights: Sequence[nn.Parameter]) -> Tensor:
        """Return the count of steps that weights of a kind have taken, also before a state was loaded."""
        if kind not in self._counts:
            before = [self._loaded[weight] for weight in weights if weight in self._loaded]
            begun = max(before or self._loaded.values(), default=0.0)
            self._counts[kind] = torch.full((), begun, device=weights[0].device)
        return self._counts[kind]
