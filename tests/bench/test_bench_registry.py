"""Every registered op can be measured: it has real calls, a cost and providers that give the same answer."""

import functools

import pytest
import torch

from slowfast_kernels import backends
from slowfast_kernels.bench import harness, ops, peers, registry
from slowfast_kernels.bench.op_modules import op_module
from slowfast_kernels.ops._cases import op_names

SHRINK = 8


@functools.cache
def smallest(op: str, dtype: str = "fp32") -> registry.Entry:
    """The op's real call with the least bytes."""
    found = registry.entries(op, dtype=dtype)
    return min(found, key=_bytes)


def _bytes(entry: registry.Entry) -> int:
    args, kwargs = entry.arguments(shrink=SHRINK)
    return entry.cost(args, kwargs).bytes


@pytest.mark.parametrize("op", op_names())
def test_every_op_has_real_calls_with_a_cost(op):
    entry = smallest(op)
    args, kwargs = entry.arguments(shrink=SHRINK)
    cost = entry.cost(args, kwargs)
    assert cost.bytes > 0 and cost.flops >= 0
    assert "reference" in registry.providers(op)


@pytest.mark.parametrize("op", op_names())
def test_providers_agree_through_the_runner(op):
    entry = smallest(op)
    args, kwargs = entry.arguments(shrink=SHRINK)
    expected = registry.runner(entry, "reference", args, kwargs)()
    for name in registry.providers(op):
        assert harness.relative_l2(registry.runner(entry, name, args, kwargs)(), expected) < 1e-5, name


def test_packed_weights_are_packed_once(monkeypatch):
    if backends.unavailable("cpu"):
        pytest.skip(f"no C++ provider: {backends.unavailable('cpu')}")
    from slowfast_kernels.ops.conv_bn_act3d import cpu

    calls = []
    pack = cpu.pack
    monkeypatch.setattr(cpu, "pack", lambda *a, **k: (calls.append(1), pack(*a, **k))[1])
    entry = smallest("conv_bn_act3d")
    args, kwargs = entry.arguments(shrink=SHRINK)
    before = cpu.pack
    run = registry.runner(entry, registry.PACKED, args, kwargs)
    first = run()
    assert torch.equal(run(), first) and len(calls) == 1
    assert cpu.pack is before
    registry.runner(entry, "cpu", args, kwargs)()
    assert len(calls) == 2


@pytest.mark.parametrize("op", ["conv_bn_act3d", "stem3d", "bottleneck3d", "lateral_fusion"])
def test_peer_modules_compute_the_op(op):
    entry = smallest(op)
    args, kwargs = entry.arguments(shrink=SHRINK)
    made = op_module(op, args, kwargs)
    assert made is not None
    module, inputs = made
    expected = registry.runner(entry, "reference", args, kwargs)()
    for name in ("eager", "eager_cl3d"):
        run = peers.PEERS[name].build(module, inputs, "fp32", 1)
        assert harness.relative_l2(run(), expected) < 1e-5


def test_bottleneck_module_with_a_shortcut():
    entry = registry.entries("bottleneck3d", "res3.fast.0")[0]
    args, kwargs = entry.arguments(shrink=4)
    assert kwargs["stride"] == 2
    module, inputs = op_module("bottleneck3d", args, kwargs)  # type: ignore[misc]
    expected = registry.runner(entry, "reference", args, kwargs)()
    with torch.no_grad():
        assert harness.relative_l2(module(*inputs), expected) < 1e-5


def test_rows_of_the_table():
    result = ops.measure(
        smallest("lateral_fusion"),
        wanted=peers.select("eager_cl3d", "fp32"),
        threads=1,
        rounds=2,
        progress=False,
        shrink=SHRINK,
        ceilings={"fp32_gflops": 1.0, "bf16_gflops": 1.0, "copy_gbs": 1.0},
    )
    assert {"reference", "eager_cl3d"} <= {row["who"] for row in result["rows"]}
    assert all(row["green"] and row["speedup_vs_eager"] for row in result["rows"])
    assert "lateral_fusion" in ops.table([result])


def test_a_wrong_answer_gets_no_speed_up(monkeypatch):
    entry = smallest("stem3d")
    plain = registry.runner

    def broken(entry, provider, args, kwargs):
        run = plain(entry, provider, args, kwargs)
        wrong = provider == "reference" and args[0].dtype == torch.float32
        return (lambda: run() * 1.01) if wrong else run

    monkeypatch.setattr(registry, "runner", broken)
    result = ops.measure(entry, wanted=[], threads=1, rounds=2, progress=False, shrink=SHRINK)
    row = next(r for r in result["rows"] if r["who"] == "reference")
    assert not row["green"] and row["speedup_vs_eager"] is None
    assert "RED" in ops.table([result])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"op": "nothing"}, "op: expected"),
        ({"case": "nothing"}, "case: expected"),
        ({"dtype": "int3"}, "dtype: expected"),
    ],
)
def test_unknown_names_are_listed(kwargs, words):
    with pytest.raises(ValueError, match=words):
        registry.entries(**kwargs)
