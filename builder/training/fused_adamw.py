"""AdamW in one pass over gradients, weights, their average and their bfloat16 copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...components.kernels.adamw import adamw_step, order
from .ema import WeightAverage
from .sharding import local, put


class FusedAdamW(torch.optim.AdamW):
    """torch's AdamW (Loshchilov & Hutter, 2019), with its state, and a step that a CUDA graph can capture.

    Of weights that are spread over processes, each updates its part. Two launches for all weights: they clip (`grad_scale`), update, average, and write the copies that modules compute
    with. Where `found_inf` is not 0, a step changes nothing. Rates lie on the device, and follow `set_rates`. All weights
    with gradients of one type share one count of steps.
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
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        device = self.param_groups[0]["params"][0].device
        self.grad_scale, self.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
        self._average = average
        self._copies: Mapping[nn.Parameter, nn.Parameter] = {}
        self._counts: dict[torch.dtype, Tensor] = {}
        self._begun = 0.0
        """Steps taken before a state was loaded."""
        self._ordered: dict[nn.Parameter, Tensor] = {}
        self._rates, self._decays = (torch.zeros(len(self.param_groups), device=device) for _ in range(2))
        self.set_rates()

    def follow(self, copies: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """From now on gradients are those of the copies, which every step writes anew."""
        self._copies = copies

    def set_rates(self) -> None:
        """Take over the learning rates and weight decays of the groups."""
        for index, group in enumerate(self.param_groups):
            self._rates[index].fill_(group["lr"])
            self._decays[index].fill_(group["weight_decay"])

    def gradients(self) -> list[Tensor]:
        """Those that there are, of the weights or of their copies."""
        found = (self._copies.get(p, p).grad for group in self.param_groups for p in group["params"])
        return [gradient for gradient in found if gradient is not None]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all weights that have gradients. A closure is not supported."""
        assert closure is None
        first, found = self.param_groups[0], self._by_gradient()
        for dtype, weights in found.items():
            parameters = [weight for weight, _ in weights]
            states = [self._state(weight, dtype) for weight in parameters]
            copied = dtype == torch.bfloat16
            averages = self._average
            adamw_step(
                [local(p) for p in parameters],
                [self._gradient(p) for p in parameters],
                [local(state["exp_avg"]) for state in states],
                [local(state["exp_avg_sq"]) for state in states],
                self._counts[dtype],
                self._rates,
                self._decays,
                [group for _, group in weights],
                averages=[local(averages.of(p)) for p in parameters] if averages is not None else (),
                shadows=[self._copies[p] for p in parameters] if copied else (),
                clip=self.grad_scale.reciprocal(),
                found_inf=self.found_inf,
                betas=first["betas"],
                eps=first["eps"],
                average_decay=averages.decay if averages is not None else 0.0,
            )
        if self._average is not None and self._counts:
            self._follow({weight for weights in found.values() for weight, _ in weights}, self._average)

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

    def state_dict(self) -> dict[str, Any]:
        """As torch's AdamW gives it, where every weight has a count of its own."""
        found = super().state_dict()
        states = {key: {**state, "step": state["step"].clone()} for key, state in found["state"].items()}
        return {**found, "state": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over moments and count, also those of torch's own AdamW."""
        super().load_state_dict(state_dict)
        for weight, state in self.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                loaded, state[name] = state[name], torch.empty_like(weight)
                put(state[name], loaded)
        self._counts = {}
        self._begun = max((float(state["step"]) for state in self.state.values()), default=0.0)
        self.set_rates()

    def _follow(self, updated: set[nn.Parameter], average: WeightAverage) -> None:
        """Averages of weights that had no gradient in this step come nearer to them, too."""
        rest = [p for group in self.param_groups for p in group["params"] if p not in updated]
        if rest:
            count = next(iter(self._counts.values()))
            taken = 1.0 - ((1.0 + count) / (10.0 + count)).clamp_max(average.decay)
            taken = taken * (self.found_inf == 0)
            for weight in rest:
                local(average.of(weight)).lerp_(local(weight), taken)

    def _by_gradient(self) -> dict[torch.dtype, list[tuple[nn.Parameter, int]]]:
        """Weights that have gradients, and their groups, by the type of these."""
        found: dict[torch.dtype, list[tuple[nn.Parameter, int]]] = {}
        for index, group in enumerate(self.param_groups):
            for weight in group["params"]:
                gradient = self._copies.get(weight, weight).grad
                if gradient is not None:
                    found.setdefault(gradient.dtype, []).append((weight, index))
        return found

    def _gradient(self, weight: nn.Parameter) -> Tensor:
        """The gradient, in the order in which the weight lies in memory, at an address that stays."""
        gradient = local(self._copies.get(weight, weight).grad)  # type: ignore[arg-type]
        if order(gradient) == order(local(weight)):
            return gradient
        if weight not in self._ordered:
            self._ordered[weight] = torch.empty_like(local(weight), dtype=gradient.dtype)
        return self._ordered[weight].copy_(gradient)

    def _state(self, weight: nn.Parameter, dtype: torch.dtype) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        if dtype not in self._counts:
            self._counts[dtype] = torch.full((), self._begun, device=weight.device)
        state["step"] = self._counts[dtype]
        return state
