"""Fixtures of all tests: the bundled demonstrations, a frame cache of the test run's own, and a tiny recipe."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from policysmith.components.registry import REGISTRIES

ROOT = Path(__file__).parents[1]
DATASET = ROOT / "recipes" / "datasets" / "drawer_open"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("policysmith", deadline=None)  # a busy machine is not a fault
settings.load_profile("policysmith")


@pytest.fixture(autouse=True, scope="session")
def frame_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps the user's own cache out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("POLICYSMITH_CACHE")
    os.environ["POLICYSMITH_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["POLICYSMITH_CACHE"]
    else:
        os.environ["POLICYSMITH_CACHE"] = before


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets what a test registers."""
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture(scope="session")
def fork_server() -> Iterator[subprocess.Popen[str]]:
    """A process with policysmith imported, which forks to run commands."""
    command = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # read when torch is imported
    with subprocess.Popen(
        command, env=one_thread, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield server


@pytest.fixture
def command(
    fork_server: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command(argv, folder, **environment)`: run a command as in a new process, with one thread.

    With `processes`, it is one training run of so many.
    """

    def run(
        argv: Sequence[str | Path], folder: Path, *, processes: int = 1, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        written = tmp_path_factory.mktemp("command")
        request = {
            "argv": [str(word) for word in argv],
            "folder": str(folder),
            "environment": {**os.environ, "OMP_NUM_THREADS": "1", **environment},
            "processes": processes,
            "stdout": str(written / "out"),
            "stderr": str(written / "err"),
        }
        assert fork_server.stdin is not None
        assert fork_server.stdout is not None
        fork_server.stdin.write(json.dumps(request) + "\n")
        fork_server.stdin.flush()
        code = json.loads(fork_server.stdout.readline())
        return subprocess.CompletedProcess(
            argv, code, *((written / name).read_text() for name in ("out", "err"))
        )

    return run


TINY: dict[str, Any] = {
    "recipe": 1,
    "name": "tiny",
    "data": {"path": str(DATASET), "horizon": 4, "episodes": [0, 1, 2, 3]},
    "policy": {
        "execute": 2,
        "backbones": {
            "vision": {"type": "vit", "patch_size": 16, "width": 16, "depth": 1, "heads": 2},
            "proprio": {"type": "mlp", "hidden": [8], "width": 8},
        },
        "head": {"type": "mlp", "hidden": [16]},
    },
    "transforms": [
        {"type": "random_shift", "pixels": 2},
        {"type": "resize", "size": 32},
        {"type": "normalize_image", "stats": "half"},
        {"type": "normalize", "mode": "mean_std"},
    ],
    "training": {"steps": 4, "batch_size": 4, "log_every": 1},
}


@pytest.fixture(scope="session")
def make_tiny() -> Callable[[], dict[str, Any]]:
    """`make_tiny()`: a recipe that trains in a second, for fixtures that outlive a test."""
    return lambda: copy.deepcopy(TINY)


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A recipe that trains in a second."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def saved_text_encoder() -> Callable[[Path], dict[str, Any]]:
    """`saved_text_encoder(directory)`: options of a `language` backbone with weights that it saves there."""

    def save(directory: Path) -> dict[str, Any]:
        from transformers import BertConfig, BertModel

        sizes = BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        BertModel(sizes, add_pooling_layer=False).save_pretrained(directory / "text_encoder")
        return {"type": "language", "pretrained": str(directory / "text_encoder")}

    return save


@pytest.fixture(scope="session")
def saved_tokenizer() -> Callable[[Path], dict[str, Any]]:
    """`saved_tokenizer(directory)`: options of a `language` collator with a tokenizer that it saves there."""

    def save(directory: Path) -> dict[str, Any]:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = {"[PAD]": 0, "[UNK]": 1, "open": 2, "close": 3, "the": 4, "drawer": 5, "door": 6}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
        fast.save_pretrained(str(directory / "tokenizer"))
        return {"type": "language", "tokenizer": str(directory / "tokenizer"), "max_length": 16}

    return save
