"""The contracts of the kinds of parts.

A part is one class with a nested pydantic `Config`, in a file named like its `type`. Its life:

1. `facts(config)` looks up what the config only points at (a hub id, a local directory): plain JSON values that
   are saved with the policy, so that a checkpoint is rebuilt without them.
2. `specs(config, inputs, facts)` tells what comes out for what goes in. It is pure and allocates nothing.
   What does not fit raises `SpecError`, which names the option at fault and the cure.
3. `__init__(config, inputs, facts)` allocates, from these alone: no download, no `.item()`, no plain tensor
   attributes, because it also runs on the meta device.
4. `load_pretrained()` fills weights, after allocation, only when a policy is first made.

Options called `pretrained`, `architecture` or `tokenizer` may name files relative to the recipe; `facts` and
`load_pretrained` get them spelled out. Weights that modules of a part share are declared, `_tied_weights_keys = {"target": "source"}`.

Batches use LeRobot's flat keys: `observation.images.<camera>` (B, T, 3, H, W), `observation.state` (B, T, S),
`task` (B strings), `action` (B, H, A), `action_is_pad` (B, H). Where robots differ, `embodiment` (B,) numbers them
and `action_dim_is_pad` (B, A) marks the dimensions that a robot does not have. In training, `sample.key` (B,), int64,
is what random numbers of a sample follow from. No part changes a batch it was given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..schemas.errors import SpecError
from ..schemas.part import BackboneConfig, HeadConfig, NeckConfig, NetworkConfig, PartConfig
from ..schemas.specs import Kind, Spec, Specs
from .randomness.per_sample import Draws
from .shares import WHOLE, Shares

Batch = Mapping[str, Any]
Facts = Mapping[str, Any]
Context = dict[str, Tensor]
Chunks = tuple[Tensor, Tensor]
"""Actions (N, H, A) as the head gets them, and is_pad (N, H, A)."""


class Decoder(Protocol):
    """A causal language model that goes on where a backbone stopped reading."""

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (B, M) as embeddings (B, M, D)."""
        ...

    def extend(self, past: Feature, embeddings: Tensor) -> tuple[Tensor, Feature]:
        """Hidden states (B, M, D) of embeddings that follow `past`, its key_values feature, and the longer past.

        Each attends to all valid tokens of the past, to those before it and to itself.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (B, M, vocabulary) of the tokens that follow."""
        ...


@dataclass(frozen=True)
class Feature:
    """What a backbone or a neck publishes, shaped as its Kind says, with a mask (B, N) of the tokens, True where valid.

    Key_values also tell `end` (B,), the position that follows the last token, and may hold the `decoder` that made them.
    """

    values: Tensor
    mask: Tensor | None = None
    end: Tensor | None = None
    decoder: Decoder | None = None


class Part(ABC):
    """What all parts share."""

    Config: ClassVar[type[PartConfig]]

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        """JSON values that the config points at but does not hold. Raises WeightsError where they cannot be read."""
        return {}

    @classmethod
    @abstractmethod
    def specs(cls, config: Any, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Specs of the outputs for specs of the inputs; raises SpecError where they do not fit."""

    @classmethod
    @abstractmethod
    def tiny(cls, directory: Path) -> Any:
        """A config small enough for a test on a CPU; files it points at are written into `directory`."""


class Learner(nn.Module, Part):
    """A part that learns: a backbone, a neck, a head or a network."""

    def repeated_blocks(self) -> list[nn.Module]:
        """Return the layers that the part repeats; training compiles them one by one, each as one graph."""
        return repeated_layers(self)


def repeated_layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers with children that stand in lists or sequences, in order, without those nested inside them."""
    containers = (nn.ModuleList, nn.Sequential)
    found = []
    for child in module.children():
        in_list = isinstance(module, containers) and not isinstance(child, containers)
        if in_list and next(child.children(), None) is not None:
            found.append(child)
        else:
            found += repeated_layers(child)
    return found


class Backbone(Learner):
    """Encodes observations. Publishes `pooled` (B, D), `tokens` (B, N, D), or other outputs of the kinds in FEATURES."""

    Config: ClassVar[type[BackboneConfig]]
    kind: ClassVar[Kind]
    """Kind of the inputs it reads when the recipe does not say."""
    own: ClassVar[tuple[str, ...]] = ()
    """Children that no pretrained weights fill: they train beside adapters, and get none."""
    joint: ClassVar[bool] = False
    """Whether it reads images together with something else, and cannot do without them."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.keys = tuple(self.reads(config, inputs))
        """The observations it reads."""

    @classmethod
    def reads(cls, config: BackboneConfig, available: Specs) -> dict[str, Spec]:
        """The inputs it reads among those available; raises SpecError for an unknown key or a wrong kind."""
        if config.reads is None:
            found = {key: spec for key, spec in available.items() if spec.kind is cls.kind}
            if not found:
                raise SpecError(
                    f"`{config.type}` reads {cls.kind} inputs, and there are none",
                    label=f"no {cls.kind} input",
                    help=f"inputs are: {_listing(available)}",
                )
            return found
        for position, key in enumerate(config.reads):
            spec = available.get(key)
            if spec is None or spec.kind is not cls.kind:
                problem = "is not an input" if spec is None else f"is {spec}"
                raise SpecError(
                    f"`{key}` {problem}; `{config.type}` reads {cls.kind} inputs",
                    field=f"reads.{position}",
                    label=problem,
                    help=f"inputs are: {_listing(available)}",
                )
        return {key: available[key] for key in config.reads}

    @abstractmethod
    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """The named outputs, and only those."""

    def load_pretrained(self) -> None:
        """Fill the weights that the config names; nothing by default. Raises WeightsError."""


class Neck(Learner):
    """Turns features into other features: pools, resamples, mixes or modulates them. Publishes like a backbone.

    Options that name features are listed in `roles`; `components.features.select` finds these among the inputs.
    """

    Config: ClassVar[type[NeckConfig]]
    roles: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"reads": (Kind.TOKENS, Kind.POOLED)}
    """By option that names features: the kinds it accepts, best first."""
    joint: ClassVar[bool] = False
    """Whether heads that read it cannot do without it, as `joint` of a backbone."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        """`inputs` holds all features that it reads, by name (`vision.tokens`), and `embodiment` where there is one."""
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """The named outputs, and only those. `features` also holds `embodiment` (B,) where the batch does."""


class ActionHead(Learner):
    """Predicts action chunks from features, in normalised units."""

    Config: ClassVar[type[HeadConfig]]
    accepts: ClassVar[tuple[Kind, ...]]
    """Kinds of features that it can read, best first."""
    waits_for_device: ClassVar[bool] = False
    """Whether its loss needs values on the host, so that a GPU cannot run ahead."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        """`inputs` holds the features by name (`vision.tokens`), `action` (B, H, A), and `embodiment` where there is one."""
        super().__init__()
        self.config = config

    @classmethod
    def kinds(cls, config: Any) -> tuple[Kind, ...]:
        """Kinds of features that it can read as configured, best first."""
        return cls.accepts

    @classmethod
    def fit(cls, config: Any, inputs: Specs, facts: Facts, chunks: Callable[[], Chunks]) -> dict[str, Any]:
        """More facts, learned from the training chunks, such as a vocabulary; nothing by default."""
        return {}

    @abstractmethod
    def loss(
        self,
        features: Mapping[str, Feature],
        actions: Tensor,
        is_pad: Tensor,
        shares: Shares = WHOLE,
    ) -> dict[str, Tensor]:
        """`{"loss": scalar, "<term>": scalar, ...}` for actions (B, H, A); values where is_pad (B, H, A) do not count.

        Padded are steps after the end of an episode, and dimensions that a robot does not have. `features` also holds
        `embodiment` (B,) and `action_dim_is_pad` (B, A) where the batch does. Each mean is multiplied by the share of its
        kind of value, where there are `shares`: that of a batch in a step that several make.
        """

    def counts(self, actions: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
        """How many values the means of `loss` are over, as scalars by kind of value, for actions and is_pad (B, H, A).

        Shares are computed from them. With none, which is the default, all batches of a step weigh alike, and `loss` is
        called without shares.
        """
        return {}

    @abstractmethod
    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """An action chunk (B, H, A)."""


class Network(Learner):
    """The network of a head that denoises: predicts, at every step of a noisy chunk, what an objective asks for.

    A head names it in the recipe, `network: {type: dit}`, and asks for `accepts` of it in place of its own.
    """

    Config: ClassVar[type[NetworkConfig]]
    accepts: ClassVar[tuple[Kind, ...]]
    """Kinds of features that it can read, best first."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        """`inputs` are those of the head; `facts["time"]` is `unit` for times in [0, 1], `steps` for 0, 1, 2, ..."""
        super().__init__()
        self.config = config

    @abstractmethod
    def encode(self, features: Mapping[str, Feature]) -> Context:
        """What depends on the features alone, computed once for all times; every tensor begins with B."""

    @abstractmethod
    def forward(self, chunk: Tensor, time: Tensor, context: Context, is_pad: Tensor | None = None) -> Tensor:
        """Prediction (B, H, A), float32, at chunk (B, H, A) and time (B,), float32; steps where is_pad (B, H) are hidden."""


class Transform(nn.Module, Part):
    """Acts on a whole batch, on the device it lives on. Random in `train()` mode, deterministic in `eval()`.

    Its `specs` mark the range of values that it leaves behind, and refuse one that it cannot work on.
    Random numbers come from `draws`, so that a sample is changed alike whatever batch, process or device it is in.
    """

    place: str = ""
    """Where it stands in a recipe; transforms at other places draw other numbers."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        """`facts["statistics"]` holds `{key: {"mean": [...], "std": [...], "min", "max", "q01", "q99"}}` of the dataset,
        `facts["measured"]` the same of the keys in `measures` whose values earlier transforms change. Of several robots,
        each is by the robot's name first, and as wide as its own vectors (see `components.embodiments`).
        """
        super().__init__()
        self.config = config

    @classmethod
    def needs(cls, config: Any, inputs: Specs) -> Collection[str]:
        """Observations that it cannot do without, whether a backbone reads them or not; by default none."""
        return ()

    @classmethod
    def measures(cls, config: Any, inputs: Specs) -> Collection[str]:
        """Keys whose statistics it reads; by default none."""
        return ()

    @classmethod
    def remarks(cls, config: Any, inputs: Specs, facts: Facts) -> list[str]:
        """Return what a user must know of the data as it is treated here, a sentence each; by default nothing."""
        return []

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Any]:
        """A new batch; keys that are absent (actions, at deployment) are passed over.

        It may add `action_*` keys, such as what `inverse` must know.
        """

    def draws(self, batch: Batch, values: Tensor, key: str = "") -> Draws:
        """Random numbers for each sample of `values` (B, ...), which are of the batch; with a `key`, others for every key.

        They begin anew with every call.
        """
        return Draws(batch, values, f"{self.place}/{key}")

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """Undo what `forward` did to `action` (and to the state, where it can be undone)."""
        return dict(batch)


class Collator(Part):
    """Turns a list of samples into a batch, in the loader."""

    def __init__(self, config: Any, facts: Facts, assets: Path | None = None) -> None:
        """`facts["statistics"]` as of transforms; `assets` is where `save_assets` wrote, when a saved policy is loaded."""
        self.config = config

    @abstractmethod
    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Samples (T, ...) -> batch (B, T, ...)."""

    def check(self, instructions: Sequence[str], samples: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Raise SpecError for demonstrations that cannot become a batch; nothing by default.

        `instructions` are the different ones of all demonstrations, `samples()` gives demonstrations without images.
        """

    def save_assets(self, directory: Path) -> None:
        """Write what the collator needs beside its config, such as a tokenizer's files."""


def _listing(specs: Specs) -> str:
    return ", ".join(f"{key} ({spec.kind})" for key, spec in specs.items()) or "none"
