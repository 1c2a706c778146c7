"""Types of maps that the kernels take."""

from __future__ import annotations

import torch

FLOAT32_BF16 = (torch.float32, torch.bfloat16)
HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALVES)


def refused(dtype: torch.dtype, taken: tuple[torch.dtype, ...], who: str) -> str | None:
    """A sentence where ``dtype`` is none of those taken by the kernels ``who``, else None."""
    if dtype in taken:
        return None
    *names, last = (str(d).removeprefix("torch.") for d in taken)
    return f"the maps are {str(dtype).removeprefix('torch.')}, the {who} kernels take {', '.join(names)} and {last}"
