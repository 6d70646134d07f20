"""The sections of a recipe, version 1. Parts stay raw mappings here: each part's own `Config` judges its options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from .part import Section


def _distinct(items: list[Any]) -> list[Any]:
    if len(set(items)) != len(items):
        raise ValueError("must not name anything twice")
    return items


RawPart = dict[str, Any]
RawBackbone = Annotated[RawPart, Field(json_schema_extra={"x-part": "backbones"})]
RawNeck = Annotated[RawPart, Field(json_schema_extra={"x-part": "necks"})]
RawHead = Annotated[RawPart, Field(json_schema_extra={"x-part": "heads"})]
RawTransform = Annotated[RawPart, Field(json_schema_extra={"x-part": "transforms"})]
RawCollator = Annotated[RawPart, Field(json_schema_extra={"x-part": "collators"})]
Names = Annotated[list[str], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]
Numbers = Annotated[list[int], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Pixels = Annotated[int, Field(ge=1)]
Columns = dict[str, Annotated[str, Field(min_length=1)] | Annotated[Names, Field(min_length=1)] | None]
Size = Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)]


class SourceSection(Section):
    """Demonstrations of one robot among several."""

    path: str = Field(min_length=1)
    """Directory of a LeRobot dataset (v2.0, v2.1 or v3.0); relative to the recipe's own directory."""
    weight: float = Field(default=1.0, gt=0.0)
    """Share of the samples that come from here, relative to the weights of the other sources."""
    cameras: Annotated[Names, Field(min_length=1)] | Annotated[dict[str, str], Field(min_length=1)] | None = (
        None
    )
    """Cameras to use, or `{name: its name in this dataset}`; by default all. Every source must have the same names."""
    columns: Columns | None = None
    """The dataset's columns by the names that the policy reads: `{action: actions, observation.state: [arm, gripper]}` renames and joins, null leaves out."""
    resize: Size | None = None
    """Size in pixels that images are brought to when they are read: one number for a square, or `[height, width]`."""
    episodes: Numbers | None = Field(default=None, min_length=1)
    """Episodes to use; by default all of them."""


class DataSection(Section):
    """Demonstrations and the window cut from them: of one robot by `path`, of several by `sources`."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [key]} for key in ("path", "sources")]}
    )

    path: str | None = Field(default=None, min_length=1)
    """Directory of a LeRobot dataset (v2.0, v2.1 or v3.0); relative to the recipe's own directory."""
    sources: dict[str, SourceSection] | None = Field(default=None, min_length=1)
    """Datasets of several robots that one policy learns from, by names of your choice for the robots."""
    horizon: int = Field(default=16, ge=1)
    """Actions predicted at once (the action chunk)."""
    observation_steps: int = Field(default=1, ge=1)
    """Most recent observations given to the policy."""
    past_actions: int = Field(default=0, ge=0)
    """Of the chunk, actions that were done before now, which are predicted but not run; `observation_steps - 1` in Diffusion Policy."""
    cameras: Names | None = Field(default=None, min_length=1)
    """Cameras to use, without the `observation.images.` prefix; by default all of them."""
    columns: Columns | None = None
    """The dataset's columns by the names that the policy reads: `{action: actions, observation.state: [arm, gripper]}` renames and joins, null leaves out."""
    episodes: Numbers | None = Field(default=None, min_length=1)
    """Episodes to use; by default all of them."""
    validation: Fraction = 0.0
    """Fraction of the episodes held out for validation, of every source."""
    split_seed: int = 0
    """Seed of the split into training and validation episodes."""


class InitSection(Section):
    """A trained policy to start from. Its weights are taken by name and shape; what has no counterpart begins anew."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: str = Field(alias="from", min_length=1)
    """Checkpoint, run or imported policy (relative to the recipe's own directory), or a policy on the hub."""
    statistics: Literal["keep", "recompute"] = "keep"
    """`keep` normalises by the statistics that its weights were trained with, where sizes agree; `recompute` by those of the data."""


Init = Annotated[str, Field(min_length=1)] | InitSection | None


class ComposedPolicySection(Section):
    """A policy made of registered parts."""

    type: Literal["composed"] = "composed"
    """`composed`, or the name of a registered hand-written policy."""
    backbones: dict[Name, RawBackbone] = Field(min_length=1)
    """Encoders of the observations, by names of your choice."""
    necks: dict[Name, RawNeck] = Field(default_factory=dict)
    """What turns features into other features on their way to the head, by names of your choice."""
    head: RawHead
    """The action head."""
    init: Init = None
    """Trained policy to start from: a directory, a policy on the hub, or `{from: ..., statistics: keep}`; not read when a run is resumed."""
    freeze: list[str] = Field(default_factory=list)
    """Glob patterns of parameters that do not train, such as `backbones.vision.*`."""
    execute: int | None = Field(default=None, ge=1)
    """Actions run from each chunk before the policy looks again; by default the whole chunk."""
    ensemble: float | None = Field(default=None, allow_inf_nan=False)
    """Temporal ensembling: average all predictions of an action, weighted by exp(-ensemble * i), i = 0 the oldest; ACT has 0.01."""


class CustomPolicySection(Section):
    """A hand-written policy, registered with `@BasePolicyModel.register(type)`; its config class judges the other keys."""

    model_config = ConfigDict(extra="allow")

    type: str
    """Name the policy is registered under."""
    init: Init = None
    """Trained policy to start from: a directory, a policy on the hub, or `{from: ..., statistics: keep}`; not read when a run is resumed."""
    execute: int | None = Field(default=None, ge=1)
    """Actions run from each chunk before the policy looks again; by default the whole chunk."""
    ensemble: float | None = Field(default=None, allow_inf_nan=False)
    """Temporal ensembling: average all predictions of an action, weighted by exp(-ensemble * i), i = 0 the oldest; ACT has 0.01."""


class GroupSection(Section):
    """Optimiser settings of the parameters that match a pattern."""

    match: str = Field(min_length=1)
    """Glob pattern over parameter names, such as `backbones.vision.*`."""
    lr_scale: float = Field(default=1.0, gt=0.0)
    """Factor on the learning rate."""
    weight_decay: float | None = Field(default=None, ge=0.0)
    """Weight decay of these parameters; by default the optimiser's."""


class OptimizerSection(Section):
    """AdamW. Norms, biases, embeddings of position and other vectors do not decay."""

    lr: float = Field(default=3e-4, gt=0.0)
    """Peak learning rate."""
    betas: list[Fraction] = Field(default_factory=lambda: [0.9, 0.999], min_length=2, max_length=2)
    """Decay rates of the two moments."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Term added to the denominator."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled weight decay."""
    states: Literal["fp32", "8bit"] = "fp32"
    """`8bit` keeps the moments in a quarter of the memory, for policies that would not fit; their rounding adds noise to the steps."""
    groups: list[GroupSection] = Field(default_factory=list)
    """Settings of some parameters; the first group that matches decides."""


class ScheduleSection(Section):
    """Course of the learning rate."""

    type: Literal["constant", "cosine", "linear"] = "cosine"
    """Shape after warm-up."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly from zero."""
    final: float = Field(default=0.0, ge=0.0, le=1.0)
    """Rate at the last step, as a fraction of the peak (not for `constant`)."""


class TrainingSection(Section):
    """How the policy is trained."""

    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=32, ge=1)
    """Samples per process and forward pass."""
    accumulate: int = Field(default=1, ge=1)
    """Forward passes per optimiser step."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, data order, augmentation and noise."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 on a GPU that has it and fp32 elsewhere."""
    float8: Literal["off", "tensorwise", "rowwise"] = "off"
    """Compute large matrix products of layers that train in float8, with a scale for each tensor (fastest) or each row; needs `policysmith[float8]`."""
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    """AdamW settings."""
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    """Learning-rate schedule."""
    clip_norm: float | None = Field(default=1.0, gt=0.0)
    """Largest global gradient norm; null for none."""
    ema: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Decay of the exponential moving average of the weights that is saved as the policy; null for none."""
    workers: int = Field(default=0, ge=0)
    """Loader processes; 0 loads in the training process."""
    cache: Literal["auto", "off"] = "auto"
    """`auto` computes features of frozen backbones once, where nothing random comes before them; `off` in every step."""
    compile: Literal["auto", "blocks", "off"] = "auto"
    """`blocks` compiles repeated layers one by one, which `auto` does on a GPU; `off` compiles nothing."""
    sharding: Literal["off", "full", "hybrid"] = "off"
    """`full` spreads weights and optimiser over all processes (FSDP2), `hybrid` over those of a machine, with a copy on each."""
    cuda_graph: Literal["auto", "off"] = "auto"
    """Whether GPUs may replay steps as CUDA graphs, which `auto` does where that is found to be faster."""
    log_every: int = Field(default=50, ge=1)
    """Steps between log lines."""
    save_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; by default one is written every `save_minutes`, and after the last step."""
    save_minutes: float | None = Field(default=10.0, gt=0.0, allow_inf_nan=False)
    """Minutes between checkpoints where there is no `save_every`; null for none but the last."""
    timeout_minutes: float | None = Field(default=30.0, gt=0.0, allow_inf_nan=False)
    """Minutes after which a run of several processes ends where one of them hangs; null to wait for ever."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept, newest first."""


class EvaluationSection(Section):
    """Closed-loop evaluation in simulation."""

    env: str
    """Environment, such as `metaworld/drawer-open-v3`."""
    embodiment: str | None = None
    """Which robot of `data.sources` the environment holds; needed where there are sources."""
    episodes: int = Field(default=50, ge=1)
    """Rollouts, each from a goal of its own."""
    seed: int = Field(default=10_000, ge=0)
    """Seed of the first rollout; demonstrations were recorded with seeds far from it."""
    control: Literal["none", "blind"] = "none"
    """`blind` also trains and evaluates the same recipe without cameras, for comparison."""


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
    """One policy, from data to evaluation."""

    recipe: Annotated[Literal[1], BeforeValidator(_whole)]  # True and 1.0 equal 1
    """Version of the recipe language."""
    name: Name
    """Name of the policy; `AutoConfig` and `AutoModel` know it by this name."""
    imports: Names = Field(default_factory=list)
    """Python files (relative to the recipe) or modules that register parts of your own; needs `--allow-imports`."""
    data: DataSection
    """Demonstrations."""
    policy: PolicySection
    """The network."""
    transforms: list[RawTransform] = Field(default_factory=list)
    """Transforms of the batch, in order; inverted for the actions that come out."""
    collator: RawCollator = Field(default_factory=lambda: {"type": "default"})
    """Turns samples into a batch."""
    training: TrainingSection
    """Training."""
    evaluation: EvaluationSection | None = None
    """Closed-loop evaluation."""
    output: str | None = None
    """Directory of the run; by default `runs/<name>`."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """Free-form notes, ignored by the builder."""
