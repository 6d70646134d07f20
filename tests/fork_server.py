"""Run commands in forks of one process that has imported policysmith, so that each starts at once.

A line of JSON on stdin is a request: `{"argv", "folder", "environment", "stdout", "stderr"}`; a line on stdout is its
exit code. `argv` is `policysmith ...`, `build-and-train ...`, `python FILE ...` or `python -c CODE ...`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import sys
import threading
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
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            os._exit(_run(request))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        sys.stdout.write(json.dumps(code) + "\n")
        sys.stdout.flush()


def _run(request: dict[str, Any]) -> int:
    """Return the exit code of a request, run in this process."""
    for number, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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
