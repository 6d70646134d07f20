"""The sections of a recipe, version 1. Parts stay raw mappings, validated later by their own `Config`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from .diagnostics import WarningCode
from .part import Section


def _distinct(items: list[Any]) -> list[Any]:
    if len(set(items)) != len(items):
        raise ValueError("must not contain duplicates")
    return items


WARNINGS = tuple(code.split(" ")[0] for code in get_args(WarningCode))
"""Codes of warnings, such as `W001`."""


def _warning(code: str) -> str:
    if code not in WARNINGS:
        raise ValueError(f"must be one of {', '.join(WARNINGS)}")
    return code


RawPart = dict[str, Any]
RawBackbone = Annotated[RawPart, Field(json_schema_extra={"x-part": "backbones"})]
RawNeck = Annotated[RawPart, Field(json_schema_extra={"x-part": "necks"})]
RawHead = Annotated[RawPart, Field(json_schema_extra={"x-part": "heads"})]
RawTransform = Annotated[RawPart, Field(json_schema_extra={"x-part": "transforms"})]
RawCollator = Annotated[RawPart, Field(json_schema_extra={"x-part": "collators"})]
Names = Annotated[list[str], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]
Numbers = Annotated[list[int], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Silenced = Annotated[str, AfterValidator(_warning), Field(json_schema_extra={"enum": list(WARNINGS)})]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Pixels = Annotated[int, Field(ge=1)]
Columns = dict[str, Annotated[str, Field(min_length=1)] | Annotated[Names, Field(min_length=1)] | None]
Condition = bool | int | float | str | None
Size = Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)]


class SourceSection(Section):
    """One dataset among several."""

    path: str = Field(min_length=1)
    """Directory of a LeRobot dataset (v2.0, v2.1 or v3.0), relative to the recipe's own; or one on the hub, `hf://organization/set@revision`."""
    robot: str | None = Field(default=None, min_length=1)
    """Name of the robot, by default that of the source. Datasets of one robot share its statistics."""
    weight: float = Field(default=1.0, gt=0.0)
    """Sampling weight, relative to the other sources."""
    cameras: (
        Annotated[Names, Field(min_length=1)] | Annotated[dict[str, str | None], Field(min_length=1)] | None
    ) = None
    """Cameras to use, or `{name: its name in this dataset}`, null for one that it lacks, whose images are black; by default all. Names must agree across sources."""
    columns: Columns | None = None
    """Mapping from feature names to dataset columns: `{action: actions, observation.state: [arm, gripper]}` renames and concatenates, null drops."""
    resize: Size | None = None
    """Size of images in pixels after loading: one number for a square, or `[height, width]`."""
    episodes: Numbers | None = Field(default=None, min_length=1)
    """Episodes to use; by default all."""
    where: dict[str, Condition | list[Condition]] | None = None
    """Conditions on episodes: `{success: true, length: [20, 400], task: "open *"}`; a list has texts to choose from, or least and most."""
    trim: Literal["idle_start"] | None = None
    """`idle_start` leaves out the frames at the start of episodes in which the action does not change."""


class DataSection(Section):
    """Demonstrations of one dataset (`path`) or several (`sources`), and the time window of a sample."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [key]} for key in ("path", "sources")]}
    )

    path: str | None = Field(default=None, min_length=1)
    """Directory of a LeRobot dataset (v2.0, v2.1 or v3.0), relative to the recipe's own; or one on the hub, `hf://organization/set@revision`."""
    sources: dict[str, SourceSection] | None = Field(default=None, min_length=1)
    """Several datasets, by names of your choice, which are those of their robots unless they say otherwise."""
    horizon: int = Field(default=16, ge=1)
    """Length of the action chunk, in time steps."""
    observation_steps: int = Field(default=1, ge=1)
    """Number of most recent observations that the policy reads."""
    past_actions: int = Field(default=0, ge=0)
    """Actions of the chunk before the current step, predicted but not executed; `observation_steps - 1` in Diffusion Policy."""
    cameras: Names | None = Field(default=None, min_length=1)
    """Cameras to use, without the prefix `observation.images.`; by default all."""
    columns: Columns | None = None
    """Mapping from feature names to dataset columns: `{action: actions, observation.state: [arm, gripper]}` renames and concatenates, null drops."""
    episodes: Numbers | None = Field(default=None, min_length=1)
    """Episodes to use; by default all."""
    where: dict[str, Condition | list[Condition]] | None = None
    """Conditions on episodes: `{success: true, length: [20, 400], task: "open *"}`; a list has texts to choose from, or least and most."""
    trim: Literal["idle_start"] | None = None
    """`idle_start` leaves out the frames at the start of episodes in which the action does not change."""
    frames: Literal["auto", "raw", "resized", "stream"] = "auto"
    """`raw` decodes videos once, `resized` also shrinks them to what the policy sees, `stream` decodes while training; `auto` takes the first that fits into half of the memory and the cache."""
    on_bad_episode: Literal["error", "skip"] = "error"
    """`skip` leaves out episodes with damaged or missing files, and says so; `error` stops."""
    validation: Fraction = 0.0
    """Fraction of the episodes of every source that is held out for validation."""
    split_seed: int = 0
    """Seed of the split into training and validation episodes."""

    @property
    def robots(self) -> tuple[str, ...]:
        """Names of the robots of several datasets, sorted; none for one dataset."""
        sources = self.sources or {}
        return tuple(sorted({source.robot or name for name, source in sources.items()}))


class InitSection(Section):
    """Trained policy to start from. Weights are matched by name and shape; others start fresh."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: str = Field(alias="from", min_length=1)
    """Checkpoint, run or imported policy (relative to the recipe's own directory), or a policy on the hub."""
    statistics: Literal["keep", "recompute"] = "keep"
    """`keep` normalizes by the statistics of the trained policy if sizes agree; `recompute` by those of the data."""
    cameras: Annotated[dict[str, str | None], Field(min_length=1)] | None = None
    """The dataset's camera for each camera of the trained policy, `{front: top, wrist: null}`; null leaves one out."""


Init = Annotated[str, Field(min_length=1)] | InitSection | None


class ComposedPolicySection(Section):
    """A policy composed of registered parts."""

    type: Literal["composed"] = "composed"
    """`composed`, or the name of a registered custom policy."""
    init: Init = None
    """Trained policy to start from: a directory, a policy on the hub, or `{from: ..., statistics: keep}`; ignored when a run is resumed."""
    execute: int | None = Field(default=None, ge=1)
    """Actions executed from each chunk before the next prediction; by default the whole chunk."""
    ensemble: float | None = Field(default=None, allow_inf_nan=False)
    """Temporal ensembling: average all predictions of an action, weighted by exp(-ensemble * i) with i = 0 the oldest; 0.01 in ACT."""
    freeze: list[str] = Field(default_factory=list)
    """Glob patterns of frozen parameters, such as `backbones.vision.*`."""
    backbones: dict[Name, RawBackbone] = Field(min_length=1)
    """Encoders of the observations, by names of your choice."""
    necks: dict[Name, RawNeck] = Field(default_factory=dict)
    """Parts between backbones and head, by names of your choice."""
    head: RawHead
    """The action head."""


class CustomPolicySection(Section):
    """A custom policy, registered with `@BasePolicyModel.register`; its config validates the other keys."""

    model_config = ConfigDict(extra="allow")

    type: str
    """Registered name of the policy."""
    init: Init = None
    """Trained policy to start from: a directory, a policy on the hub, or `{from: ..., statistics: keep}`; ignored when a run is resumed."""
    execute: int | None = Field(default=None, ge=1)
    """Actions executed from each chunk before the next prediction; by default the whole chunk."""
    ensemble: float | None = Field(default=None, allow_inf_nan=False)
    """Temporal ensembling: average all predictions of an action, weighted by exp(-ensemble * i) with i = 0 the oldest; 0.01 in ACT."""


class GroupSection(Section):
    """Optimizer settings of the parameters that match a pattern."""

    match: str = Field(min_length=1)
    """Glob pattern over parameter names, such as `backbones.vision.*`."""
    lr_scale: float = Field(default=1.0, gt=0.0)
    """Factor on the learning rate."""
    weight_decay: float | None = Field(default=None, ge=0.0)
    """Weight decay of these parameters; by default that of the optimizer."""


class OptimizerSection(Section):
    """AdamW. Norms, biases, position embeddings and other vectors do not decay."""

    lr: float = Field(default=3e-4, gt=0.0)
    """Peak learning rate."""
    betas: list[Fraction] = Field(default_factory=lambda: [0.9, 0.999], min_length=2, max_length=2)
    """Decay rates of the two moments."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Term added to the denominator."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled weight decay."""
    states: Literal["fp32", "8bit"] = "fp32"
    """`8bit` stores the moments in a quarter of the memory, for policies that would not fit; rounding adds noise to the steps."""
    groups: list[GroupSection] = Field(default_factory=list)
    """Settings of some parameters; the first matching group applies."""


class ScheduleSection(Section):
    """Learning-rate schedule."""

    type: Literal["constant", "cosine", "linear"] = "cosine"
    """Shape after warm-up."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warm-up from zero."""
    final: float = Field(default=0.0, ge=0.0, le=1.0)
    """Learning rate at the last step, as a fraction of the peak (not for `constant`)."""


Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Metric = Literal["validation/loss", "evaluation/success"]


class EarlyStopSection(Section):
    """Condition under which a run ends before its last step."""

    metric: Metric = "validation/loss"
    """Value that must improve: the loss on `data.validation`, or the success of `evaluation.every`."""
    patience: int = Field(ge=1)
    """Number of later values, one a checkpoint, that may be no better than the best."""


class TrainingSection(Section):
    """Training settings."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=32, ge=1)
    """Samples per process and forward pass."""
    accumulate: int = Field(default=1, ge=1)
    """Forward passes per optimizer step."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, data order, augmentation and noise."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 on GPUs that support it and fp32 elsewhere."""
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    """AdamW settings."""
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    """Learning-rate schedule."""
    clip_norm: float | None = Field(default=1.0, gt=0.0)
    """Maximum global gradient norm; null for none."""
    ema: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Decay of the exponential moving average of the weights, which is saved as the policy; null for none."""
    workers: int = Field(default=0, ge=0)
    """Loader processes; 0 loads in the training process."""
    cache: Literal["auto", "off"] = "auto"
    """`auto` computes features of frozen backbones once if nothing random precedes them; `off` computes them in every step."""
    compile: Literal["auto", "blocks", "off"] = "auto"
    """`blocks` compiles repeated layers one by one; `auto` does so on a GPU; `off` compiles nothing."""
    sharding: Literal["off", "full", "hybrid"] = "off"
    """`full` shards weights and optimizer over all processes (FSDP2), `hybrid` over those of a machine, with a copy on each."""
    cuda_graph: Literal["auto", "off"] = "auto"
    """`auto` replays steps as CUDA graphs if that is faster; `off` never does."""
    track: Annotated[list[Tracker], AfterValidator(_distinct)] = Field(
        default_factory=lambda: list[Tracker](["tensorboard"]), json_schema_extra={"uniqueItems": True}
    )
    """Trackers that receive losses, speed, validation, success and the recipe; all but `tensorboard` need the extra `tracking`."""
    log_every: int = Field(default=50, ge=1)
    """Steps between log lines."""
    save_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; by default one every `save_minutes`, and one after the last step."""
    save_minutes: float | None = Field(default=10.0, gt=0.0, allow_inf_nan=False)
    """Minutes between checkpoints without `save_every`; null for only the last."""
    timeout_minutes: float | None = Field(default=30.0, gt=0.0, allow_inf_nan=False)
    """Minutes after which a run of several processes ends if one of them hangs; null to wait indefinitely."""
    keep: int = Field(default=2, ge=1)
    """Number of checkpoints to keep, newest first."""
    keep_best: Metric | None = None
    """Value by which the best checkpoint is kept as well, under the name `best` in the run."""
    early_stop: EarlyStopSection | None = None
    """End the run once a value no longer improves; null for never."""


class EvaluationSection(Section):
    """Closed-loop evaluation in simulation."""

    env: str
    """Environment, such as `metaworld/drawer-open-v3`."""
    embodiment: str | None = None
    """Robot of `data.sources` in the environment; required with sources."""
    episodes: int = Field(default=50, ge=1)
    """Number of rollouts, each with its own goal."""
    seed: int = Field(default=10_000, ge=0)
    """Seed of the first rollout; demonstrations use seeds far from it."""
    every: int | None = Field(default=None, ge=1)
    """Steps between evaluations during training, beside it on the same device; null for none."""
    control: Literal["none", "blind"] = "none"
    """`blind` also trains and evaluates the recipe without cameras, for comparison."""


def _policy_kind(value: Any) -> str:
    kind = value.get("type", "composed") if isinstance(value, dict) else getattr(value, "type", "composed")
    return "composed" if kind == "composed" else "custom"


PolicySection = Annotated[
    Annotated[ComposedPolicySection, Tag("composed")] | Annotated[CustomPolicySection, Tag("custom")],
    Discriminator(_policy_kind),
]


def _whole(version: object) -> object:
    if type(version) is not int:
        raise ValueError("must be a whole number")
    return version


class Recipe(Section):
    """A policy, from data to evaluation."""

    recipe: Annotated[Literal[1], BeforeValidator(_whole)]  # True and 1.0 equal 1
    """Version of the recipe language."""
    name: Name
    """Name of the policy, also in `AutoConfig` and `AutoModel`."""
    base: str | Annotated[Names, Field(min_length=1)] | None = Field(default=None, exclude=True)
    """Recipes to start from, relative to this one; mappings merge, later ones win, null removes."""
    vars: dict[str, Any] = Field(default_factory=dict, exclude=True)
    """Values for `${vars.name}` anywhere in the recipe; `${env:NAME:-default}` reads an environment variable."""
    silence: Annotated[list[Silenced], AfterValidator(_distinct)] = Field(
        default_factory=list, json_schema_extra={"uniqueItems": True}
    )
    """Codes of warnings to keep quiet, such as `W005`; `policysmith explain W005` describes one."""
    imports: Names = Field(default_factory=list)
    """Python files (relative to the recipe) or modules that register your own parts; needs `--allow-imports`."""
    data: DataSection
    """Demonstrations."""
    collator: RawCollator = Field(default_factory=lambda: {"type": "default"})
    """Collator, which turns samples into a batch."""
    policy: PolicySection
    """Network."""
    transforms: list[RawTransform] = Field(default_factory=list)
    """Transforms of a batch, in order; inverted for predicted actions."""
    training: TrainingSection
    """Training settings."""
    evaluation: EvaluationSection | None = None
    """Closed-loop evaluation."""
    output: str | None = None
    """Directory of the run; by default `runs/<name>`."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """Free-form notes, ignored by the builder."""
