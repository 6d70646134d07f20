"""Datasets on the hub, against a hub of the test's own: downloaded by file, at a pinned revision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from policysmith.builder import Builder
from policysmith.builder.data.hub import HubDataset
from policysmith.schemas.errors import DatasetError, RecipeError

from .synthetic import write_dataset

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "lab/push"


class Hub:
    """A hub with one dataset; `sent` has the files that were downloaded."""

    def __init__(self, root: Path) -> None:
        self.root, self.sent = root, list[str]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                file = hub.root / path.partition(f"/resolve/{COMMIT}/")[2]
                headers = {"X-Repo-Commit": COMMIT}
                api = f"/api/datasets/{NAME}"
                if path in [f"{api}/revision/{name}" for name in (COMMIT, "main", "v1")]:
                    content = json.dumps(hub.about()).encode()
                elif path == f"{api}/tree/{COMMIT}":
                    content = json.dumps(hub.tree()).encode()
                elif path.startswith(f"/datasets/{NAME}/resolve/{COMMIT}/") and file.is_file():
                    content = file.read_bytes()
                    headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
                    if body:
                        hub.sent.append(str(file.relative_to(hub.root)))
                else:
                    content, headers = b"{}", {"X-Error-Code": "RevisionNotFound"}
                self.send_response(404 if "X-Error-Code" in headers else 200)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    def tree(self) -> list[dict[str, Any]]:
        files = sorted(path for path in self.root.rglob("*") if path.is_file())
        return [
            {
                "type": "file",
                "path": str(path.relative_to(self.root)),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]

    def about(self) -> dict[str, Any]:
        files = [entry["path"] for entry in self.tree()]
        return {
            "id": NAME,
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name in files],
            "private": False,
        }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(write_dataset(tmp_path / "hub", "v2.1").root)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def recipe(path: str, **data: Any) -> dict[str, Any]:
    return {
        "recipe": 1,
        "name": "case",
        "data": {"path": path, "horizon": 3, **data},
        "policy": {
            "backbones": {"proprio": {"type": "mlp", "width": 8, "reads": ["observation.state"]}},
            "head": {"type": "mlp", "reads": ["proprio"], "hidden": [8]},
        },
        "transforms": [{"type": "normalize"}],
        "training": {"steps": 2, "batch_size": 4, "precision": "fp32"},
    }


def test_only_the_files_that_a_recipe_reads_are_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    given = recipe(f"hf://{NAME}@v1", episodes=[1, 3], cameras=["wrist"])
    training, _ = Builder.from_recipe(given).datasets()
    assert len(training) == 8  # type: ignore[arg-type]
    assert sorted(hub.sent) == sorted(
        [
            "meta/episodes.jsonl",
            "meta/info.json",
            "meta/tasks.jsonl",
            *(f"data/chunk-{c}/episode_{e}.parquet" for c, e in (("000", "000001"), ("001", "000003"))),
            *(
                f"videos/chunk-{c}/observation.images.wrist/episode_{e}.mp4"
                for c, e in (("000", "000001"), ("001", "000003"))
            ),
        ]
    )
    done = len(hub.sent)
    builder = Builder.from_recipe(given)
    builder.train(output=tmp_path / "run", device="cpu")
    assert len(hub.sent) == done
    assert COMMIT in json.dumps(builder.initialization.data.paths)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"hf://{NAME}@nowhere", r"lab/push at revision nowhere cannot be downloaded .*name a local copy"),
        ("hf://push", r"'hf://push' is not a dataset of the hub; write `hf://organization/set@revision`"),
    ],
)
def test_what_is_not_there_is_said_in_the_recipe(hub: Hub, path: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Builder.from_recipe(recipe(path)).check()
    assert caught.value.diagnostics[0].code.startswith("E023")


def test_without_the_network_the_cure_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match=r"unset HF_HUB_OFFLINE, or name a local copy"):
        HubDataset(NAME, "v1").download_metadata()


def test_the_newest_revision_is_named(
    hub: Hub, caplog: pytest.LogCaptureFixture, command: Callable[..., Any]
) -> None:
    caplog.set_level("INFO")
    assert HubDataset(NAME, None).download_metadata().name == COMMIT
    assert f"pin it with `hf://{NAME}@{COMMIT}`" in caplog.text
