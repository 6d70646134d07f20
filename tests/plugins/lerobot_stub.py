"""As much of LeRobot 0.6 as the plug-in touches: the registry of configs, the base of policies, the presets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from safetensors.torch import load_model, save_model
from torch import nn


class NormalizationMode(StrEnum):
    IDENTITY = "IDENTITY"


@dataclass
class PreTrainedConfig:
    known: ClassVar[dict[str, type]] = {}
    n_obs_steps: int = 1
    device: str | None = None
    push_to_hub: bool = True

    @classmethod
    def register_subclass(cls, name: str) -> Callable[[type], type]:
        def register(kind: type) -> type:
            cls.known[name] = kind
            return kind

        return register

    def __post_init__(self) -> None: ...

    def save(self, directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def from_pretrained(cls, directory: Path) -> Any:
        return cls.known["policysmith"](**json.loads((directory / "config.json").read_text()))


class PreTrainedPolicy(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config

    def save_pretrained(self, directory: Path) -> None:
        directory.mkdir()
        self._save_pretrained(directory)

    def _save_pretrained(self, directory: Path, state_dict: Any = None) -> None:
        self.config.save(directory)
        save_model(self, str(directory / "model.safetensors"))

    @classmethod
    def from_pretrained(cls, directory: Path, **_: Any) -> Any:
        policy = cls(PreTrainedConfig.from_pretrained(directory))
        load_model(policy, str(directory / "model.safetensors"))
        return policy.eval()


class Preset:
    def __init__(self, **options: Any) -> None:
        self.options = options


def modules() -> dict[str, ModuleType]:
    """Return the modules that the plug-in imports, by name."""
    contents: dict[str, dict[str, Any]] = {
        "lerobot": {},
        "lerobot.configs": {"NormalizationMode": NormalizationMode, "PreTrainedConfig": PreTrainedConfig},
        "lerobot.optim": {"AdamWConfig": Preset, "CosineDecayWithWarmupSchedulerConfig": Preset},
        "lerobot.policies": {},
        "lerobot.policies.pretrained": {"PreTrainedPolicy": PreTrainedPolicy},
        "lerobot.processor": {
            "make_default_pre_post_processors": lambda config, stats, **given: (config, given)
        },
    }
    made = {}
    for name, content in contents.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(content)
    return made


def unload() -> None:
    """Forget the plug-in, so that the next test imports it anew."""
    for name in [name for name in sys.modules if name.startswith("lerobot")]:
        del sys.modules[name]
