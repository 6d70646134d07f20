"""The command `policysmith push`."""

from __future__ import annotations

from argparse import Namespace

from ..cli import console, set_up_logging
from .push import push as upload


def push(args: Namespace) -> int:
    """Run `policysmith push`."""
    set_up_logging()
    address = upload(args.checkpoint, args.repository, private=args.private, revision=args.revision)
    console.print(f"pushed  {address}", markup=False)
    return 0


__all__ = ["push"]
