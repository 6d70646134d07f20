"""Upload of a trained policy to the Hugging Face hub, in one commit.

push("runs/act", "my-lab/act-drawer", private=True)
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from ...schemas.errors import CheckpointError, ServerError, SpecError
from ..policy.storage import manifest, saving
from ..saved_policy import SavedPolicy
from .card import CARD, model_card

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def push(
    run_or_checkpoint: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Upload the policy of a run or checkpoint with its model card, and return the address of the commit.

    A `README.md` in the checkpoint is its card. Files are verified against the manifest first; the state of
    training stays here. The repository and the branch are created if they are missing. The token is that of
    `hf auth login`, or `HF_TOKEN`.

    Args:
        run_or_checkpoint: A run, for its newest policy, or a checkpoint.
        repository: Repository on the hub, `organization/name`.
        private: Create a private repository.
        revision: Branch to commit to; `main` by default.

    Raises:
        CheckpointError: The policy is missing or damaged, or has no manifest.
        SpecError: The name is not one of a repository, or there is no token.
        ServerError: The hub cannot be reached, or refuses.
    """
    if not _NAME.fullmatch(repository):
        raise SpecError(f"{repository!r} is not a repository of the hub", help="write `organization/name`")
    saved = SavedPolicy.find(run_or_checkpoint)
    listed = manifest.read(saved.directory)
    if listed is None:
        raise CheckpointError(
            f"{saved.directory} has no {manifest.NAME}, so its files cannot be verified; save it again with "
            "`policysmith export`"
        )
    if constants.HF_HUB_OFFLINE:
        raise ServerError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    if get_token() is None:
        raise SpecError(
            "there is no token for the hub", help="run `hf auth login`, or set HF_TOKEN to one that may write"
        )
    names = [name for name in (*listed["files"], manifest.NAME) if name not in (saving.STATE, CARD)]
    own = saved.directory / CARD
    files = [CommitOperationAdd(CARD, own if own.exists() else model_card(saved, repository).encode())]
    files += [CommitOperationAdd(name, saved.directory / name) for name in names]
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="policysmith")
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        done = hub.create_commit(
            repository,
            files,
            commit_message=f"Add {saved.recipe.get('name') or 'policy'}, {saved.directory.name}",
            revision=revision,
        )
    except Exception as error:
        raise _failure(repository, error) from error
    return str(done.commit_url)


def _failure(repository: str, error: Exception) -> ServerError:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if status in (401, 403):
        return ServerError(
            f"the hub does not let this token write to {repository} ({reason}); log in with `hf auth login`, or "
            "choose a repository of your own"
        )
    return ServerError(
        f"{repository} cannot be pushed ({reason}); nothing was committed: check the name and the connection, and try "
        "again"
    )


__all__ = ["push"]
