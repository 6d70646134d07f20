"""The program that evaluates a checkpoint during training, and ends with the run that started it.

Arguments: checkpoint, directory of the results, device, and `imports` to run the files that the recipe imports.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from ...schemas.errors import PolicysmithError
from .evaluate import evaluate


def _end_with_the_run() -> None:
    """Wait for stdin to close, and end this process with its rollouts."""
    while os.read(0, 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGTERM)


def main() -> int | str:
    """Evaluate a checkpoint and return the exit code, or the error."""
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    checkpoint, output, device, *rest = sys.argv[1:]
    try:
        evaluate(
            Path(checkpoint),
            output=Path(output),
            control="none",
            device=device,
            allow_imports=bool(rest),
            verify=False,
        )
    except PolicysmithError as error:
        return str(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
