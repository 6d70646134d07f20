"""`RecipePolicy`: the policy that a recipe describes, as an ordinary transformers model.

One static pair carries every composed policy: `config.json` holds the resolved recipe, the dataset's specs and
statistics, and what the parts looked up, so a checkpoint rebuilds itself without the recipe, the dataset or a hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ...components.base import ActionHead, Backbone, Batch, Collator, Facts, Feature, Transform
from ...components.embodiments import ACTION_PADDING, EMBODIMENT, ids_of, padding
from ...components.images.fusion import chains, fused, fuses
from ...components.layers.recomputation import recompute
from ...components.pretrained import lora
from ...components.shares import shares_in, without_shares
from ...schemas.errors import CheckpointError, PolicysmithError
from ...schemas.specs import Kind, Spec, Specs
from ..data.robots import Robots
from ..wiring.parts import Parts, Site
from ..wiring.solve import Wiring, demanded, traced, wire, with_statistics
from . import loading, saving
from .base import BROKEN, BasePolicyModel
from .cached_features import STORED, features_in
from .freezing import freeze, rest
from .observations import Observed
from .ranges import finite

MODEL_TYPE = "policysmith_policy"
CONTENT = ("recipe", "specs", "facts", "statistics", "robots", "signals", "provenance")
"""Fields of the config."""
ROBOTS = (EMBODIMENT, ACTION_PADDING)
"""Keys of a batch that tell robots apart; necks and heads get them beside their features."""
_SENSOR = "look at the sensor that gave it"
_AUTO_MAP = {"AutoConfig": "policy_shim.RecipeConfig", "AutoModel": "policy_shim.RecipePolicy"}


class RecipeConfig(PretrainedConfig):
    """All that a composed policy is rebuilt from. Values are plain JSON."""

    model_type = MODEL_TYPE

    recipe: dict[str, Any] | None = None
    """The resolved recipe: every default filled in."""
    specs: dict[str, Any] | None = None
    """Specs of what the dataset gives."""
    facts: dict[str, Any] | None = None
    """What the parts looked up outside the recipe, by part."""
    statistics: dict[str, Any] | None = None
    """Statistics of the training episodes, by key; of several robots, by name and key."""
    robots: dict[str, Any] | None = None
    """Of several robots, the specs of what each one's own dataset gives, by name."""
    signals: dict[str, Any] | None = None
    """Names of the dimensions of states and actions, and frames per second; of several robots, by name."""
    provenance: dict[str, Any] | None = None
    """Hashes of recipe and dataset, versions of the packages."""

    def transform(self) -> tuple[None, list[int], list[int]]:
        """Observation and action time steps; a composed policy runs its transforms itself."""
        data = (self.recipe or {})["data"]
        past = data.get("past_actions", 0)
        return None, list(range(1 - data["observation_steps"], 1)), list(range(-past, data["horizon"] - past))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers'. Raises CheckpointError for values that no config can have."""
        with loading.readable(config_dict):
            return super().from_dict({**config_dict, "auto_map": _AUTO_MAP}, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: a checkpoint holds an import shim, never a copy of the source."""

    def to_dict(self) -> dict[str, Any]:
        static = {"model_type": MODEL_TYPE, "architectures": ["RecipePolicy"], "auto_map": _AUTO_MAP}
        held = super().to_dict()
        held.pop("content", None)  # checkpoints of version 0.1 hold everything twice
        return {**held, **static}


class RecipePolicy(BasePolicyModel):
    """Transforms, backbones and action head of a recipe, wired."""

    config_class = RecipeConfig
    builds_on_meta = True
    recipe_text: str | None = None
    """The recipe as it was written, comments included."""
    directory: Path | None = None
    """Where relative files of the recipe lie, for a policy that was just built; a loaded one needs none of them."""

    def __init__(self, config: RecipeConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config)
        recipe = config.recipe
        if not recipe or not config.specs:
            raise CheckpointError(
                "the config holds no recipe, so there is nothing to build; build a policy by "
                "`policysmith.builder.Builder`, or load one that was saved whole"
            )
        self._assets: Path | None = None
        self._parts = Parts.from_resolved(recipe)
        specs = {key: Spec.from_json(spec) for key, spec in config.specs.items()}
        readers = [self._parts.collator, *self._parts.transforms]
        facts = with_statistics(config.facts or {}, readers, config.statistics or {})
        self._wiring: Wiring = wire(self._parts, specs, facts)
        self._collator: Collator | None = None
        self.transforms = nn.ModuleList(
            cast(Transform, self._make(site, self._wiring.into(index)))
            for index, site in enumerate(self._parts.transforms)
        )
        self.backbones = nn.ModuleDict(
            {name: self._make(site, self._wiring.reads[name]) for name, site in self._parts.backbones.items()}
        )
        self.necks = nn.ModuleDict(
            {
                name: self._make(self._parts.necks[name], self._wiring.into_neck(name))
                for name in self._wiring.necks
            }
        )
        self.head = cast(
            ActionHead, self._make(self._parts.head, {**self._wiring.features, **self._wiring.given})
        )
        self.frozen = self._rest()

    def _make(self, site: Site, inputs: Specs) -> nn.Module:
        module = make(site, inputs, self._wiring.facts.get(site.key, {}))
        if isinstance(module, Transform):
            module.place = site.key
        return module

    def _rest(self) -> dict[str, int]:
        """Stop the gradients that the recipe stops; gives the values frozen by each pattern."""
        for backbone in self.backbones.values():
            lora.rest(backbone)
        return freeze(self, (self.config.recipe or {})["policy"]["freeze"])

    @property
    def content(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in CONTENT}

    @cached_property
    def observed(self) -> Observed:
        """The observations that its backbones read or its transforms need, and those of which its collator makes these.

        A collator cannot do without an observation where its `specs` refuses the others, or makes less of them.
        """
        wiring, site = self._wiring, self._parts.collator
        wanted = demanded(self._parts, wiring)
        made = wanted - wiring.observations.keys()

        def needed(key: str) -> bool:
            others = {other: spec for other, spec in wiring.observations.items() if other != key}
            try:
                left = site.part.specs(site.config, others, wiring.facts.get(site.key, {}))
            except PolicysmithError:
                return True
            return not made <= left.keys()

        told = (Kind.ACTION, Kind.EMBODIMENT)
        seen = {k: spec for k, spec in wiring.observations.items() if spec.kind not in told}
        required = {key: spec for key, spec in seen.items() if key in wanted or needed(key)}
        return Observed(required, robots=self.robots)

    @property
    def collator(self) -> Collator:
        """Turns samples into the batches this policy reads."""
        if self._collator is None:
            site = self._parts.collator
            facts = self._wiring.facts.get(site.key, {})
            make = cast(type[Collator], site.part)
            self._collator = make(site.opened(self.directory), facts, self._assets)
        return self._collator

    def train(self, mode: bool = True) -> RecipePolicy:
        """Training mode for what trains; frozen modules stay in evaluation mode, so that their statistics rest."""
        super().train(mode)
        if mode:
            rest(self)
        return self

    def load_pretrained(self, name: str) -> None:
        """Fill the weights that a backbone takes from elsewhere. For a new policy only: a checkpoint holds them."""
        backbone = cast(Backbone, self.backbones[name])
        backbone.config = self._parts.backbones[name].opened(self.directory)
        try:
            with lora.set_aside(backbone):
                backbone.load_pretrained()
        finally:
            backbone.config = self._parts.backbones[name].config

    def recomputable(self) -> list[nn.Module]:
        return list(self.backbones.values())

    def forward(
        self, batch: Batch | None = None, *, return_loss: bool = True, **kwargs: Any
    ) -> dict[str, Tensor]:
        """`{"loss", terms}` for a batch with actions; also `"prediction"` (B, H, A) in evaluation mode.

        In evaluation mode a batch without actions gives the prediction alone. `transformers.Trainer` passes the
        batch as keyword arguments, which mean the same; it learns from `return_loss` that a loss is given.
        """
        given = kwargs if batch is None else batch
        shares = shares_in(given)
        transformed = self.transform(without_shares(given))
        features = self.features(transformed)
        output: dict[str, Tensor] = {}
        if "action" in transformed:
            told = [shares] if shares else []
            output |= self.head.loss(features, transformed["action"], padding(transformed), *told)
        if not self.training:
            output["prediction"] = self._actions(features, transformed, None)
        return output

    @torch.no_grad()
    def loss_counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the counts of the head."""
        transformed = self.transform({key: value for key, value in batch.items() if key not in self.images})
        return self.head.counts(transformed["action"], padding(transformed))

    @torch.no_grad()
    def inference(self, batch: Batch, generator: torch.Generator | None = None, **kwargs: Any) -> Tensor:
        """Action chunk (B, H, A), float32, in the robot's units. Runs in evaluation mode.

        Raises SpecError for observations, and for actions, that are not finite or absurd beside those of training.
        """
        was_training = self.training
        self.eval()
        try:
            observed = {k: v for k, v in batch.items() if k in ROBOTS or not k.startswith("action")}
            for key, value in observed.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    finite(key, value, _SENSOR)
                    if not self.robots:
                        self._ranges_of({}).check(key, value, _SENSOR)
            transformed = self.transform(observed)
            actions = self._actions(self.features(transformed), transformed, generator)
            finite("action", actions, BROKEN)
            for robot, own in self.robots.split(batch, actions):
                self._ranges_of({EMBODIMENT: robot}).check("action", own, BROKEN)
            return actions
        finally:
            self.train(was_training)

    def fused_transforms(self, batch: Batch) -> list[list[str]]:
        """Transforms, by type, that run as one kernel on batches like this one."""
        together = [chain for chain in chains(list(self.transforms)) if fuses(chain, batch)]
        return [[cast(Transform, each).config.type for each in chain] for chain in together]

    @property
    def frozen_backbones(self) -> list[str]:
        """The backbones with weights none of which trains."""
        return [
            name
            for name, backbone in self.backbones.items()
            if (weights := list(backbone.parameters())) and not any(w.requires_grad for w in weights)
        ]

    @property
    def images(self) -> set[str]:
        """The images that the collator gives."""
        return {key for key, spec in self._wiring.collated.items() if spec.kind is Kind.IMAGE}

    @property
    def key_value_parts(self) -> list[nn.Module]:
        """Backbones and necks whose layers are looked into: others read their keys and values."""
        parts = {**self.backbones, **self.necks}
        return [part for name, part in parts.items() if Kind.KEY_VALUES in self._wiring.outputs[name]]

    def outputs_of(self, backbone: str) -> list[str]:
        """The outputs that necks and head read of a backbone."""
        return list(self._wiring.outputs[backbone])

    def way_to(self, backbones: list[str]) -> list[set[str]]:
        """Before each transform, the keys that these backbones depend on, and those that the transform needs."""
        way = traced(self._parts, self._wiring, backbones)
        return [
            keys | {*cast(type[Transform], site.part).needs(site.config, self._wiring.into(index))}
            for index, (keys, site) in enumerate(zip(way, self._parts.transforms, strict=False))
        ]

    def read_besides(self, backbones: list[str]) -> set[str]:
        """Keys that the collator gives and that are read by others than these backbones."""
        return demanded(self._parts, self._wiring, without=backbones)

    def read_only_by(self, backbones: list[str]) -> set[str]:
        """Keys that the collator gives for these backbones alone."""
        return traced(self._parts, self._wiring, backbones)[0] - self.read_besides(backbones)

    @cached_property
    def robots(self) -> Robots:
        """The robots it is for, which are none where its data tells none apart."""
        return Robots.from_json(self.config.robots, self._wiring.observations)

    def _predict(self, observation: Mapping[str, Any], generator: torch.Generator | None) -> Tensor:
        batch = self.collator([observation])
        on_device = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        return self.inference(on_device, generator)[0].cpu()

    def transform(self, batch: Batch) -> dict[str, Any]:
        """The batch as the backbones read it. In float32 under autocast too: targets must be as exact as statistics."""
        current = self.told(batch)
        with torch.autocast(self.device.type, enabled=False):
            for chain in chains(list(self.transforms)):
                if fuses(chain, current):
                    current = fused(chain, current)
                else:
                    for transform in chain:
                        current = transform(current)
        return current

    def told(self, batch: Batch) -> dict[str, Any]:
        """The batch, with the dimensions that its robots do not have."""
        current = dict(batch)
        if self.robots and ACTION_PADDING not in current:
            current[ACTION_PADDING] = self.robots.action_padding(ids_of(batch))
        return current

    def features(self, batch: Batch) -> dict[str, Feature]:
        """What the head reads: features by `<backbone>.<output>` or `<neck>.<output>`, and what the batch says of robots."""
        robots = {key: Feature(batch[key]) for key in ROBOTS if key in batch}
        features = dict(robots)
        for name in self.backbones:
            features |= self.encode(name, batch)
        for name in self.necks:
            features |= self.pass_on(name, features)
        return {**{key: features[key] for key in self._wiring.features}, **robots}

    def encode(self, name: str, batch: Batch) -> dict[str, Feature]:
        """What necks and head read of one backbone, by `<backbone>.<output>`; taken from the batch where it is there."""
        if (stored := features_in(batch, name, self._wiring.outputs[name])) is not None:
            return stored
        backbone, outputs, dtype = self.backbones[name], self._wiring.outputs[name], self.dtype
        observations = {
            key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for key, value in batch.items()
            if not key.startswith(("action", STORED))
        }
        trains = any(parameter.requires_grad for parameter in backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            published = backbone(observations, outputs)
        return {f"{name}.{output}": published[output] for output in outputs}

    def pass_on(self, name: str, features: Mapping[str, Feature]) -> dict[str, Feature]:
        """What one neck makes of the features so far, `embodiment` among them, by `<neck>.<output>`."""
        read = {key: features[key] for key in (*self._wiring.necks[name], *ROBOTS) if key in features}
        made = self.necks[name](read, self._wiring.outputs[name])
        return {f"{name}.{output}": made[output] for output in self._wiring.outputs[name]}

    def _actions(
        self, features: Mapping[str, Feature], batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        current: dict[str, Any] = {**batch, "action": self.head.sample(features, generator).float()}
        with torch.autocast(self.device.type, enabled=False):
            for transform in reversed(self.transforms):
                current = cast(Transform, transform).inverse(current)
        return cast(Tensor, current["action"])

    def save_assets(self, directory: Path) -> None:
        super().save_assets(directory)
        (directory / "policy_shim.py").write_text(saving.SHIM)
        if self.recipe_text is not None:
            (directory / saving.RECIPE).write_text(self.recipe_text)
        assets = directory / saving.ASSETS
        assets.mkdir(exist_ok=True)
        self.collator.save_assets(assets)
        if not any(assets.iterdir()):
            assets.rmdir()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        policy = loaded[0] if isinstance(loaded, tuple) else loaded
        policy._rest()
        commit = getattr(policy.config, "_commit_hash", None)
        home = loading.home(
            pretrained_model_name_or_path, kwargs, commit, [saving.RECIPE, f"{saving.ASSETS}/*"]
        )
        text, assets = home / saving.RECIPE, home / saving.ASSETS
        policy.recipe_text = text.read_text() if text.is_file() else None
        policy._assets = assets if assets.is_dir() else None
        return loaded


def make(site: Site, inputs: Specs, facts: Facts) -> nn.Module:
    """A part as the recipe has it; a backbone with its adapters. Raises SpecError for a backbone that cannot have them."""
    module: nn.Module = cast(Any, site.part)(site.config, inputs, facts)
    if isinstance(module, Backbone):
        if module.config.lora is not None:
            lora.adapt(module, module.config.lora)
        if module.config.gradient_checkpointing:
            recompute(module)
    return module
