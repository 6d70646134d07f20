"""Messages, against openpi's own packer."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policysmith.builder.serving.protocol import flattened, pack, read_request, unpack
from policysmith.schemas.errors import SpecError

ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
    np.zeros((0, 4), np.float32),
    np.array(2.5),
    np.array([True, False]),
    np.arange(3, dtype=">i4"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays_arrive_as_they_were_sent(array: np.ndarray[Any, Any]) -> None:
    got = unpack(pack({"a": array, "inner": {"b": [array, 1.5, "text"]}}))
    assert got["a"].dtype == array.dtype
    assert np.array_equal(got["a"], array)
    assert got["a"].shape == array.shape
    assert np.array_equal(got["inner"]["b"][0], array)
    assert got["inner"]["b"][1:] == [1.5, "text"]
    assert unpack(pack({"n": np.float32(0.5)})) == {"n": 0.5}


def packed(**array: Any) -> bytes:
    whole = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}
    raw = {**whole, **{key.encode(): value for key, value in array.items()}}
    return bytes(msgpack.packb({"a": raw}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80trailing",
        msgpack.packb([1, 2]),
        msgpack.packb({1: 2}),
        packed(dtype="|O"),
        packed(dtype="O8"),
        packed(dtype="<U2"),
        packed(dtype="(2,)<f4"),
        packed(dtype="f4,f4"),
        packed(dtype=None),
        packed(dtype=[["x", "<f4"]]),
        packed(shape=[3]),
        packed(shape=[-2]),
        packed(shape=[2**62, 4]),
        packed(shape=2),
        packed(shape=[1] * 8 + [2]),
        packed(data="text"),
        b"\x81\xa1a" * 5000 + b"\xc0",
    ],
    ids=lambda data: repr(data[:40]),
)
def test_bad_messages_are_refused(data: bytes) -> None:
    with pytest.raises(SpecError):
        unpack(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with suppress(SpecError):
        assert isinstance(unpack(data), dict)


def test_nested_and_slashed_keys_are_dotted() -> None:
    flat = {"images.top": 1, "state": 2}
    assert flattened({"images": {"top": 1}, "state": 2}) == flat
    assert flattened({"images/top": 1, "state": 2}) == flat
    with pytest.raises(SpecError, match="twice"):
        flattened({"images/top": 1, "images": {"top": 2}})
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(SpecError, match="levels"):
        flattened(deep)


@pytest.mark.parametrize(
    "own", [3, {"command": "load"}, {"clamp": 1}, {"seed": -1}, {"seed": True}, {"seed": 2**63}, {"x": 1}]
)
def test_unknown_requests_are_refused(own: Any) -> None:
    with pytest.raises(SpecError):
        read_request({"policysmith": own})
