"""Seeds of what is random in a step."""

from __future__ import annotations

import hashlib


def mix(*values: int) -> int:
    """One 63-bit seed from several numbers."""
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest(), "big") >> 1
