"""`RecipePolicy`: the policy that a recipe describes, as an ordinary transformers model.

One static pair of classes carries every composed policy: `config.json` holds the resolved recipe, the
dataset's specs and statistics, and the facts of the parts, so that a checkpoint rebuilds itself without
recipe, dataset or hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...components.base import ActionHead, Backbone, Batch, Collator, Feature, Neck, Transform
from ...components.embodiments import ACTION_PADDING, EMBODIMENT, ids_of, padding_mask
from ...components.images.fusion import can_fuse, fusable_chains, run_fused
from ...components.pretrained import lora
from ...components.real_time import Continuation, Prefix
from ...components.shares import shares_in, without_shares
from ...schemas.errors import CheckpointError
from ...schemas.specs import Kind, Spec, Specs
from ..data.robots import Robots
from ..wiring.parts import Parts, Site
from ..wiring.solve import Wiring, observed_keys, wire, with_statistics
from .acting.observations import Observed
from .acting.ranges import finite
from .acting.robot_interface import BROKEN
from .base import BasePolicyModel
from .cached_features import STORED, features_in
from .dependencies import Dependencies
from .freezing import freeze, keep_frozen_in_eval
from .part_modules import make_part
from .recipe_config import CONTENT, RecipeConfig
from .storage import loading, saving

ROBOTS = (EMBODIMENT, ACTION_PADDING)
"""Keys of a batch that tell robots apart; necks and heads receive them beside their features."""
_SENSOR = "check the sensor behind it"


class RecipePolicy(BasePolicyModel):
    """Transforms, backbones, necks and action head of a recipe, wired."""

    config_class = RecipeConfig
    builds_on_meta = True
    recipe_text: str | None = None
    """The recipe as its author wrote it, comments included."""
    directory: Path | None = None
    """Directory that relative files of the recipe start from; a loaded policy needs none."""

    def __init__(self, config: RecipeConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config)
        recipe = config.recipe
        if not recipe or not config.specs:
            raise CheckpointError(
                "the config holds no recipe, so there is nothing to build; build a policy with "
                "`policysmith.Builder`, or load a saved one"
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
        self.frozen = self._freeze()

    def _make(self, site: Site, inputs: Specs) -> nn.Module:
        module = make_part(site, inputs, self._wiring.facts.get(site.key, {}))
        if isinstance(module, Transform):
            module.place = site.key
        return module

    def _freeze(self) -> dict[str, int]:
        """Freeze what the recipe freezes. Return the number of values frozen by each pattern."""
        for backbone in self.backbones.values():
            lora.freeze_all_but_adapters(backbone)
        return freeze(self, (self.config.recipe or {})["policy"]["freeze"])

    @property
    def content(self) -> dict[str, Any]:
        """Fields of the config that say how the policy was made."""
        return {name: getattr(self.config, name) for name in CONTENT}

    @property
    def parts(self) -> Parts:
        """Its parts, with the recipe's options."""
        return self._parts

    @property
    def wiring(self) -> Wiring:
        """Inputs and outputs of each part."""
        return self._wiring

    @cached_property
    def robots(self) -> Robots:
        """Robots that the policy is for; empty if its data does not tell them apart."""
        return Robots.from_json(self.config.robots, self._wiring.observations)

    @cached_property
    def observed(self) -> Observed:
        """Observations that its backbones, transforms and collator cannot do without."""
        wanted = observed_keys(self._parts, self._wiring)
        required = {key: spec for key, spec in self._wiring.observations.items() if key in wanted}
        return Observed(required, robots=self.robots)

    @cached_property
    def dependencies(self) -> Dependencies:
        """Keys of a batch that its backbones and transforms read."""
        return Dependencies(self._parts, self._wiring)

    @property
    def collator(self) -> Collator:
        """The recipe's collator, from samples to batches."""
        if self._collator is None:
            site = self._parts.collator
            facts = self._wiring.facts.get(site.key, {})
            make = cast(type[Collator], site.part)
            self._collator = make(site.resolved_config(self.directory), facts, self._assets)
        return self._collator

    @property
    def text_backbones(self) -> dict[str, list[str]]:
        """Names of the backbones that read nothing but texts, each with the keys of what it reads."""
        texts = (Kind.TEXT, Kind.TOKEN_IDS)
        read = {name: specs for name, specs in self._wiring.reads.items() if name in self.backbones}
        return {
            name: list(specs)
            for name, specs in read.items()
            if specs and all(spec.kind in texts for spec in specs.values())
        }

    @property
    def frozen_backbones(self) -> list[str]:
        return [
            name
            for name, backbone in self.backbones.items()
            if (weights := list(backbone.parameters())) and not any(w.requires_grad for w in weights)
        ]

    @property
    def key_value_parts(self) -> list[nn.Module]:
        parts = {**self.backbones, **self.necks}
        return [part for name, part in parts.items() if Kind.KEY_VALUES in self._wiring.outputs[name]]

    def fused_transforms(self, batch: Batch) -> list[list[str]]:
        together = [chain for chain in fusable_chains(list(self.transforms)) if can_fuse(chain, batch)]
        return [[cast(Transform, each).config.type for each in chain] for chain in together]

    def recomputable(self) -> list[nn.Module]:
        return list(self.backbones.values())

    def train(self, mode: bool = True) -> RecipePolicy:
        """Set training mode, except for modules whose weights are all frozen."""
        super().train(mode)
        if mode:
            keep_frozen_in_eval(self)
        return self

    def load_pretrained(self, name: str) -> None:
        """Load the pretrained weights of a backbone.

        For a new policy only: a checkpoint holds all weights.
        """
        backbone = cast(Backbone, self.backbones[name])
        backbone.config = self._parts.backbones[name].resolved_config(self.directory)
        try:
            with lora.without_adapters(backbone):
                backbone.load_pretrained()
        finally:
            backbone.config = self._parts.backbones[name].config

    def forward(
        self, batch: Batch | None = None, *, return_loss: bool = True, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return `{"loss", terms}` for a batch with actions; in evaluation also `"prediction"` (B, H, A).

        In evaluation mode a batch without actions yields the prediction alone. `transformers.Trainer` passes
        the batch as keyword arguments, which mean the same; the parameter `return_loss` shows it that
        evaluation has a loss.
        """
        given = kwargs if batch is None else batch
        shares = shares_in(given)
        transformed = self.transform(without_shares(given))
        features = self.features(transformed)
        output: dict[str, Tensor] = {}
        if "action" in transformed:
            options = [shares] if shares else []
            output |= self.head.loss(features, transformed["action"], padding_mask(transformed), *options)
        if not self.training:
            output["prediction"] = self._actions(features, transformed, None)
        return output

    @torch.no_grad()
    def loss_counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the counts of the head."""
        images = self.dependencies.images
        transformed = self.transform({key: value for key, value in batch.items() if key not in images})
        return self.head.counts(transformed["action"], padding_mask(transformed))

    @torch.no_grad()
    def inference(self, batch: Batch, generator: torch.Generator | None = None, **kwargs: Any) -> Tensor:
        """Return an action chunk (B, H, A), float32, in the robot's units. Run in evaluation mode.

        Raises:
            SpecError: Observations are missing, or they or actions are not finite, or absurd beside those of training.
        """
        if was_training := self.training:
            self.eval()
        try:
            observed = self.observations_in(batch)
            self.check_observations(observed)
            transformed = self.transform(observed)
            actions = self._actions(self.features(transformed), transformed, generator)
            self.check_actions(observed, actions)
            return actions
        finally:
            if was_training:
                self.train()

    def observations_in(self, batch: Batch) -> dict[str, Any]:
        """Return the entries of a batch that exist when a robot acts."""
        return {k: v for k, v in batch.items() if k in ROBOTS or not k.startswith("action")}

    def check_observations(self, observed: Batch) -> None:
        """Raise SpecError for observations that are missing, not finite, or absurd beside those of training."""
        self.observed.require(observed)
        for key, value in observed.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                finite(key, value, _SENSOR)
                if not self.robots:
                    self.ranges_of({}).check(key, value, _SENSOR)

    def check_actions(self, observed: Batch, actions: Tensor) -> None:
        """Raise SpecError for actions (B, H, A) that are not finite, or absurd beside those of training."""
        finite("action", actions, BROKEN)
        for robot, own in self.robots.split(observed, actions):
            self.ranges_of({EMBODIMENT: robot}).check("action", own, BROKEN)

    def predict(
        self, samples: Sequence[Mapping[str, Any]], generator: torch.Generator | None = None
    ) -> Tensor:
        return self.inference(self._on_device(self.collator(samples)), generator)

    @property
    def continuation(self) -> Continuation | None:
        return self.head.continuation

    @torch.no_grad()
    def continue_chunks(
        self,
        samples: Sequence[Mapping[str, Any]],
        running: Prefix,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        batch = self._on_device(self.collator(samples))
        observed = self.observations_in(batch)
        self.check_observations(observed)
        transformed = self.transform({**observed, "action": running.actions.to(self.device)})
        prefix = Prefix(transformed["action"], running.weights.to(self.device), running.strength)
        actions = self.restore(self.head.inpaint(self.features(transformed), prefix, generator), transformed)
        self.check_actions(observed, actions)
        return actions

    def transform(self, batch: Batch) -> dict[str, Any]:
        """Return the batch as the backbones read it, computed in float32 even under autocast.

        Targets must be as exact as statistics.
        """
        current = self.with_action_padding(batch)
        with torch.autocast(self.device.type, enabled=False):
            for chain in fusable_chains(list(self.transforms)):
                if can_fuse(chain, current):
                    current = run_fused(chain, current)
                else:
                    for transform in chain:
                        current = transform(current)
        return current

    def with_action_padding(self, batch: Batch) -> dict[str, Any]:
        """Return the batch with a mask of the action dimensions that its robots do not have."""
        current = dict(batch)
        if self.robots and ACTION_PADDING not in current:
            current[ACTION_PADDING] = self.robots.action_padding(ids_of(batch))
        return current

    def features(self, batch: Batch) -> dict[str, Feature]:
        """Return the inputs of the head: features by `<part>.<output>`, and the batch's entries on robots."""
        features: dict[str, Feature] = {}
        for _, made in self.walk(batch):
            features |= made
        return self.read_by_head(features, batch)

    def read_by_head(self, features: Mapping[str, Feature], batch: Batch) -> dict[str, Feature]:
        """Return those of the features that the head reads, and the batch's entries on robots."""
        return {**{key: features[key] for key in self._wiring.features}, **self.robot_features(batch)}

    def robot_features(self, batch: Batch) -> dict[str, Feature]:
        """Return the entries of a batch that tell robots apart, as necks and heads read them."""
        return {key: Feature(batch[key]) for key in ROBOTS if key in batch}

    def walk(self, batch: Batch) -> Iterator[tuple[str, dict[str, Feature]]]:
        """Run backbones and necks in order; yield the name of each and its features by `<name>.<output>`."""
        features = self.robot_features(batch)
        for name in self.backbones:
            features |= (made := self.encode(name, batch))
            yield name, made
        for name in self.necks:
            features |= (made := self.mix(name, features))
            yield name, made

    def mix(self, name: str, features: Mapping[str, Feature]) -> dict[str, Feature]:
        """Return the features that a neck makes of others, by `<neck>.<output>`."""
        read = {key: features[key] for key in (*self._wiring.necks[name], *ROBOTS) if key in features}
        outputs = self._wiring.outputs[name]
        published = cast(Neck, self.necks[name])(read, outputs)
        return {f"{name}.{output}": published[output] for output in outputs}

    def encode(self, name: str, batch: Batch) -> dict[str, Feature]:
        """Return the features of a backbone that other parts read, by `<backbone>.<output>`.

        Features that the batch already holds are taken from it.
        """
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

    def _actions(
        self, features: Mapping[str, Feature], batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        return self.restore(self.head.sample(features, generator), batch)

    def restore(self, actions: Tensor, batch: Batch) -> Tensor:
        """Return sampled actions (B, H, A) in the robot's units, float32."""
        current: dict[str, Any] = {**batch, "action": actions.float()}
        with torch.autocast(self.device.type, enabled=False):
            for transform in reversed(self.transforms):
                current = cast(Transform, transform).inverse(current)
        return cast(Tensor, current["action"])

    def save_assets(self, directory: Path) -> None:
        """Also write the import shim, the author's recipe, and the files of the collator."""
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
        """Load a policy with its author's recipe and the files of its collator."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        policy = loaded[0] if isinstance(loaded, tuple) else loaded
        policy._freeze()
        commit = getattr(policy.config, "_commit_hash", None)
        home = loading.home(
            pretrained_model_name_or_path, kwargs, commit, [saving.RECIPE, f"{saving.ASSETS}/*"]
        )
        text, assets = home / saving.RECIPE, home / saving.ASSETS
        policy.recipe_text = text.read_text() if text.is_file() else None
        policy._assets = assets if assets.is_dir() else None
        return loaded


__all__ = ["ROBOTS", "RecipePolicy"]
