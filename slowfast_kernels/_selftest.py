"""Ops of the CUDA library that no network calls: whether it is whole, and how fast what its kernels are made of is
(csrc/cuda/selftest.cu).
"""

from __future__ import annotations

import torch

from .ops._registration import define_native

define_native("_selftest_cuda(Tensor x, float s) -> Tensor")
define_native("_selftest_products_cuda(int depth, int steps, Tensor(a!) out) -> ()")
define_native("_selftest_read_cuda(Tensor x, Tensor(a!) out) -> ()")

#: Threads of a block, of the two that are timed.
THREADS = 256

#: FLOPs of one step of `products` by one block: 8 warps with 8 products m16n8k<depth> each.
STEP_FLOPS = {depth: 8 * 8 * 2 * 16 * 8 * depth for depth in (8, 16)}

#: `read` takes a multiple of so many values.
READ_VALUES = 4096


def scaled(x: torch.Tensor, s: float) -> torch.Tensor:
    """``x`` times ``s``: float32, bfloat16 or float16 of any shape, contiguous."""
    return torch.ops.slowfast._selftest_cuda(x, s)


def products(depth: int, steps: int, out: torch.Tensor) -> None:
    """Tensor-core products of ones, m16n8k<depth> of bfloat16, depth 8 or 16: nothing else than their issue takes time.

    out: float32 [blocks * THREADS]; every value becomes 32 * depth * steps.
    """
    torch.ops.slowfast._selftest_products_cuda(depth, steps, out)


def read(x: torch.Tensor, out: torch.Tensor) -> None:
    """Every block of threads reads all of ``x`` by asynchronous copies past the level-1 cache.

    x:   int32, a multiple of `READ_VALUES`, contiguous.
    out: int32 [blocks * THREADS]; the values of each block add up to the sum of x, modulo 2^32.
    """
    torch.ops.slowfast._selftest_read_cuda(x, out)
