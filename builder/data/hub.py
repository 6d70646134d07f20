"""Datasets on the Hugging Face hub: `hf://organization/set@revision`, downloaded as far as they are needed.

The metadata comes first; then the rows of the chosen episodes and the videos of the chosen cameras. Files are
kept by the hub's own cache (`HF_HOME`). Without a revision, the newest is used and named in the log.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from ...schemas.errors import DatasetError
from .lerobot.features import Storage
from .lerobot.layout import Layout

_logger = logging.getLogger(__name__)
_PATTERN = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_META = ("meta/**",)


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset on the hub, at a revision or at the newest."""

    name: str
    revision: str | None

    @classmethod
    def parse(cls, path: str) -> HubDataset | None:
        """Return the dataset of `hf://organization/set@revision`, or None for other paths.

        Raises:
            DatasetError: The path begins with `hf://` and is of another form.
        """
        if not path.startswith("hf://"):
            return None
        match = _PATTERN.fullmatch(path)
        if match is None:
            raise DatasetError(
                f"{path!r} is not a dataset of the hub; write `hf://organization/set@revision`"
            )
        return cls(match[1], match[2])

    def download_metadata(self) -> Path:
        """Download the metadata, and return the local directory of the dataset.

        Raises:
            DatasetError: The hub has no such dataset or revision, or cannot be reached.
        """
        root = self._download(_META)
        if self.revision is None:
            _logger.info(
                "%s is now at revision %s; pin it with `hf://%s@%s`",
                self.name,
                root.name,
                self.name,
                root.name,
            )
        return root

    def download(self, layout: Layout, cameras: Iterable[str], episodes: Sequence[int]) -> None:
        """Download the rows of `episodes` and their videos of `cameras`, named as in the dataset.

        Raises:
            DatasetError: As raised by `download_metadata`.
        """
        filmed = [name for name in cameras if layout.cameras[name].storage is Storage.VIDEO]
        chosen = layout.choose_episodes(episodes)
        files = dict.fromkeys(episode.data_file for episode in chosen)
        files |= dict.fromkeys(episode.videos[name].path for episode in chosen for name in filmed)
        missing = [str(file.relative_to(layout.root)) for file in files if not file.exists()]
        if missing:
            _logger.info("downloading %d files of %s", len(missing), self.name)
            self._download(missing, revision=layout.root.name)

    def _download(self, patterns: Sequence[str], revision: str | None = None) -> Path:
        offline = constants.HF_HUB_OFFLINE
        try:
            return Path(
                snapshot_download(
                    self.name,
                    repo_type="dataset",
                    revision=revision or self.revision,
                    allow_patterns=list(patterns),
                    local_files_only=offline,
                    endpoint=os.environ.get("HF_ENDPOINT"),
                )
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            cure = (
                "unset HF_HUB_OFFLINE, or "
                if offline
                else "check the name, the revision and the connection, or "
            )
            at = f" at revision {self.revision}" if self.revision else ""
            raise DatasetError(
                f"the dataset {self.name}{at} cannot be downloaded from the hub ({reason}); {cure}name a local copy"
            ) from error


__all__ = ["HubDataset"]
