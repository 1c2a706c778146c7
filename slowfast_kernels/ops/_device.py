"""What a GPU has, as tiles are fitted to it."""

from __future__ import annotations

import functools

import torch

#: Multiprocessors and shared memory of a block where no device says (the emulator's, an H200's).
PROCESSORS, SHARED_BYTES = 132, 227 * 1024


@functools.cache
def limits(device: torch.device) -> tuple[int, int]:
    """(multiprocessors, shared memory of a block) of a device."""
    if device.type != "cuda":
        return PROCESSORS, SHARED_BYTES
    properties = torch.cuda.get_device_properties(device)
    # torch's own annotations do not know the attribute
    return properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", 163 * 1024)
