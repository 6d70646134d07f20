"""A policy from the side of the robot: an observation in, the next action out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ....components.embodiments import EMBODIMENT
from ....components.real_time import Continuation, Prefix
from ....schemas.errors import CheckpointError, SpecError
from ....schemas.specs import Kind
from ...data.robots import Robots
from ..registration import keywords
from ..registration.registry import Collate, DataCollatorRegistry
from ..sample_pipeline import KEY, SamplePipeline, parse_transform
from .observations import Observed
from .ranges import Ranges, finite
from .session import Episode, Session

if TYPE_CHECKING:
    _Base = PreTrainedModel
else:
    _Base = object

BROKEN = "the weights of the policy or the statistics of its dataset may be broken; do not run it"


class RobotInterface(_Base):
    """Observations, action chunks and single actions of a policy. A mixin of `BasePolicyModel`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._episode = Episode()
        self._ranges: dict[str | None, Ranges] = {}
        self._pipeline: SamplePipeline | None = None

    @property
    def content(self) -> dict[str, Any]:
        """Record of its making in the config: `recipe`, `specs`, `facts`, `statistics`, `provenance`."""
        return cast("dict[str, Any]", getattr(self.config, KEY, {}))

    @property
    def pipeline(self) -> SamplePipeline:
        """Transforms of a sample on its way into a hand-written policy.

        Raises:
            CheckpointError: The policy was not built from a recipe.
        """
        if self._pipeline is None:
            if not hasattr(self.config, KEY):
                raise CheckpointError(
                    f"{type(self).__name__} was not built from a recipe: it knows no dataset and no transforms, "
                    "so it cannot take raw observations; call `inference(batch)`"
                )
            self._pipeline = SamplePipeline(self.config)
        return self._pipeline

    @property
    def collator(self) -> Collate:
        """Function from a list of samples to a batch for the policy."""
        return DataCollatorRegistry.get(self.config.model_type)

    @property
    def execute(self) -> int | None:
        """Actions run from each chunk; None for all of them."""
        return cast("int | None", self._policy_section.get("execute"))

    @property
    def ensemble(self) -> float | None:
        """Decay of the weights that average all predictions of an action; None for the newest alone."""
        return cast("float | None", self._policy_section.get("ensemble"))

    @property
    def present(self) -> int:
        """Index in a chunk of the action for the newest observation; earlier actions lie in the past."""
        steps = list(self.config.transform()[2])
        return steps.index(0) if 0 in steps else 0

    @property
    def _policy_section(self) -> Mapping[str, Any]:
        recipe = self.content.get("recipe") or {}
        section: Mapping[str, Any] = recipe.get("policy") or {}
        return section

    def observation_steps(self) -> list[int]:
        """Return the time steps of the observations, relative to now; the latest is 0."""
        return parse_transform(self.config)[1]

    @property
    def observed(self) -> Observed:
        """Observations that the policy reads.

        Only the collator of a hand-written policy knows them, so they are all images and states of its
        training data, and texts where they are given.
        """
        specs = self.pipeline.specs
        texts = {key: spec for key, spec in specs.items() if spec.kind is Kind.TEXT}
        known = (Kind.ACTION, Kind.EMBODIMENT)
        read = {k: s for k, s in specs.items() if k not in texts and s.kind not in known}
        return Observed(read, texts, self.robots)

    @cached_property
    def robots(self) -> Robots:
        """Robots that the policy is for; empty if its data does not tell them apart."""
        return Robots.from_json(self.content.get("robots"), self.pipeline.specs)

    def inference(self, batch: Mapping[str, Any], **kwargs: Any) -> Tensor:
        """Return an action chunk (B, H, A) for a collated batch without actions."""
        raise NotImplementedError(f"{type(self).__name__} must implement inference(batch) -> (B, H, A)")

    def reset(self) -> None:
        """Forget the running chunk and the observation history: a new episode begins."""
        self._episode.clear()

    def select_action(
        self,
        observation: Mapping[str, Any],
        generator: torch.Generator | None = None,
        *,
        clamp: bool = False,
    ) -> Tensor:
        """Return the next action (A,) in the robot's units.

        The policy looks at the scene once every `execute` steps and runs the chunk in between, or averages
        overlapping chunks.

        Args:
            observation: One time step: `observation.images.<camera>` (3, H, W) uint8, `observation.state`
                (S,), `task` str. Keys that the policy does not read are ignored. A policy for several robots
                also needs `embodiment`, the name of the robot it drives; states and the action are then as
                wide as that robot's own.
            generator: Source of all random numbers; None draws from torch's own generator.
            clamp: Clamp the action to the range of the training episodes, dimension by dimension. Evaluation
                never does.

        Raises:
            SpecError: The observation is unlike those of training, or it or the action holds values that are
                not finite or absurd beside those of training.
        """
        return Session(self, episode=self._episode).select_action(observation, generator, clamp=clamp)

    def chunk(self, observation: Mapping[str, Any], generator: torch.Generator | None = None) -> Tensor:
        """Return the action chunk (H, A) in the robot's units for an observation with history, (T, ...).

        Raises:
            SpecError: The observation is unlike those of training.
        """
        admitted = self.admit(observation, windowed=True)
        return self.to_chunk(self.predict([self.to_sample(admitted)], generator)[0], admitted)

    def admit(self, observation: Mapping[str, Any], *, windowed: bool = False) -> dict[str, Any]:
        """Return the values of an observation that the policy reads, as tensors.

        Values are those of one time step, or `windowed`, (T, ...).

        Raises:
            SpecError: The observation is unlike those of training.
        """
        admitted = self.observed.admit(observation, windowed=windowed)
        ranges = self.ranges_of(admitted)
        for key, value in admitted.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                ranges.check(key, value, "check the sensor and its units, which must be those of the dataset")
        return admitted

    def to_sample(self, admitted: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sample for `predict` of an admitted observation (T, ...)."""
        return self.robots.find(admitted[EMBODIMENT]).to_common(admitted) if self.robots else dict(admitted)

    def to_chunk(self, prediction: Tensor, admitted: Mapping[str, Any]) -> Tensor:
        """Return a predicted chunk (H, A) on the CPU, as wide as the actions of the robot in an observation.

        Raises:
            SpecError: An action is not finite, or far outside the range of training.
        """
        chunk = prediction.cpu()
        if self.robots:
            chunk = chunk[:, : self.robots.find(admitted[EMBODIMENT]).action_dim]
        finite("action", chunk, BROKEN)
        self.ranges_of(admitted).check("action", chunk, BROKEN)
        return chunk

    def predict(
        self, samples: Sequence[Mapping[str, Any]], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return action chunks (B, H, A) in the robot's units for samples with values (T, ...).

        A collator may ask for `action`, which only training has: it gets NaN, so that a policy that uses it
        is found out.

        Raises:
            SpecError: A sample lacks what the policy reads, or the policy returns a chunk of another shape.
        """
        pipeline, called = self.pipeline, type(self).__name__
        size, (horizon, dim) = len(samples), pipeline.chunk_size
        unknown = {
            "action": torch.full((horizon, dim), float("nan")),
            "action_is_pad": torch.zeros(horizon, dtype=torch.bool),
        }
        try:
            transformed = [pipeline({**unknown, **sample, "action": unknown["action"]}) for sample in samples]
            batch = self.collator(transformed)
        except KeyError as error:
            if not (lacking := pipeline.specs.keys() & set(error.args)):
                raise
            raise SpecError(
                f"the observation lacks `{lacking.pop()}`, which {called} reads",
                help=f"given: {', '.join(f'`{key}`' for key in samples[0])}",
            ) from error
        actions = keywords.seeded(self.inference, self.device, generator)(self._on_device(batch))
        if not isinstance(actions, Tensor):
            raise SpecError(
                f"{called}.inference returns {type(actions).__name__}; return a tensor, the action chunk "
                f"({size}, {horizon}, {dim})"
            )
        if actions.ndim == 2 and size == 1:
            actions = actions.unsqueeze(0)
        inside = pipeline.transformed_chunk_size
        if actions.ndim != 3 or len(actions) != size or (not pipeline.own and actions.shape[1:] != inside):
            raise SpecError(
                f"{called}.inference returns {tuple(actions.shape)} for {size} observation{'s' * (size > 1)}; "
                f"return ({size}, {inside[0]}, {inside[1]})"
            )
        chunks = pipeline.inverse(actions, transformed)
        if chunks.shape[1:] != (horizon, dim):
            raise SpecError(
                f"the chunk of {called} is {tuple(chunks.shape[1:])} after its transforms are inverted; "
                f"return ({horizon}, {dim})"
            )
        return chunks

    @property
    def continuation(self) -> Continuation | None:
        """Method of continuing a running chunk; None if the policy has none."""
        return None

    def continue_chunks(
        self,
        samples: Sequence[Mapping[str, Any]],
        running: Prefix,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return action chunks (B, H, A) that continue running ones, whose actions are in the robot's units.

        Raises:
            SpecError: The policy cannot continue chunks, or a sample or a chunk is not finite or absurd.
        """
        raise SpecError(
            f"a {type(self).__name__} cannot continue a running chunk", help="act without real-time chunking"
        )

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def ranges_of(self, observation: Mapping[str, Any]) -> Ranges:
        """Return the ranges of training, of the robot in an observation."""
        robot = observation.get(EMBODIMENT) if self.robots else None
        if robot not in self._ranges:
            held = self.content.get("statistics") or {}
            self._ranges[robot] = Ranges(held if robot is None else held.get(robot) or {})
        return self._ranges[robot]


__all__ = ["BROKEN", "RobotInterface"]
