"""LeRobot's policy class around a policysmith policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from .configuration_policysmith import PolicysmithConfig

_ASSETS = "collator"


class PolicysmithPolicy(PreTrainedPolicy):
    """A policysmith policy, built from a recipe and LeRobot's dataset, or rebuilt from its content.

    Args:
        config: Config with a recipe, or with the content of a trained policy.
        dataset_stats: Unused: the policy has statistics of its own.
        dataset_meta: Metadata of the dataset, which a new policy is built for.

    Raises:
        ValueError: There is neither content nor a recipe with a dataset.
    """

    config_class = PolicysmithConfig
    name = "policysmith"

    def __init__(
        self,
        config: PolicysmithConfig,
        dataset_stats: Mapping[str, Any] | None = None,
        dataset_meta: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config)
        from policysmith.builder.policy import RecipeConfig, RecipePolicy

        if config.content:
            self.model: Any = RecipePolicy(RecipeConfig(**json.loads(config.content)))
        elif dataset_meta is None:
            raise ValueError(
                "a new policysmith policy is built for a dataset; train it with `lerobot-train`, or name a trained one "
                "with `--policy.path=DIR`"
            )
        else:
            self.model = _built(config, Path(dataset_meta.root))
            config.content = json.dumps(self.model.content)
        self._sessions: list[Any] = []

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **kwargs: Any) -> PolicysmithPolicy:
        """Load a policy as LeRobot does, with the files of its collator."""
        policy: PolicysmithPolicy = super().from_pretrained(pretrained_name_or_path, **kwargs)
        assets = Path(pretrained_name_or_path) / _ASSETS
        if assets.is_dir():
            policy.model._assets = assets
        return policy

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)
        assets = save_directory / _ASSETS
        assets.mkdir(exist_ok=True)
        self.model.collator.save_assets(assets)
        if not any(assets.iterdir()):
            assets.rmdir()

    def get_optim_params(self) -> list[Tensor]:
        """Return the parameters that train."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, batch: Mapping[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch with actions, and its terms.

        Raises:
            ValueError: `reduction` is not `mean`.
        """
        if reduction != "mean":
            raise ValueError(f"a policysmith policy returns the mean loss of a batch, not `{reduction}`")
        samples = self._samples(batch, {"action", "action_is_pad"})
        output = self.model(self.model._on_device(self.model.collator(samples)))
        terms = {key: float(value.detach()) for key, value in output.items() if value.ndim == 0}
        return output["loss"], terms

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], **kwargs: Any) -> Tensor:
        """Return action chunks (B, H, A) in the robot's units, for observations with their history."""
        chunks: Tensor = self.model.predict(self._samples(batch))
        return chunks[:, self.model.present :]

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], **kwargs: Any) -> Tensor:
        """Return the next actions (B, A) in the robot's units.

        Each row of the batch is an environment with its own history, chunk and ensemble. Images of another size with
        the aspect ratio of training are resized.
        """
        from policysmith.builder.policy.acting.session import Session

        observations = [self._now(sample) for sample in self._samples(batch)]
        if len(self._sessions) != len(observations):
            self._sessions = [Session(self.model) for _ in observations]
        due = [
            (session, sample)
            for session, observation in zip(self._sessions, observations, strict=True)
            if (sample := session.observe(observation)) is not None
        ]
        if due:
            for (session, _), chunk in zip(due, self.model.predict([each for _, each in due]), strict=True):
                session.take(chunk)
        return torch.stack([session.act() for session in self._sessions])

    def reset(self) -> None:
        """Forget running chunks and histories: new episodes begin."""
        self._sessions = []

    def _now(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the last time step of a sample, with images in the size of training."""
        from policysmith.builder.serving.observations import fit

        known = {**self.model.observed.required, **self.model.observed.optional}
        latest = {key: value[-1] if isinstance(value, Tensor) else value for key, value in sample.items()}
        return {
            key: fit(key, value.cpu().numpy(), known[key]) if key.startswith("observation.images.") else value
            for key, value in latest.items()
        }

    def _samples(
        self, batch: Mapping[str, Any], also: set[str] | frozenset[str] = frozenset()
    ) -> list[dict[str, Any]]:
        """Return the samples (T, ...) of a batch of LeRobot, with images in uint8."""
        observed = self.model.observed
        known = {**observed.required, **observed.optional}
        missing = [key for key in observed.required if key not in batch]
        if missing:
            raise ValueError(
                f"the policy reads {', '.join(f'`{key}`' for key in missing)}, and the batch has "
                f"{', '.join(f'`{key}`' for key in batch)}; rename with `--rename_map`"
            )
        kept = {key: value for key, value in batch.items() if key in known or key in also}
        rows = {}
        for key, value in kept.items():
            if isinstance(value, Tensor) and key in known:
                time = value.ndim == (5 if key.startswith("observation.images.") else 3)
                value = value if time else value.unsqueeze(1)
                if key.startswith("observation.images.") and value.is_floating_point():
                    value = (value * 255).round().clamp(0, 255).to(torch.uint8)
            rows[key] = value
        size = len(next(iter(rows.values())))
        return [{key: value[index] for key, value in rows.items()} for index in range(size)]


def _built(config: PolicysmithConfig, root: Path) -> Any:
    """Return a new policy for a dataset on disk."""
    from policysmith import Builder

    changes = {"data.path": str(root.resolve()), "data.episodes": None}
    return Builder.from_recipe(Path(config.recipe)).override(changes).build()
