"""Random bits: the published ones, and the same on every device and whatever else is drawn."""

from __future__ import annotations

import pytest
import torch

from policysmith.components.kernels import philox as module
from policysmith.components.kernels.philox import philox, random_words, reference

KEYS = torch.tensor([0, 1, 2**31 + 5, 2**62 + 12345, 2**63 - 1])


def test_philox_gives_the_published_words(device: str) -> None:
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    words = philox(0, (zero, zero, zero, zero))[0].tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    full = zero + 0xFFFFFFFF
    for key in (0xFFFFFFFFFFFFFFFF, zero - 1):
        words = philox(key, (full, full, full, full))[0].tolist()
        assert words == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize(("stream", "first", "blocks"), [(0, 0, 1), (1, 16, 300), (2**31 - 1, 7, 3)])
def test_words_are_those_of_each_key_and_block(stream: int, first: int, blocks: int, device: str) -> None:
    words = random_words(KEYS.to(device), stream, first, blocks)
    assert (words.shape, words.dtype, words.device.type) == ((5, 4 * blocks), torch.int64, device)
    for key, row in zip(KEYS.tolist(), words.cpu().view(5, blocks, 4), strict=True):
        at = torch.arange(first, first + blocks)
        zeros = torch.zeros_like(at)
        assert torch.equal(row, philox(key, (at, zeros + stream, zeros, zeros)))


def test_no_words_and_no_keys(device: str) -> None:
    assert random_words(KEYS.to(device), 1, 0, 0).shape == (5, 0)
    assert random_words(KEYS[:0].to(device), 1, 0, 2).shape == (0, 8)


def test_keys_may_lie_apart(device: str) -> None:
    keys = KEYS.repeat_interleave(2).to(device)
    assert torch.equal(random_words(keys[::2], 3, 0, 2), reference(keys[::2].contiguous(), 3, 0, 2))


def test_it_is_a_sound_operator(device: str) -> None:
    torch.library.opcheck(module._words, (KEYS.to(device), 3, 2, 5))
