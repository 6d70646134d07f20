"""The command `policysmith serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from argparse import Namespace

from ...schemas.errors import Interrupted, SpecError
from ..cli import console, set_up_logging
from ..display import shown
from ..saved_policy import SavedPolicy, choose_device
from .observations import read_map
from .server import Limits, PolicyServer

log = logging.getLogger(__name__)
TOKEN = "POLICYSMITH_TOKEN"
"""Environment variable with the token, which a command line would show to every user of the machine."""


def serve(args: Namespace) -> int:
    """Run `policysmith serve` until a signal stops it."""
    set_up_logging()
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # it logs every failed handshake
    limits = Limits(
        token=_token(args.token),
        clients=args.max_clients,
        message=args.max_message * 2**20,
        batch=args.max_batch,
        window=args.batch_wait / 1e3,
    )
    names = read_map(args.map)
    saved = SavedPolicy.find(args.checkpoint, verify=args.verify)
    saved.run_imports(allowed=args.allow_imports)
    device = choose_device(args.device)
    runner = saved.load().runner(device, precision=args.precision)
    server = PolicyServer(runner.policy, limits, names=names, source=runner)
    if limits.token is None and args.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning(
            "everyone who reaches %s can drive this policy; set a token in %s, and encrypt with a proxy",
            args.host,
            TOKEN,
        )

    def ready(address: str) -> None:
        console.print(f"policy  {shown(saved.directory)} on {device}, {runner.precision}", markup=False)
        for key, expected in server.metadata["observation"].items():
            shape = "str" if expected["shape"] is None else f"{expected['dtype']} {tuple(expected['shape'])}"
            called = "" if expected["key"] == key else f" as `{expected['key']}`"
            console.print(f"reads   {key}{called}: {shape}", markup=False)
        console.print(f"ready   {address}", markup=False)

    try:
        number = asyncio.run(server.run(args.host, args.port, ready=ready))
    except socket.gaierror as error:  # it does not name the host
        raise OSError(error.errno, f"no address `{args.host}` to listen on ({error.strerror})") from error
    raise Interrupted(number, f"stopped by {signal.Signals(number).name} after {server.answers:,} answers")


def _token(given: str | None) -> str | None:
    token = os.environ.get(TOKEN) if given is None else given
    if token is not None and (not token.strip() or not token.isascii()):
        raise SpecError(
            "the token is empty or not ASCII", help=f"choose another, or leave out {TOKEN} and `--token`"
        )
    return token


__all__ = ["serve"]
