"""A policy as a function of tensors: observations and noise in, action chunk out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...components.randomness.generator import Tape
from ...schemas.errors import SpecError
from ..inference.example import example_samples
from ..inference.stages import Stages, State
from ..policy.recipe_policy import RecipePolicy

_NOISE = {"randn": "noise", "rand": "uniform"}
"""Input with the random numbers of each function of torch: standard normal, and uniform in [0, 1)."""
_EXAMPLE = 3
"""Size of an example batch; sizes 0 and 1 would be taken for constants."""


class Program(nn.Module):
    """Transforms, backbones, necks, head and inverse transforms of a policy, with random numbers as inputs.

    Those of one kind are one input (B, N, ...), in the order in which the policy draws them.

    Args:
        policy: Policy in evaluation mode; its weights are frozen, and its collator pads all prompts alike.

    Raises:
        SpecError: The policy draws random numbers of one kind in several shapes.
    """

    def __init__(self, policy: RecipePolicy) -> None:
        super().__init__()
        self.policy = policy.requires_grad_(False)
        config: Any = policy.collator.config
        if getattr(config, "padding", None) == "longest":  # a file reads prompts of one length
            policy.collator.config = config.model_copy(update={"padding": "max_length"})
        self._stages = Stages(policy)
        self.noise: dict[str, tuple[int, ...]] = {}
        """Shape (numbers, ...) of the random numbers of one sample, by input."""
        self._draws: list[tuple[str, slice]] = []
        """Input and numbers of each draw, in order."""
        tape = self._record(self._observed(example_samples(policy, _EXAMPLE)))
        for draw, drawn in zip(tape.draws, tape.numbers, strict=True):
            name, count, rest = _NOISE[draw.__name__], drawn.shape[0] // _EXAMPLE, drawn.shape[1:]
            start, *held = self.noise.get(name, (0, *rest))
            if tuple(held) != rest:
                raise SpecError(
                    f"the policy draws {name} of the shapes {tuple(held)} and {tuple(rest)} for one chunk, which "
                    "cannot be one input of a file",
                    help="serve the policy instead, with `policysmith serve`",
                )
            self.noise[name] = (start + count, *rest)
            self._draws.append((name, slice(start, start + count)))

    @property
    def stage(self) -> str:
        """The stage that ran last, with the `type` of its part: `` `head` (fast)``."""
        name = self._stages.names[self._stages.current]
        if name in ("transforms", "inverse"):
            return f"`{name}`"
        config: Any = self.policy.get_submodule(name).config
        return f"`{name}` ({config.type})"

    @torch.no_grad()
    def example(self, count: int = _EXAMPLE, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs for made-up observations, and the chunks (B, H, A) that the policy predicts for them."""
        samples = example_samples(self.policy, count, seed)
        expected = self.policy.predict(samples, torch.Generator().manual_seed(seed))
        inputs = self._observed(samples)
        tape = self._record(inputs)
        tape.fill(torch.Generator().manual_seed(seed))
        drawn: dict[str, list[Tensor]] = {name: [] for name in self.noise}
        for (name, _), numbers in zip(self._draws, tape.numbers, strict=True):
            drawn[name].append(numbers.unflatten(0, (count, -1)))
        joined = {name: torch.cat(each, dim=1) for name, each in drawn.items()}
        return dict(sorted({**inputs, **joined}.items())), expected

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return chunks (B, H, A), float32, in the robot's units, for observations and noise; call without gradients."""
        observed = {key: value for key, value in inputs.items() if key not in self.noise}
        numbers = [inputs[name][:, own].flatten(0, 1) for name, own in self._draws]
        with Tape.of(numbers).playing():
            actions = self._stages.run(State(observed)).actions
        assert actions is not None
        return actions

    def _observed(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = self.policy.observations_in(self.policy.collator(samples))
        return {key: value for key, value in batch.items() if isinstance(value, Tensor)}

    @torch.no_grad()
    def _record(self, observed: Mapping[str, Tensor]) -> Tape:
        tape = Tape()
        with tape.recording():
            self._stages.run(State(dict(observed)))
        return tape


__all__ = ["Program"]
