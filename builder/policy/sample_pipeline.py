"""Transforms of samples for a hand-written policy: those of the recipe, then those of its config.

A composed policy transforms whole batches inside the model. A hand-written one has its own collator, so its
samples are transformed one by one before it, and predicted actions are mapped back the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PretrainedConfig

from ...components.base import Transform
from ...components.embodiments import EMBODIMENT
from ...components.features import chunk_size
from ...components.randomness.per_sample import SAMPLE_KEY
from ...components.registry import TRANSFORMS
from ...schemas.errors import SpecError
from ...schemas.specs import Spec

KEY = "policysmith"
"""Attribute of a hand-written config that holds recipe, specs, statistics and provenance."""

SampleTransform = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class SamplePipeline:
    """Transforms of a sample, and their inverse for actions."""

    def __init__(self, config: PretrainedConfig) -> None:
        content: Mapping[str, Any] = getattr(config, KEY)
        self.specs = {key: Spec.from_json(spec) for key, spec in content["specs"].items()}
        self._transforms: list[Transform] = []
        specs = dict(self.specs)
        for position, raw in enumerate(content["recipe"]["transforms"]):
            part = TRANSFORMS.get(raw["type"])
            options = part.Config.model_validate(raw)
            place = f"transforms.{position}"
            facts = {**content.get("facts", {}).get(place, {}), "statistics": content["statistics"]}
            transform = part(options, specs, facts)
            transform.place = place
            self._transforms.append(transform)
            specs = part.specs(options, specs, facts)
        self.transformed = specs
        self.own, _, _ = parse_transform(config)

    @property
    def chunk_size(self) -> tuple[int, int]:
        """Steps and dimensions (H, A) of an action chunk of the dataset."""
        return chunk_size(self.specs)

    @property
    def transformed_chunk_size(self) -> tuple[int, int]:
        """Steps and dimensions (H, A) of an action chunk after the transforms of the recipe."""
        return chunk_size(self.transformed)

    def __call__(self, sample: Mapping[str, Any], key: int | None = None) -> dict[str, Any]:
        """Transform a sample with values (T, ...); draw by its `key` in training, nothing in evaluation."""
        current: Mapping[str, Any] = self.by_recipe(sample, key)
        for own in self.own:
            set_mode(own, training=key is not None)
            current = own(current)
        return dict(current)

    def by_recipe(self, sample: Mapping[str, Any], key: int | None = None) -> dict[str, Any]:
        """Apply the transforms of the recipe to a sample, values (T, ...)."""
        batch = {k: v.unsqueeze(0) if isinstance(v, Tensor) else [v] for k, v in sample.items()}
        if key is not None:
            batch[SAMPLE_KEY] = torch.tensor([key])
        for transform in self._transforms:
            batch = transform.train(key is not None)(batch)
        return {k: v[0] for k, v in batch.items() if k != SAMPLE_KEY}

    def inverse(self, actions: Tensor, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return predicted actions (B, H, A) in the robot's units.

        Transforms of the config are inverted first, from the last to the first, sample by sample.

        Args:
            actions: Predicted actions (B, H, A).
            samples: Transformed samples that the actions were predicted for.
        """
        invertible = [own for own in reversed(self.own) if callable(getattr(own, "inverse", None))]
        if invertible:
            chunks = []
            for action, sample in zip(actions.float().cpu(), samples, strict=True):
                current: Mapping[str, Any] = {**sample, "action": action}
                for own in invertible:
                    current = own.inverse(current)  # type: ignore[attr-defined]
                chunks.append(current["action"])
            actions = torch.stack(chunks)
        kept = [key for key in samples[0] if key == EMBODIMENT or key.startswith("action_reference.")]
        batch = {key: torch.stack([sample[key] for sample in samples]).to(actions.device) for key in kept}
        batch["action"] = actions.float()
        for transform in reversed(self._transforms):
            batch = transform.inverse(batch)
        return batch["action"]


def set_mode(transform: Any, *, training: bool) -> None:
    """Set the mode of a transform of a config, and of those inside it, as far as they have one."""
    mode = getattr(transform, "train" if training else "eval", None)
    if callable(mode):
        mode()
    inner = getattr(transform, "transforms", None)
    for each in inner if isinstance(inner, list | tuple) else ():
        set_mode(each, training=training)


def parse_transform(config: PretrainedConfig) -> tuple[list[SampleTransform], list[int], list[int]]:
    """Return what `transform()` of a hand-written config returns, checked and in one form.

    Returns:
        A list of transforms, the time steps of the observations relative to the latest of them, and the time
        steps of the actions relative to it.

    Raises:
        SpecError: It returns something else, or action steps that are not consecutive.
    """
    result = config.transform()
    called = f"{type(config).__name__}.transform()"
    if not (isinstance(result, tuple) and len(result) == 3):
        raise SpecError(
            f"{called} returns {result!r}; return (transforms, observation indices, action indices)"
        )
    transforms, observations, actions = result
    if transforms is None:
        transforms = []
    elif not isinstance(transforms, list | tuple):
        transforms = [transforms]
    if not all(callable(transform) for transform in transforms):
        raise SpecError(
            f"{called} returns {result[0]!r} as transforms; return None, one transform or a list of them"
        )
    for name, indices in (("observation", observations), ("action", actions)):
        if not isinstance(indices, Sequence) or not indices or not all(type(i) is int for i in indices):
            raise SpecError(
                f"{called} returns {indices!r} as {name} indices; return a list of at least one integer"
            )
    if 0 not in actions or list(actions) != list(range(actions[0], actions[0] + len(actions))):
        raise SpecError(
            f"{called} returns the action indices {list(actions)}, but a chunk is executed step by step from 0, which is "
            "now",
            label="actions that are not consecutive",
            help=f"return `list(range({len(actions)}))`",
        )
    latest = max(observations)
    return list(transforms), [step - latest for step in observations], list(actions)


class TransformedDataset(Dataset[dict[str, Any]]):
    """A dataset whose samples pass through a pipeline, indexed by `index`, or by `(index, key)` for training.

    With a key, all random numbers follow from it, also in transforms of the config that draw from torch's
    generator.
    """

    def __init__(self, dataset: Dataset[dict[str, Any]], pipeline: SamplePipeline) -> None:
        self.source, self._pipeline = dataset, pipeline

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        if not isinstance(item, tuple):
            return self._pipeline(self.source[item])
        index, key = item
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            return self._pipeline(self.source[index], key)


__all__ = ["KEY", "SamplePipeline", "TransformedDataset", "parse_transform", "set_mode"]
