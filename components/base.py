"""Contracts of the kinds of parts.

A part is one class with a nested pydantic `Config`, in a file named like its `type`. It has four stages:

1. `facts(config)` looks up what the config refers to (a model on the hub, a local directory). Facts are
   plain JSON values, saved with the policy, so that a checkpoint is rebuilt without their source.
2. `specs(config, inputs, facts)` returns the specs of the outputs for those of the inputs. It is pure and
   allocates nothing. It raises `SpecError`, with the option at fault and the cure, if the inputs do not fit.
3. `__init__(config, inputs, facts)` allocates from these alone: no downloads, no `.item()`, no plain tensor
   attributes, because it also runs on the meta device.
4. `load_pretrained()` fills weights after allocation, only when a policy is first built.

Options called `pretrained`, `architecture` or `tokenizer` may name files relative to the recipe; `facts` and
`load_pretrained` receive absolute paths. Declare weights that modules of a part share as
`_tied_weights_keys = {"target": "source"}`.

Batches use LeRobot's flat keys: `observation.images.<camera>` (B, T, 3, H, W), `observation.state` (B, T, S),
`task` (B strings), `action` (B, H, A), `action_is_pad` (B, H). With several robots, `embodiment` (B,)
numbers them and `action_dim_is_pad` (B, A) marks the dimensions that a robot lacks. In training,
`sample.key` (B,), int64, determines the random numbers of a sample. Parts never modify their input batch.
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
from .contract import check_contract
from .randomness.per_sample import Draws
from .real_time import Continuation, Prefix
from .shares import WHOLE, Shares

Batch = Mapping[str, Any]
Facts = Mapping[str, Any]
Context = dict[str, Tensor]
Chunks = tuple[Tensor, Tensor]
"""Actions (N, H, A) as the head sees them, and is_pad (N, H, A)."""


class Decoder(Protocol):
    """A causal language model that continues where a backbone stopped reading."""

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, M, D) of token ids (B, M)."""
        ...

    def extend(self, past: Feature, embeddings: Tensor) -> tuple[Tensor, Feature]:
        """Return hidden states (B, M, D) of embeddings after `past`, key_values, and the extended past.

        Each token attends to the valid tokens of the past, to earlier new tokens and to itself.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores (B, M, vocabulary) of the next tokens."""
        ...


@dataclass(frozen=True)
class Feature:
    """Output of a backbone or a neck, shaped by its Kind, with a mask (B, N), True for valid tokens.

    Key_values also hold `end` (B,), the position after the last token, and optionally their `decoder`.
    """

    values: Tensor
    mask: Tensor | None = None
    end: Tensor | None = None
    decoder: Decoder | None = None


class Part(ABC):
    """Base of all parts. A class with a `Config` of its own is checked when it is defined."""

    Config: ClassVar[type[PartConfig]] = PartConfig
    required: ClassVar[tuple[str, ...]] = ()
    """Class attributes that every part of the kind must have."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_contract(cls, cls.required)

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        """Return JSON values that the config only refers to; raise WeightsError if they are unreadable."""
        return {}

    @classmethod
    @abstractmethod
    def specs(cls, config: Any, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs for those of the inputs; raise SpecError if they do not fit."""

    @classmethod
    @abstractmethod
    def example(cls) -> Any:
        """Return a small config, which `policysmith explain` prints and the contract tests build."""


class Learner(nn.Module, Part):
    """A part with weights: a backbone, a neck, a head or a network."""

    float32: ClassVar[tuple[str, ...]] = ()
    """Children and weights that stay in float32 when a policy runs in bfloat16; the part casts their inputs."""

    def repeated_blocks(self) -> list[nn.Module]:
        """Return the layers that the part repeats; training compiles them one by one, each as one graph."""
        return repeated_layers(self)


def repeated_layers(module: nn.Module) -> list[nn.Module]:
    """Return the composite layers in lists and sequences, in order, without those nested inside them."""
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
    """Encoder of observations; publishes `pooled` (B, D), `tokens` (B, N, D), or other FEATURES."""

    Config: ClassVar[type[BackboneConfig]] = BackboneConfig
    required = ("kind",)
    kind: ClassVar[Kind]
    """Kind of the inputs that the backbone reads by default."""
    own: ClassVar[tuple[str, ...]] = ()
    """Children without pretrained weights: they train beside adapters and receive none."""
    joint: ClassVar[bool] = False
    """True if the backbone reads images together with other inputs and cannot run without images."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.keys = tuple(self.reads(config, inputs))
        """Observations that the backbone reads."""

    @classmethod
    def reads(cls, config: BackboneConfig, available: Specs) -> dict[str, Spec]:
        """Return the inputs to read; raise SpecError for an unknown key or a wrong kind."""
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
        """Return the named outputs, and only those."""

    def load_pretrained(self) -> None:
        """Load the weights that the config names, if any; raise WeightsError if they do not fit."""


class Neck(Learner):
    """Map from features to features, by pooling, resampling, mixing or modulation. Publishes like a backbone.

    `roles` lists the options that name features; `components.features.select` finds those among the inputs.
    """

    Config: ClassVar[type[NeckConfig]] = NeckConfig
    roles: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"reads": (Kind.TOKENS, Kind.POOLED)}
    """Accepted kinds, best first, by option that names features."""
    joint: ClassVar[bool] = False
    """True if heads that read the neck cannot run without it, as `joint` of a backbone."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        """Build the neck; `inputs` holds its features by name (`vision.tokens`), and any `embodiment`."""
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return the named outputs only; `features` also holds `embodiment` (B,) if the batch does."""


class ActionHead(Learner):
    """Predictor of action chunks from features, in normalized units."""

    Config: ClassVar[type[HeadConfig]] = HeadConfig
    required = ("accepts",)
    accepts: ClassVar[tuple[Kind, ...]]
    """Kinds of features that the head can read, best first."""
    averages_values: ClassVar[bool] = False
    """True if `loss` is a mean over the values that are not padding, times `shares["values"]`."""
    waits_for_device: ClassVar[bool] = False
    """True if `loss` needs values on the host, so that a GPU cannot run ahead."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        """Build the head; `inputs` holds the features by name, `action` (B, H, A), and any `embodiment`."""
        super().__init__()
        self.config = config

    @classmethod
    def kinds(cls, config: Any) -> tuple[Kind, ...]:
        """Return the kinds of features that the head can read as configured, best first."""
        return cls.accepts

    @classmethod
    def fit(cls, config: Any, inputs: Specs, facts: Facts, chunks: Callable[[], Chunks]) -> dict[str, Any]:
        """Return further facts learned from the training chunks, such as a vocabulary; none by default."""
        return {}

    @abstractmethod
    def loss(
        self,
        features: Mapping[str, Feature],
        actions: Tensor,
        is_pad: Tensor,
        shares: Shares = WHOLE,
    ) -> dict[str, Tensor]:
        """Return `{"loss": scalar, "<term>": scalar, ...}` for actions (B, H, A), ignoring is_pad (B, H, A).

        Padding covers steps after the end of an episode and dimensions that a robot lacks. `features` also
        holds `embodiment` (B,) and `action_dim_is_pad` (B, A) if the batch does. If several batches make one
        step, multiply each mean by its entry in `shares`.
        """

    def counts(self, actions: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
        """Return the number of values behind each mean of `loss`, as scalars by kind of value.

        Shares are computed from these counts. Without counts, all batches of a step weigh the same, and
        `loss` is called without shares.
        """
        return {"values": (~is_pad).sum()} if self.averages_values else {}

    @abstractmethod
    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Return an action chunk (B, H, A)."""

    @property
    def continuation(self) -> Continuation | None:
        """Method of continuing a running chunk; None if the head has none."""
        return None

    def inpaint(
        self,
        features: Mapping[str, Feature],
        prefix: Prefix,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return an action chunk (B, H, A) that continues a running one; raise SpecError if the head cannot."""
        raise SpecError(
            f"`{self.config.type}` predicts each chunk anew and cannot continue a running one",
            help="act without real-time chunking, or train a `flow_matching` or a `diffusion` head",
        )


class Network(Learner):
    """Network of a denoising head: predicts the target of an objective from a noisy chunk.

    A recipe nests it in the head, `network: {type: dit}`; the head then accepts the same kinds.
    """

    Config: ClassVar[type[NetworkConfig]] = NetworkConfig
    required = ("accepts",)
    accepts: ClassVar[tuple[Kind, ...]]
    """Kinds of features that the network can read, best first."""
    times_of_steps: ClassVar[bool] = False
    """True if `forward` also takes a time for each step (B, H), as a chunk with a given prefix has."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        """Build the network from the inputs of its head.

        `facts["time"]` is `unit` for times in [0, 1], `steps` for 0, 1, 2, ...
        """
        super().__init__()
        self.config = config

    @abstractmethod
    def encode(self, features: Mapping[str, Feature]) -> Context:
        """Return all that depends on the features alone, once for all times; every tensor begins with B."""

    @abstractmethod
    def forward(self, chunk: Tensor, time: Tensor, context: Context, is_pad: Tensor | None = None) -> Tensor:
        """Return the prediction (B, H, A), float32, for chunk (B, H, A) and time (B,), float32.

        Steps at is_pad (B, H) are hidden. The context may also hold what `at` returns for the same time.
        """

    def at(self, time: Tensor) -> Context:
        """Return all that depends on time (B,) alone, which inference keeps; every tensor begins with B."""
        return {}


class Transform(nn.Module, Part):
    """Operation on a whole batch, on its device; random in `train()` mode, deterministic in `eval()` mode.

    `specs` marks the range of the resulting values and rejects a range that the transform cannot handle.
    Take random numbers from `draws`, so that a sample changes the same way in any batch, process or device.
    """

    place: str = ""
    """Position in the recipe; it determines the random numbers."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        """Build the transform.

        `facts["statistics"]` holds `{key: {"mean": [...], "std": [...], "min", "max", "q01", "q99"}}` of the
        dataset, and `facts["measured"]` the same for keys in `measures` whose values earlier transforms
        change. With several robots, both are nested under the robot's name and as wide as its own vectors
        (see `components.embodiments`).
        """
        super().__init__()
        self.config = config

    @classmethod
    def needs(cls, config: Any, inputs: Specs) -> Collection[str]:
        """Return the observations that the transform requires, whether or not a backbone reads them."""
        return ()

    @classmethod
    def measures(cls, config: Any, inputs: Specs) -> Collection[str]:
        """Return the keys whose statistics the transform reads."""
        return ()

    @classmethod
    def remarks(cls, config: Any, inputs: Specs, facts: Facts) -> list[str]:
        """Return notes for the user about how the data is treated, one sentence each."""
        return []

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return a new batch; skip absent keys, such as actions at deployment.

        The batch may gain `action_*` keys, such as values that `inverse` reads.
        """

    def draws(self, batch: Batch, values: Tensor, key: str = "") -> Draws:
        """Return random numbers for each sample of `values` (B, ...), different for every `key`.

        Each call starts the same sequence again.
        """
        return Draws(batch, values, f"{self.place}/{key}")

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """Undo the effect of `forward` on `action`, and on the state if possible."""
        return dict(batch)


class Collator(Part):
    """Conversion of a list of samples to a batch, in the loader."""

    def __init__(self, config: Any, facts: Facts, assets: Path | None = None) -> None:
        """Build the collator; `assets` is a directory that `save_assets` wrote, for a saved policy."""
        self.config = config

    @abstractmethod
    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Stack samples (T, ...) to a batch (B, T, ...)."""

    def check(self, instructions: Sequence[str], samples: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Raise SpecError if some demonstrations cannot become a batch; accept all by default.

        Args:
            instructions: The distinct instructions of all demonstrations.
            samples: Iterates over demonstrations without images.
        """

    def save_assets(self, directory: Path) -> None:
        """Write files that the collator needs beside its config, such as those of a tokenizer."""


def _listing(specs: Specs) -> str:
    return ", ".join(f"{key} ({spec.kind})" for key, spec in specs.items()) or "none"
