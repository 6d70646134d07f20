"""Policies on a hub of the test's own: pushed whole in one commit, with a card that says what was measured."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants
from transformers import AutoModel

from policysmith.builder import Builder
from policysmith.builder.exporting.export import export
from policysmith.builder.policy.storage import manifest
from policysmith.builder.publishing.card import model_card
from policysmith.builder.publishing.push import push
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.schemas.console import policysmith
from policysmith.schemas.errors import CheckpointError, ServerError, SpecError

NAME = "lab/drawer"


class Hub:
    """A hub that takes commits; `requests` has what was asked, `files` what was committed, by branch."""

    status = 200

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.files: dict[str, dict[str, bytes]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                path = unquote(urlsplit(self.path).path)
                status, content = (
                    (hub.status, {"error": "no"}) if hub.status != 200 else (200, hub.answer(path, body))
                )
                sent = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        lines = (
            [json.loads(line) for line in body.splitlines()]
            if path.find("/commit/") > 0
            else json.loads(body or b"{}")
        )
        self.requests.append((path, lines))
        if path.startswith(f"/api/models/{NAME}/preupload/"):
            return {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in lines["files"]
                ]
            }
        if path.startswith(f"/api/models/{NAME}/commit/"):
            added = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.files.setdefault(path.rpartition("/")[2], {}).update(added)
            return {"commitUrl": f"{self.address}/{NAME}/commit/0123", "commitOid": "0123", "success": True}
        return {"url": f"{self.address}/{NAME}", "name": NAME, "errors": [], "warnings": []}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def policy(tiny: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "policy"
    Builder.from_recipe(tiny).build().save_pretrained(path)
    return path


def measured(path: Path, checkpoint: str) -> None:
    """Write the result of an evaluation beside a policy."""
    (path / "evaluation").mkdir()
    found = {"env": "metaworld/drawer-open-v3", "n": 50, "successes": 48, "success_rate": 0.96}
    closed = {**found, "interval_95": [0.865, 0.989]}
    blind = {**found, "successes": 5, "success_rate": 0.1, "interval_95": [0.043, 0.214]}
    result = {"checkpoint": checkpoint, "closed_loop": closed, "control": blind, "hardware": {"cpu": "a CPU"}}
    text = json.dumps({**result, "command": "policysmith evaluate runs/tiny"})
    (path / "evaluation" / "result.json").write_text(text)


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return dict(yaml.safe_load(front))


def test_what_is_pushed_is_the_policy(
    hub: Hub, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (policy / "training.pt").write_bytes(b"state")
    manifest.write(policy)
    assert policysmith(["push", str(policy), NAME, "--private", "--revision", "seed-1"]) == 0
    assert capsys.readouterr().out == f"pushed  {hub.address}/{NAME}/commit/0123\n"
    asked = dict(hub.requests)
    assert "private" in (asked["/api/repos/create"].get("visibility"), *asked["/api/repos/create"])
    assert f"/api/models/{NAME}/branch/seed-1" in asked
    files = hub.files["seed-1"]
    kept = {path.name: path.read_bytes() for path in policy.iterdir() if path.name != "training.pt"}
    assert files.pop("README.md").startswith(b"---\n")
    assert files == kept
    for name, content in files.items():
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    assert AutoModel.from_pretrained(tmp_path / "copy").config.recipe["name"] == "tiny"


def test_a_damaged_policy_is_not_pushed(hub: Hub, policy: Path) -> None:
    weights = policy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        push(policy, NAME)
    (policy / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="cannot be verified"):
        push(policy, NAME)
    assert not hub.requests


def test_without_a_token_nothing_is_asked(hub: Hub, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(policy / "none"))
    with pytest.raises(SpecError, match="hf auth login"):
        push(policy, NAME)
    assert not hub.requests


@pytest.mark.parametrize("name", ["drawer", "lab/a/b", "lab/a b", "https://hub/lab/a"])
def test_other_names_are_refused(hub: Hub, policy: Path, name: str) -> None:
    with pytest.raises(SpecError, match="organization/name"):
        push(policy, name)
    assert not hub.requests


def test_a_hub_that_refuses_or_is_away_is_named(
    hub: Hub, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.status = 403
    with pytest.raises(ServerError, match=f"does not let this token write to {NAME}"):
        push(policy, NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ServerError, match="HF_HUB_OFFLINE is set"):
        push(policy, NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ServerError, match="nothing was committed"):
        push(policy, NAME)


def test_the_card_cites_evaluations_of_this_checkpoint_alone(policy: Path) -> None:
    assert "Not measured" in model_card(SavedPolicy.find(policy))
    measured(policy, "another")
    assert "Not measured" in model_card(SavedPolicy.find(policy))
    text = (policy / "evaluation" / "result.json").read_text()
    (policy / "evaluation" / "result.json").write_text(text.replace("another", "policy"))
    card = model_card(SavedPolicy.find(policy), NAME)
    assert "| `metaworld/drawer-open-v3` | 50 | 48 | 96 % | 86 to 99 % | this one |" in card
    assert "the same recipe without cameras" in card
    front = front_matter(card)
    assert front["library_name"] == "policysmith"
    assert front["pipeline_tag"] == "robotics"
    [result] = front["model-index"][0]["results"]
    assert result["dataset"]["name"] == "metaworld/drawer-open-v3"
    assert result["metrics"][0]["value"] == 96.0
    assert f'AutoModel.from_pretrained("{NAME}")' in card


def test_the_card_names_data_by_fingerprint_and_hub(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = SavedPolicy.find(policy)
    monkeypatch.setitem(saved.content["provenance"], "dataset", "0ffb7cad")
    card = model_card(saved)
    assert "- `drawer_open`, fingerprint `0ffb7cad`" in card
    assert str(policy.parent) not in card
    monkeypatch.setitem(saved.recipe["data"], "path", "hf://lab/drawers@main")
    assert front_matter(model_card(saved))["datasets"] == ["lab/drawers"]


def test_an_export_has_a_card_that_its_manifest_lets_edit(hub: Hub, policy: Path, tmp_path: Path) -> None:
    export(policy, tmp_path / "whole")
    card = tmp_path / "whole" / "README.md"
    assert "policysmith serve" in card.read_text()
    card.write_text("# my own words\n")
    push(tmp_path / "whole", NAME)
    assert hub.files["main"]["README.md"] == b"# my own words\n"
