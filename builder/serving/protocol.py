"""Messages between robot and server: msgpack with numpy arrays, as openpi's policy servers and clients write them.

The server speaks first and sends its metadata. Then each message of the robot is an observation, a dict, and
each answer is `{"actions": (H, A), "server_timing": {...}}`, or a text frame with an error. An array is the map
`{b"__ndarray__": True, b"data": bytes, b"dtype": str, b"shape": [...]}`.

A message may hold `policysmith`, a dict with these requests of our own client:

    command    "chunk", the default: predict a chunk
               "act": also remember that its first actions are run, `execute` of them, and answer with these alone
               "observe": only remember the observation
               "reset": a new episode begins; the observation is absent
    clamp      True to clamp the actions to the range of training
    seed       seed of the random numbers; without it they differ from call to call
    running    actions (N, A) of the running chunk from now on, which the new one continues (real-time chunking)
    delay      number of them that will have run when the answer is there

Nothing is ever unpickled, and arrays hold only numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import msgpack
import numpy as np
from numpy.typing import NDArray

from ...schemas.errors import SpecError

Command = Literal["chunk", "act", "observe", "reset"]

REQUEST = "policysmith"
"""Key of our own requests in a message, and of our own facts in the metadata."""
ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
NUMBERS = "biuf"
"""Kinds of numpy types that a message may hold: truth values, integers and floats."""
MOST_DIMS = 8


@dataclass(frozen=True)
class Request:
    """Request of a client."""

    command: Command
    observation: Mapping[str, Any]
    clamp: bool = False
    seed: int | None = None
    running: NDArray[Any] | None = None
    delay: int = 0


def pack(message: Mapping[str, Any]) -> bytes:
    """Return a message as bytes."""
    packed: bytes = msgpack.packb(message, default=_pack)
    return packed


def unpack(data: bytes) -> dict[str, Any]:
    """Return the message of bytes; arrays are read-only views of them.

    Raises:
        SpecError: The bytes are no map with text keys, or an array is inconsistent or holds no numbers.
    """
    try:
        message = msgpack.unpackb(data, object_hook=_unpack)
    except SpecError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise SpecError(
            f"the message is not msgpack: {type(error).__name__}: {str(error)[:200]}",
            help="send a dict, packed as `openpi_client.msgpack_numpy` does",
        ) from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise SpecError(
            f"the message is {type(message).__name__}, and must be a dict with keys of type str",
            help="send an observation, such as {'observation.state': ..., 'task': ...}",
        )
    return message


def read_request(message: Mapping[str, Any]) -> Request:
    """Return what a message asks for. Raise SpecError for an unknown request."""
    own = message.get(REQUEST, {})
    known = {"command", "clamp", "seed", "running", "delay"}
    if not isinstance(own, dict) or own.keys() - known:
        raise SpecError(f"`{REQUEST}` of the message must be a dict with some of {', '.join(sorted(known))}")
    command, clamp, seed = own.get("command", "chunk"), own.get("clamp", False), own.get("seed")
    if command not in get_args(Command):
        raise SpecError(
            f"the command is {command!r:.80}", help=f"send one of {', '.join(map(repr, get_args(Command)))}"
        )
    if not isinstance(clamp, bool) or not (seed is None or _is_seed(seed)):
        raise SpecError(
            f"`clamp` must be True or False and `seed` a whole number from 0 to 2**63 - 1, not {clamp!r:.80} and "
            f"{seed!r:.80}"
        )
    running, delay = own.get("running"), own.get("delay", 0)
    if not (running is None or _is_numbers(running)) or not _is_seed(delay):
        raise SpecError("`running` must be an array (N, A) of numbers and `delay` a whole number of them")
    if running is not None and command != "chunk":
        raise SpecError(f"{command!r} cannot continue `running` actions", help="send 'chunk'")
    observation = {key: value for key, value in message.items() if key != REQUEST}
    return Request(cast("Command", command), observation, clamp, seed, running, delay)


def flattened(observation: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Return an observation with dotted keys: `{"images": {"top": x}}` and `{"images/top": x}` are `images.top`.

    Raises:
        SpecError: Two values have the same key, a key is no text, or dicts are nested too deeply.
    """
    if depth == MOST_DIMS:
        raise SpecError(f"the observation has more than {MOST_DIMS} levels of dicts", help="flatten it")
    flat: dict[str, Any] = {}
    for key, value in observation.items():
        if not isinstance(key, str):
            raise SpecError(f"the observation has the key {key!r:.80}", help="name values by texts")
        name = dotted(key)
        inner = flattened(value, depth + 1) if isinstance(value, dict) else None
        held = {name: value} if inner is None else {f"{name}.{k}": v for k, v in inner.items()}
        if twice := flat.keys() & held.keys():
            raise SpecError(f"the observation holds `{min(twice):.80}` twice", help="send it once")
        flat |= held
    return flat


def dotted(key: str) -> str:
    """Return a key with dots for slashes."""
    return key.replace("/", ".")


def _is_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind in NUMBERS


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in NUMBERS:
            raise SpecError(f"an array of {value.dtype} cannot be sent", help="send numbers")
        return {
            ARRAY: True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": list(value.shape),
        }
    if isinstance(value, np.generic):
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise SpecError(
        f"a {type(value).__name__} cannot be sent", help="send arrays, numbers, texts, lists and dicts"
    )


def _unpack(value: dict[Any, Any]) -> Any:
    if ARRAY in value:
        return _array(value)
    return value.get(b"data") if SCALAR in value else value


def _array(value: Mapping[Any, Any]) -> NDArray[Any]:
    data, shape = value.get(b"data"), value.get(b"shape")
    dtype = _dtype(value.get(b"dtype"))
    sizes = isinstance(shape, (list, tuple)) and all(type(size) is int and size >= 0 for size in shape)
    if dtype is None or not sizes or len(shape) > MOST_DIMS or not isinstance(data, bytes):  # type: ignore[arg-type]
        raise SpecError(
            f"an array of the message has type {value.get(b'dtype')!r:.40} and shape {shape!r:.80}",
            help=f"send numbers, in at most {MOST_DIMS} dimensions",
        )
    assert shape is not None
    if math.prod(shape) * dtype.itemsize != len(data):
        raise SpecError(
            f"an array of the message has {len(data)} bytes, and {dtype} of shape {tuple(shape)} takes "
            f"{math.prod(shape) * dtype.itemsize}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(name: Any) -> np.dtype[Any] | None:
    """Return the numpy type of numbers with this name, such as `<f4`; None for any other."""
    if not isinstance(name, str) or len(name) > 8:
        return None
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError):
        return None
    return dtype if dtype.kind in NUMBERS and dtype.shape == () else None


__all__ = ["REQUEST", "Command", "Request", "dotted", "flattened", "pack", "read_request", "unpack"]
