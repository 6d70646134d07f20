"""The engine for action chunks: the fastest way from observations to actions that a policy and a device have.

    runner = policysmith.load("runs/pi0").runner(device="cuda")
    runner.warm_up([1])
    action = runner.select_action(observation)

On a GPU, everything between the observations and the actions is one CUDA graph for each kind of inputs it
meets, with noise drawn outside of it; weights are bfloat16. On a CPU, it runs as it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from ...components.real_time import Prefix
from ...schemas.errors import SpecError
from ..capture import CaptureError, capturable
from ..policy.acting.session import Session
from ..policy.recipe_policy import RecipePolicy
from .compilation import compile_layers, pack
from .example import example_samples
from .graphs import Captured, Graphs, Inputs
from .precision import Precision, copy_for
from .stages import RUNNING, Stages, State
from .texts import TextFeatures

if TYPE_CHECKING:
    from ..policy import BasePolicyModel

_KINDS = 16
"""Kinds of inputs, such as batch sizes, that have a graph at a time."""

log = logging.getLogger(__name__)


class Runner:
    """A policy ready to act. Calls from several threads wait for each other."""

    def __init__(
        self,
        policy: BasePolicyModel,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        *,
        compile: bool = False,
        kinds: int = _KINDS,
    ) -> None:
        """Copy a policy to a device, by default its own, as far as it must be moved or cast.

        Args:
            policy: The policy; it stays as it is.
            device: Device to run on.
            precision: Precision of the weights: bfloat16 on a GPU and float32 elsewhere, or one of the two. A
                hand-written policy keeps its weights, and computes under autocast with `bfloat16`.
            compile: Compile the layers that parts repeat, which takes up to minutes at the first chunk.
            kinds: Number of kinds of inputs, such as batch sizes, that keep a CUDA graph.

        Raises:
            SpecError: The precision is unknown.
        """
        if precision not in get_args(Precision):
            raise SpecError(
                f"the precision is {precision!r}",
                help=f"choose one of {', '.join(f'`{known}`' for known in get_args(Precision))}",
            )
        place = torch.device(policy.device if device is None else device)
        composed = isinstance(policy, RecipePolicy)
        if precision == "auto":
            precision = "bfloat16" if place.type == "cuda" and composed else "float32"
        self.precision: Precision = precision
        """`float32` or `bfloat16`."""
        dtype = (torch.bfloat16 if precision == "bfloat16" else torch.float32) if composed else None
        keeps = not composed and place == policy.device  # code of its own may remember things
        self.policy = policy if keeps else copy_for(policy, place, dtype)
        """The policy that runs: a copy, or a hand-written one itself if it need not move."""
        self._session = Session(self.policy, self)
        if composed and precision == "bfloat16":
            pack(self.policy)
        if compile:
            compile_layers(self.policy)
        self._lock = threading.RLock()
        self._kinds = kinds
        if isinstance(self.policy, RecipePolicy):
            self._stages, self._texts = Stages(self.policy), TextFeatures(self.policy)
            self._captured_stages = len(self._stages.names) if capturable(place) else 0
            self._graphs = self._new_graphs()

    @property
    def device(self) -> torch.device:
        """Device that the policy runs on."""
        return self.policy.device

    @torch.no_grad()
    def predict(
        self, samples: Sequence[Mapping[str, Any]], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return action chunks (B, H, A), float32, on the CPU, in the robot's units.

        Samples are those of the policy's own `predict`, with values (T, ...).

        Raises:
            SpecError: Observations or actions are not finite, or absurd beside those of training.
        """
        policy = self.policy
        with self._lock:
            if not isinstance(policy, RecipePolicy):
                with torch.autocast(policy.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    return policy.predict(samples, generator).float().cpu()
            return self._predict(policy, samples, generator, None)

    @torch.no_grad()
    def continue_chunks(
        self,
        samples: Sequence[Mapping[str, Any]],
        running: Prefix,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return action chunks (B, H, A), float32, on the CPU, that continue running ones.

        Guidance differentiates through the network, which no CUDA graph holds, so it runs as it is.

        Raises:
            SpecError: The policy cannot continue chunks, or a sample or a chunk is not finite or absurd.
        """
        policy = self.policy
        with self._lock:
            if policy.continuation is None or policy.continuation.max_delay is None:
                return policy.continue_chunks(samples, running, generator).float().cpu()
            assert isinstance(policy, RecipePolicy)
            return self._predict(policy, samples, generator, running)

    def select_action(
        self,
        observation: Mapping[str, Any],
        generator: torch.Generator | None = None,
        *,
        clamp: bool = False,
    ) -> Tensor:
        """Return the next action (A,), as the policy's own `select_action` does."""
        with self._lock:
            return self._session.select_action(observation, generator, clamp=clamp)

    def reset(self) -> None:
        """Forget the running chunk and the observation history: a new episode begins."""
        self._session.reset()

    def warm_up(self, batch_sizes: Iterable[int] = (1,)) -> None:
        """Run on made-up observations, so that the first real ones of these batch sizes wait for nothing."""
        for size in batch_sizes:
            samples = example_samples(self.policy, size)
            chunks = self.predict(samples, torch.Generator().manual_seed(0))
            if self.policy.continuation is not None:
                self.continue_chunks(samples, Prefix(chunks, torch.ones(chunks.shape[:2])))

    def _predict(
        self,
        policy: RecipePolicy,
        samples: Sequence[Mapping[str, Any]],
        generator: torch.Generator | None,
        running: Prefix | None,
    ) -> Tensor:
        batch = policy.collator(samples)
        observed = policy.observations_in(batch)
        policy.check_observations(observed)
        chunk = self._compute(observed, generator, running).cpu()
        policy.check_actions(observed, chunk)
        return chunk

    def _compute(
        self, observed: Mapping[str, Any], generator: torch.Generator | None, running: Prefix | None
    ) -> Tensor:
        """Return the chunk (B, H, A), on the device; the next call overwrites it."""
        inputs = {key: value for key, value in observed.items() if isinstance(value, Tensor)}
        if running is not None:
            inputs |= {"action": running.actions, RUNNING: running.weights}
        inputs |= self._texts.stored(observed)
        others = {key: value for key, value in observed.items() if key not in inputs}
        while self._captured_stages:
            try:
                state = self._graphs(inputs, generator)
                break
            except CaptureError as error:
                self._leave_out(self._stages.current, str(error))
            except KeyError as error:
                if others.keys().isdisjoint(error.args):
                    raise
                self._leave_out(self._stages.current, f"it reads `{error.args[0]}`, which is not a tensor")
        else:
            moved = {key: value.to(self.device) for key, value in inputs.items()}
            state = State({**others, **moved})
        state = self._stages.run(state, generator, first=self._captured_stages)
        assert state.actions is not None
        return state.actions

    def _leave_out(self, stage: int, reason: str) -> None:
        """Run a stage and those after it without a graph from now on, and say so."""
        names = self._stages.names
        log.warning(
            "`%s` cannot be part of a CUDA graph, so it runs without one%s: %s",
            names[stage],
            f", as do {', '.join(f'`{name}`' for name in names[stage + 1 :])}" if names[stage + 1 :] else "",
            reason,
        )
        self._captured_stages = stage
        self._graphs.clear()
        self._graphs = self._new_graphs()

    def _new_graphs(self) -> Graphs[State]:
        def capture(inputs: Inputs) -> Captured[State]:
            if not len(self._graphs):  # a pool ends with the last graph in it
                self._pool = torch.cuda.graph_pool_handle()
            return Captured(self._capturable_part, inputs, self.device, self._pool)

        return Graphs(capture, self._kinds)

    def _capturable_part(self, batch: dict[str, Tensor]) -> State:
        return self._stages.run(State(dict(batch)), end=self._captured_stages)


__all__ = ["Precision", "Runner"]
