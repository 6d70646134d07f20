"""`BasePolicyModel`: a `PreTrainedModel` that drives a robot. The only module that subclasses `PreTrainedModel`.

A hand-written policy subclasses it, sets `config_class`, implements `forward` and `inference`, and is registered:

    @BasePolicyModel.register("custom_model")
    class CustomPolicy(BasePolicyModel):
        config_class = CustomPolicyConfig

What transformers leaves to chance is settled here: `post_init` runs once and last whatever a subclass does,
weights set in a constructor survive it, a constructor may load pretrained weights, a loaded policy has every
weight of the checkpoint and every buffer, and a save is complete or not there.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

import torch
from ruamel.yaml import YAML
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ...components.embodiments import EMBODIMENT
from ...components.features import chunk_size
from ...components.layers.recomputation import recompute_all
from ...schemas.errors import CheckpointError, SpecError
from ...schemas.specs import Kind
from ..data.robots import Robots
from . import keywords, loading, manifest, registry, saving, tied_weights
from .ensemble import Ensemble
from .observations import History, Observed
from .ranges import Ranges, finite
from .sample_pipeline import KEY, SamplePipeline, way_of_samples

P = TypeVar("P", bound="type[BasePolicyModel]")
BROKEN = "the weights of the policy or the statistics of its dataset may be broken; do not run it"
_UPLOAD = (
    "repo_id", "token", "private", "commit_message", "commit_description", "revision", "create_pr", "tags",
)  # fmt: skip


class PolicyMeta(type):
    """Runs `post_init` after the outermost constructor, so that no subclass can forget it or run it too early."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        policy = super().__call__(*args, **kwargs)
        policy._trains = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        policy.post_init()
        return policy


class BasePolicyModel(PreTrainedModel, metaclass=PolicyMeta):
    """Base of composed and hand-written policies.

    `forward(batch)` takes one collated batch and gives `{"loss", "prediction", ...}`; `inference(batch)` gives an
    action chunk (B, H, A); `select_action(observation)` gives the next action (A,) in the robot's units.
    """

    main_input_name = "batch"
    accepts_loss_kwargs = False
    base_model_prefix = ""
    builds_on_meta: ClassVar[bool] = False
    """Whether the constructor can run on the meta device; hand-written ones may load weights in it, so they may not."""
    _trains: set[str]
    """Names of the parameters that the constructor leaves to train; loading a checkpoint forgets which they are."""

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        registry.pin_class_attributes(config)
        super().__init__(config)
        self._queue: deque[Tensor] = deque()
        self._ensemble = Ensemble()
        self._history = History()
        self._pipeline: SamplePipeline | None = None
        self._ranges: dict[str | None, Ranges] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)  # type: ignore[no-untyped-call]
        if "forward" in vars(cls):
            cls.forward = keywords.accepted(vars(cls)["forward"])  # type: ignore[method-assign]

    @classmethod
    def register(cls, name: str) -> Callable[[P], P]:
        """Class decorator: make a hand-written policy known as `policy: {type: <name>}` and to the Auto classes.

        Raises RegistryError where the name is taken, or the class or its config breaks the contract.
        """

        def decorate(policy: P) -> P:
            registry.register_policy(name, policy)
            return policy

        return decorate

    def forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        raise NotImplementedError(
            f"{type(self).__name__} must implement forward(batch) -> {{'loss', 'prediction'}}"
        )

    def inference(self, batch: Mapping[str, Any], **kwargs: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must implement inference(batch) -> (B, H, A)")

    def loss_counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the number of values of a training batch that the means in its loss are over, as scalars by kind of value.

        Where several batches make one step, of several processes or of `training.accumulate`, each is told its shares
        by these, and `forward` multiplies every mean by `share_of(batch, kind)`. With none, which is the default, all
        batches of a step weigh alike.
        """
        return {}

    def observation_steps(self) -> list[int]:
        """Time steps of the observations, relative to now; the latest is 0."""
        return way_of_samples(self.config)[1]

    @property
    def observed(self) -> Observed:
        """The observations it reads. What a hand-written policy reads is known only to its collator: all images and
        states that it was trained with, and texts where they are given.
        """
        specs = self.pipeline.specs
        texts = {key: spec for key, spec in specs.items() if spec.kind is Kind.TEXT}
        told = (Kind.ACTION, Kind.EMBODIMENT)
        read = {k: s for k, s in specs.items() if k not in texts and s.kind not in told}
        return Observed(read, texts, self.robots)

    @cached_property
    def robots(self) -> Robots:
        """The robots it is for, which are none where its data tells none apart."""
        return Robots.from_json(self.content.get("robots"), self.pipeline.specs)

    def chunk(self, observation: Mapping[str, Any], generator: torch.Generator | None = None) -> Tensor:
        """Action chunk (H, A) in the robot's units for one observation with its history, each value (T, ...).

        Raises SpecError for an observation that is not like those the policy was trained on.
        """
        return self._chunk(self._admitted(observation, windowed=True), generator)

    def _admitted(self, observation: Mapping[str, Any], *, windowed: bool = False) -> dict[str, Any]:
        """The observation as it is read. Raises SpecError for one unlike those of training."""
        admitted = self.observed.admit(observation, windowed=windowed)
        ranges = self._ranges_of(admitted)
        for key, value in admitted.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                ranges.check(
                    key, value, "look at the sensor and at the units, which are those of the dataset"
                )
        return admitted

    def _chunk(self, observation: Mapping[str, Any], generator: torch.Generator | None) -> Tensor:
        """The chunk (H, A) for an admitted observation; of several robots, with the dimensions of its own."""
        if not self.robots:
            chunk = self._predict(observation, generator)
        else:
            robot = self.robots.find(observation[EMBODIMENT])
            chunk = self._predict(robot.to_common(observation), generator)[:, : robot.action_dim]
        finite("action", chunk, BROKEN)
        self._ranges_of(observation).check("action", chunk, BROKEN)
        return chunk

    def _ranges_of(self, observation: Mapping[str, Any]) -> Ranges:
        """Ranges of training, of the robot that an observation is of."""
        robot = observation.get(EMBODIMENT) if self.robots else None
        if robot not in self._ranges:
            held = self.content.get("statistics") or {}
            self._ranges[robot] = Ranges(held if robot is None else held.get(robot) or {})
        return self._ranges[robot]

    def _predict(self, observation: Mapping[str, Any], generator: torch.Generator | None) -> Tensor:
        """The chunk for an admitted observation, by the recipe's transforms and the registered collator.

        A collator may ask for the `action` that only training has: it gets NaN, so that a policy that looked at it
        would show.
        """
        pipeline = self.pipeline
        horizon, dim = chunk_size(pipeline.specs)
        unknown = {
            "action": torch.full((horizon, dim), float("nan")),
            "action_is_pad": torch.zeros(horizon).bool(),
        }
        collate = registry.DataCollatorRegistry.get(self.config.model_type)
        try:
            sample = pipeline({**observation, **unknown})
            batch = collate([sample])
        except KeyError as error:
            if not (lacking := pipeline.specs.keys() & set(error.args)):
                raise
            raise SpecError(
                f"the observation lacks `{lacking.pop()}`, which {type(self).__name__} reads",
                help=f"given: {', '.join(f'`{key}`' for key in observation)}",
            ) from error
        on_device = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        actions = keywords.seeded(self.inference, self.device, generator)(on_device)
        if not isinstance(actions, Tensor):
            raise SpecError(
                f"{type(self).__name__}.inference gives {type(actions).__name__}; it must give a tensor, "
                f"the action chunk (1, {horizon}, {dim})"
            )
        actions = actions if actions.ndim == 3 else actions.unsqueeze(0)
        inside = chunk_size(pipeline.transformed)
        if actions.ndim != 3 or len(actions) != 1 or (not pipeline.own and actions.shape[1:] != inside):
            raise SpecError(
                f"{type(self).__name__}.inference gives {tuple(actions.shape)} for one observation; "
                f"the chunk must be (1, {inside[0]}, {inside[1]})"
            )
        chunk = pipeline.inverse(actions, [sample])[0].cpu()
        if chunk.shape != (horizon, dim):
            raise SpecError(
                f"the chunk of {type(self).__name__} is {tuple(chunk.shape)} after its transforms were inverted; "
                f"it must be ({horizon}, {dim})"
            )
        return chunk

    @property
    def pipeline(self) -> SamplePipeline:
        """The way of a sample into a hand-written policy. Raises CheckpointError where its config knows no recipe."""
        if self._pipeline is None:
            if not hasattr(self.config, KEY):
                raise CheckpointError(
                    f"{type(self).__name__} was not built from a recipe: it knows no dataset and no transforms, "
                    "so it cannot take raw observations; call `inference(batch)`"
                )
            self._pipeline = SamplePipeline(self.config)
        return self._pipeline

    @property
    def execute(self) -> int | None:
        """Actions run from each chunk; None for all of them."""
        recipe = self.content.get("recipe") or {"policy": {}}
        return cast("int | None", recipe["policy"].get("execute"))

    @property
    def present(self) -> int:
        """Place in a chunk of the action for the newest observation; those before it were done already."""
        steps = list(self.config.transform()[2])
        return steps.index(0) if 0 in steps else 0

    @property
    def ensemble(self) -> float | None:
        """Decay of the weights by which all predictions of an action are averaged; None for the newest alone."""
        recipe = self.content.get("recipe") or {"policy": {}}
        return cast("float | None", recipe["policy"].get("ensemble"))

    @property
    def content(self) -> dict[str, Any]:
        """What its config holds of its making: `recipe`, `specs`, `facts`, `statistics`, `provenance`; or nothing."""
        return cast("dict[str, Any]", getattr(self.config, KEY, {}))

    def eval(self) -> Self:
        """Evaluation mode; gives the policy itself."""
        super().eval()  # type: ignore[no-untyped-call]
        return self

    def reset(self) -> None:
        """Forget the running chunk and the observation history: a new episode begins."""
        self._queue.clear()
        self._ensemble.clear()
        self._history.clear()

    @torch.no_grad()
    def select_action(
        self,
        observation: Mapping[str, Any],
        generator: torch.Generator | None = None,
        *,
        clamp: bool = False,
    ) -> Tensor:
        """Next action (A,) in the robot's units.

        `observation` is one time step: `observation.images.<camera>` (3, H, W) uint8, `observation.state` (S,),
        `task` str; more may be given than the policy reads. A policy for several robots must be told which one it
        drives, `embodiment`, by name; states and the action are then as wide as that robot's own. Looks at the scene
        once every `execute` steps and runs the chunk in between, or averages overlapping chunks. What is random follows
        from `generator`, where it is given. With `clamp`, actions are brought into the range of the training episodes,
        dimension by dimension; evaluation never does that. Raises SpecError for an observation that is not like those
        it was trained on, and for values, in it or in the action, that are not finite or absurd beside those of
        training.
        """
        if self.training:
            raise RuntimeError("the policy is in training mode; call `policy.eval()` before `select_action`")
        steps = self.observation_steps()
        admitted = self._admitted(observation)
        self._history.add(admitted, steps)
        action = self._next(steps, generator)
        return self._ranges_of(admitted).clamp("action", action) if clamp else action

    def _next(self, steps: list[int], generator: torch.Generator | None) -> Tensor:
        """The next action (A,) of the running chunk, or of a new one."""
        if not self._queue:
            chunk = self._chunk(self._history.window(steps), generator)[self.present :]
            if self.ensemble is not None:
                return self._ensemble.add(chunk, self.ensemble)
            self._queue.extend(chunk[: self.execute])
        return self._queue.popleft()

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Compute layers again in the backward pass, in all parts that can. Raises SpecError where none can."""
        reasons = recompute_all(self.recomputable())
        if reasons is not None:
            message = f"no part of {type(self).__name__} can compute its layers again: {'; '.join(reasons)}"
            raise SpecError(message, help="leave `gradient_checkpointing` out")

    def recomputable(self) -> list[torch.nn.Module]:
        """Return the parts whose layers may be computed again."""
        return list(self.children())

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As `activation_checkpointing_enable`, which is its name since transformers 5.24."""
        self.activation_checkpointing_enable()

    def initialize_weights(self) -> None:
        """Nothing: every part has initialised its own weights, and pretrained ones must survive `post_init`.

        transformers would draw anew whatever stands in a model of its own unannounced, such as an adapter.
        """

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: `save_pretrained` writes an import shim, never a copy of the source."""

    @classmethod
    def get_init_context(cls, *args: Any, **kwargs: Any) -> Any:
        contexts = super().get_init_context(*args, **kwargs)
        if cls.builds_on_meta:
            return contexts
        return [
            context
            for context in contexts
            if not (isinstance(context, torch.device) and context.type == "meta")
        ]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers', but a missing, unexpected, misshapen or not finite weight is a WeightsError, every buffer is
        right, and what the constructor froze is frozen.

        Raises CheckpointError for a directory that holds no complete checkpoint, or, unless `verify=False`, files other
        than those that its manifest lists.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        verify = kwargs.pop("verify", True)
        kwargs["ignore_mismatched_sizes"] = True  # they are reported below, with the other complaints
        load: Callable[..., Any] = super().from_pretrained
        with loading.found(pretrained_model_name_or_path) as source:
            saving.check_directory(source, kwargs.get("subfolder"), digests=verify)
            with loading.guarded(source, composed=cls.builds_on_meta):
                policy, info = load(source, *args, output_loading_info=True, **kwargs)
        loading.refuse_misfits(pretrained_model_name_or_path, policy, info)
        loading.refuse_not_finite(pretrained_model_name_or_path, policy)
        policy.repair_buffers()
        loading.align(policy)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(name in policy._trains)
        return (policy, info) if wants_info else policy

    def repair_buffers(self) -> None:
        """Recompute the buffers that a checkpoint does not hold, from a twin built on the CPU.

        transformers leaves them as uninitialised memory after loading (huggingface/transformers#48892).
        """
        missing = loading.unsaved_buffers(self)
        if not missing:
            return
        twin = loading.unsaved_buffers(type(self)(copy.deepcopy(self.config)))
        for name, buffer in missing.items():
            buffer.data.copy_(twin[name])

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """`{target: source}` of all weights declared as tied, by the policy and by any module in it."""
        tied: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels)
        return {**tied, **tied_weights.declared(self)}

    def save_pretrained(
        self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """As transformers', but written aside, read back, and then moved into place. One process of many writes.

        With `push_to_hub`, `repo_id`, `token`, `private` and the like are those of `push_to_hub()`. Raises
        CheckpointError where what was written cannot be read back.
        """
        upload = {key: kwargs.pop(key) for key in _UPLOAD if key in kwargs}
        if not kwargs.get("is_main_process", True):
            return
        with saving.staged(Path(save_directory)) as directory:
            super().save_pretrained(directory, *args, **kwargs)
            self.save_assets(directory)
            saving.verify(directory)
            manifest.write(directory)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **upload})

    def save_assets(self, directory: Path) -> None:
        """Write what belongs beside config and weights: the resolved recipe, where there is one."""
        if self.content:
            with (directory / "recipe.lock.yaml").open("w") as stream:
                YAML().dump(self.content["recipe"], stream)
