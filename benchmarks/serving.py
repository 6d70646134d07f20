"""Soak of a policy server: robots at a fixed rate, among clients that send rubbish, stall or die.

    policysmith serve runs/vit_mlp --port 8000 &
    python benchmarks/serving.py --address ws://127.0.0.1:8000 --process $! --seconds 600

It fails if a valid request goes without its answer, and prints the times of answers and the memory of the server. Robots
disconnect after a hundred answers and connect again; every second request continues the chunk before, if the policy can.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect as open_websocket

import policysmith
from policysmith.builder.serving.protocol import pack

Client = Callable[[random.Random], None]
STAY, MEMORY_SAMPLES = 100, 10
"""Requests of a robot before it leaves and comes again, and samples of the server's memory."""


class Soak:
    """Clients of one server, each in a thread, until the time is over."""

    def __init__(self, address: str, *, robots: int, rate: float) -> None:
        self.address, self.rate = address, rate
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self.misbehaved = self.connections = 0
        self._over = threading.Event()
        bad: list[Client] = [self._malformed, self._oversized, self._slow, self._dying, self._refused]
        self._threads = [threading.Thread(target=self._robot, args=[number]) for number in range(robots)]
        self._threads += [threading.Thread(target=self._misbehave, args=[client]) for client in bad]

    def run(self, seconds: float, process: int) -> dict[str, Any]:
        """Return what happened in so many seconds; memory is that of the server's process."""
        for thread in self._threads:
            thread.start()
        memory = []
        for _ in range(MEMORY_SAMPLES):
            time.sleep(seconds / MEMORY_SAMPLES)
            memory.append(round(_memory(process) / 1e6, 1))
        self._over.set()
        for thread in self._threads:
            thread.join()
        ordered = sorted(self.seconds)
        return {
            "seconds": seconds,
            "answers": len(ordered),
            "unanswered": self.failures,
            "misbehaved": self.misbehaved,
            "p50_ms": round(1e3 * statistics.median(ordered), 2),
            "p99_ms": round(1e3 * ordered[int(0.99 * (len(ordered) - 1))], 2),
            "slowest_ms": round(1e3 * ordered[-1], 2),
            "connections": self.connections,
            "memory_mb": memory,
        }

    def _robot(self, number: int) -> None:
        """Ask for chunks at a fixed rate, and count those that do not come."""
        chance = np.random.default_rng(number)
        try:
            while not self._over.is_set():
                with policysmith.connect(self.address) as policy:
                    self.connections += 1
                    self._ask(policy, chance)
        except Exception as error:  # noqa: BLE001
            self.failures.append(f"robot {number}: {type(error).__name__}: {error}")

    def _ask(self, policy: policysmith.RemotePolicy, chance: np.random.Generator) -> None:
        shapes, continues = policy.metadata["observation"], policy.metadata["continuation"] is not None
        chunk = None
        for _ in range(STAY):
            if self._over.is_set():
                return
            seen = {entry["key"]: _made_up(entry, chance) for entry in shapes.values()}
            start = time.perf_counter()
            running = chunk[1:] if continues and chunk is not None else None
            answer = policy.chunk(seen, running=running, delay=1 if running is not None else 0)
            self.seconds.append(time.perf_counter() - start)
            chunk = answer if running is None else None
            self._over.wait(max(0.0, 1.0 / self.rate - (time.perf_counter() - start)))

    def _misbehave(self, client: Client) -> None:
        chance = random.Random(0)
        while not self._over.is_set():
            with suppress(OSError, WebSocketException, EOFError):
                client(chance)
            self.misbehaved += 1
            self._over.wait(0.02)

    def _malformed(self, chance: random.Random) -> None:
        with open_websocket(self.address, compression=None) as connection:
            for _ in range(20):
                connection.send(chance.randbytes(chance.randrange(500)))
                connection.recv(5)

    def _refused(self, chance: random.Random) -> None:
        with open_websocket(self.address, compression=None) as connection:
            connection.recv(5)
            connection.send(pack({"observation.state": np.full(chance.randrange(9), np.nan)}))
            connection.recv(5)
            connection.send("text")
            connection.recv(5)

    def _oversized(self, chance: random.Random) -> None:
        with open_websocket(self.address, compression=None, max_size=None) as connection:
            connection.send(bytes(40 * 2**20))
            connection.recv(5)

    def _slow(self, chance: random.Random) -> None:
        host, port = self.address.removeprefix("ws://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            for letter in b"GET / HTTP/1.1\r\nHost: x\r\n":
                raw.send(bytes([letter]))
                if self._over.wait(0.1):
                    return

    def _dying(self, chance: random.Random) -> None:
        host, port = self.address.removeprefix("ws://").split(":")
        key = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg=="
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.send(f"GET / HTTP/1.1\r\nHost: {host}\r\n{key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
            raw.recv(1000)
            raw.send(
                b"\x82\xfe\x10\x00" + chance.randbytes(chance.randrange(900))
            )  # the beginning of a message


def _made_up(expected: dict[str, Any], chance: np.random.Generator) -> Any:
    if expected["kind"] == "text":
        return "open the drawer"
    if expected["kind"] == "image":
        return chance.integers(0, 256, expected["shape"], dtype=np.uint8)
    return chance.uniform(0.0, 0.1, expected["shape"]).astype(np.float32)


def _memory(process: int) -> int:
    """Return the resident memory of a process in bytes."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", required=True, help="address of the server")
    parser.add_argument("--process", type=int, required=True, help="process id of the server")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--robots", type=int, default=8)
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second of a robot")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    found = Soak(args.address, robots=args.robots, rate=args.rate).run(args.seconds, args.process)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if args.output is not None:
        from policysmith.builder.provenance import hardware, machine_versions

        command = f"python benchmarks/serving.py --seconds {args.seconds:g} --robots {args.robots} --rate {args.rate:g}"
        more = {
            "command": command,
            "load_average": os.getloadavg(),
            "hardware": hardware(),
            "versions": machine_versions(),
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({**found, **more}, indent=1) + "\n")
    return bool(found["unanswered"])


if __name__ == "__main__":
    sys.exit(main())
