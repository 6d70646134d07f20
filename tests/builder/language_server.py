"""A client of yaml-language-server, which editors use, over stdio."""

from __future__ import annotations

import itertools
import json
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "yaml-language-server"
VERSION = "1.25.0"
SECONDS = 60.0  # to wait for an answer
CAPABILITIES = {
    "textDocument": {
        "completion": {"completionItem": {"snippetSupport": True, "documentationFormat": ["markdown"]}},
        "hover": {"contentFormat": ["markdown"]},
        "publishDiagnostics": {},
    }
}


def install(folder: Path) -> Path:
    """Return the server's program, installed in a folder once; skip the test if npm cannot install it."""
    program = folder / "node_modules" / PACKAGE / "bin" / PACKAGE
    if program.exists():
        return program
    if (npm := shutil.which("npm")) is None:
        pytest.skip("npm is missing; install Node.js 18 or later")
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"{PACKAGE}@{VERSION}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"`{' '.join(command)}` failed; run it with a network: {done.stderr.strip()[-300:]}")
    return program


@dataclass
class Answer:
    """The result of a request, and its seconds."""

    result: Any
    seconds: float


@dataclass
class Server:
    """A running server. Documents name the schema in their first line, as users write it."""

    process: subprocess.Popen[bytes]
    schema: Path
    _inbox: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def open(self, text: str) -> Document:
        """Open a document, and return it with its diagnostics."""
        uri = f"file:///recipes/{next(self._numbers)}.yaml"
        document = {
            "uri": uri,
            "languageId": "yaml",
            "version": 1,
            "text": f"# yaml-language-server: $schema={self.schema}\n{text}",
        }
        self._send(method="textDocument/didOpen", params={"textDocument": document})
        found = self._wait(
            lambda message: (
                message.get("method") == "textDocument/publishDiagnostics" and message["params"]["uri"] == uri
            )
        )
        return Document(self, uri, found["params"]["diagnostics"])

    def ask(self, method: str, **params: Any) -> Answer:
        """Return the answer to a request."""
        number, start = next(self._numbers), time.perf_counter()
        self._send(id=number, method=method, params=params)
        message = self._wait(lambda message: message.get("id") == number and "method" not in message)
        assert "error" not in message, message["error"]
        return Answer(message["result"], time.perf_counter() - start)

    def start(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        self.ask("initialize", processId=None, rootUri=None, capabilities=CAPABILITIES)
        self._send(method="initialized", params={})
        settings = {"yaml": {"schemaStore": {"enable": False}}}
        self._send(method="workspace/didChangeConfiguration", params={"settings": settings})

    def _send(self, **message: Any) -> None:
        assert self.process.stdin is not None
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        self.process.stdin.flush()

    def _wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message = self._inbox.get(timeout=SECONDS)
            if "method" in message and "id" in message:  # a request of the server's own
                self._send(id=message["id"], result=None)
            if wanted(message):
                return message

    def _read(self) -> None:
        assert self.process.stdout is not None
        length = 0
        while line := self.process.stdout.readline():
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
            elif line == b"\r\n":
                self._inbox.put(json.loads(self.process.stdout.read(length)))


@dataclass(frozen=True)
class Document:
    """An open document; lines count from 1, as the line of the schema is 0."""

    server: Server
    uri: str
    diagnostics: list[dict[str, Any]]

    def complete(self, line: int, column: int) -> tuple[dict[str, dict[str, Any]], float]:
        """Return what may be written at a place, by label, and the seconds of the answer."""
        answer = self.server.ask("textDocument/completion", **self._at(line, column))
        return {item["label"]: item for item in answer.result["items"]}, answer.seconds

    def hover(self, line: int, column: int) -> tuple[str, float]:
        """Return the text shown at a place, and the seconds of the answer."""
        answer = self.server.ask("textDocument/hover", **self._at(line, column))
        return "" if answer.result is None else answer.result["contents"]["value"], answer.seconds

    def _at(self, line: int, column: int) -> dict[str, Any]:
        return {"textDocument": {"uri": self.uri}, "position": {"line": line, "character": column}}


@contextmanager
def serving(program: Path, schema: Path) -> Iterator[Server]:
    """Run a server for documents with a schema."""
    command = [shutil.which("node") or "node", str(program), "--stdio"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            server = Server(process, schema)
            server.start()
            yield server
        finally:
            process.kill()
