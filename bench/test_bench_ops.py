"""The real calls of every op under pytest-benchmark, not part of the test suite:

pytest bench/test_bench_ops.py --benchmark-only -k "bottleneck3d and fast"
"""

from typing import Any

import pytest

from slowfast_kernels.bench import registry


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("entry", registry.entries(), ids=lambda entry: entry.name)
def test_op(benchmark: Any, entry: registry.Entry, dtype: str) -> None:
    """Times each call on the provider that is chosen by default."""
    entry = registry.Entry(entry.op, entry.case, dtype)
    args, kwargs = entry.arguments()
    run = registry.runner(entry, "auto", args, kwargs)
    cost = entry.cost(args, kwargs)
    run()
    benchmark.group = entry.name
    benchmark.extra_info.update(flops=cost.flops, bytes=cost.bytes)
    benchmark(run)
