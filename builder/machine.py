"""Memory of this machine."""

from __future__ import annotations

import os

import torch


def training_memory() -> tuple[int, str]:
    """Return the bytes that training can use here, and the name of the device that has them."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return int(properties.total_memory), str(properties.name)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine"


__all__ = ["training_memory"]
