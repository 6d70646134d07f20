"""Run commands in forks of one process that has imported policysmith, so that each starts at once.

A line of JSON on stdin is a request: `{"argv", "folder", "environment", "processes", "stdout", "stderr"}`; a line on
stdout is its exit code. Several processes are one training run on one machine, as under `torchrun`. `argv` is `policysmith ...`, `build-and-train ...`, `python FILE ...` or `python -c CODE ...`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any


def serve() -> None:
    """Answer requests until stdin closes."""
    import timm  # noqa: F401
    from transformers.models.vit import modeling_vit  # noqa: F401

    from policysmith.components.registry import REGISTRIES

    for registry in REGISTRIES.values():
        for name in registry.names():
            registry.get(name)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_forked(json.loads(line))) + "\n")
        sys.stdout.flush()


def _forked(request: dict[str, Any]) -> int:
    """Run a request in processes of its own; return the exit code of the first that fails, or 0."""
    running, world, first = set(), request["processes"], 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for rank in range(world):
        process = os.fork()
        if process == 0:
            if world > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                names |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
                request["environment"] |= {name: str(value) for name, value in names.items()}
            os._exit(_run(request))
        running.add(process)
    while running:
        process, status = os.wait()
        running.discard(process)
        if (code := os.waitstatus_to_exitcode(status)) and not first:
            first = code
            time.sleep(3.0 if running else 0.0)  # others that fail at the same time have their say
            for other in running:
                os.kill(other, signal.SIGTERM)
    return first


def _run(request: dict[str, Any]) -> int:
    """Return the exit code of a request, run in this process."""
    for number, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    program, *sys.argv = request["argv"]
    code = 0
    try:
        _call(Path(program).name)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code


def _call(program: str) -> None:
    from policysmith.schemas import console

    if program in ("policysmith", "build-and-train"):
        sys.argv.insert(0, program)
        sys.exit(getattr(console, program.replace("-", "_"))())
    sys.path.insert(0, "" if sys.argv[0] == "-c" else str(Path(sys.argv[0]).resolve().parent))
    if sys.argv[0] == "-c":
        code = sys.argv.pop(1)
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(code, "<string>", "exec"), main.__dict__)  # noqa: S102
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve()
