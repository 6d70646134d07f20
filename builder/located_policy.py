"""Trained policies by the name that a user gives: a run, a checkpoint, or a policy on the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE

from ..schemas.errors import CheckpointError
from ..schemas.paths import exists, expanded
from .policy.storage import saving
from .saved_policy import SavedPolicy

_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_policy(given: str, directory: Path) -> tuple[SavedPolicy, bool]:
    """Return a policy, and whether it is on the hub, where only its config is downloaded.

    Args:
        given: Run or checkpoint, relative to `directory`; or `owner/name` on the hub, if no such file exists.
        directory: Directory that a relative path starts from.

    Raises:
        CheckpointError: There is no such policy, it is damaged, or it is in LeRobot's format.
    """
    path = directory / expanded(given)
    hub = not exists(path) and _HUB.fullmatch(given) is not None
    return policy_at(download_policy(given, [saving.CONFIG]) if hub else path), hub


def policy_at(path: Path) -> SavedPolicy:
    """Return the policy of a run or checkpoint. Raise CheckpointError if there is none of our own format."""
    if not exists(path):
        raise CheckpointError(
            f"no policy exists at {path}; name a checkpoint or a run relative to the recipe's directory, or a policy "
            "on the hub as `<owner>/<name>`"
        )
    config = path / saving.CONFIG
    if config.is_file() and {"type", "input_features"} <= saving.read_json(config).keys():
        raise CheckpointError(
            f"{path} is a policy of LeRobot; convert it first, `policysmith import-lerobot {path} --data DATASET "
            "--output DIR`, and name DIR"
        )
    return SavedPolicy.find(path)


def download_policy(name: str, patterns: Sequence[str]) -> Path:
    """Download the files of a policy on the hub that match the patterns.

    Raise CheckpointError if there are none.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=[*patterns], local_files_only=HF_HUB_OFFLINE))
    except Exception as error:
        where = "in the cache of the hub (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else "on the hub"
        raise CheckpointError(
            f"no directory `{name}` exists beside the recipe, and no such policy {where}: {type(error).__name__}"
        ) from error


__all__ = ["download_policy", "find_policy", "policy_at"]
