"""Every registered op can be measured: it has real calls, a cost and providers that give the same answer."""

import functools
from pathlib import Path

import pytest
import torch

from slowfast_kernels import backends
from slowfast_kernels import ops as public
from slowfast_kernels.bench import ops, peers, registry, torchvision_ops
from slowfast_kernels.bench.harness import Contender, CpuMachine, Setting
from slowfast_kernels.bench.plain import op_module
from slowfast_kernels.ops._cases import op_names
from slowfast_kernels.testing import relative_l2

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
        assert relative_l2(registry.runner(entry, name, args, kwargs)(), expected) < 1e-5, name


def test_packed_weights_are_packed_once(monkeypatch):
    if backends.unavailable("cpu"):
        pytest.skip(f"no C++ provider: {backends.unavailable('cpu')}")
    from slowfast_kernels.ops.conv_bn_act3d import cpu

    calls = []
    pack = cpu.pack

    def counted(*args, **kwargs):
        calls.append(1)
        return pack(*args, **kwargs)

    monkeypatch.setattr(cpu, "pack", counted)
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
        assert relative_l2(run(), expected) < 1e-5


def test_bottleneck_module_with_a_shortcut():
    entry = registry.entries("bottleneck3d", "res3.fast.0")[0]
    args, kwargs = entry.arguments(shrink=4)
    assert kwargs["stride"] == 2
    module, inputs = op_module("bottleneck3d", args, kwargs)  # type: ignore[misc]
    expected = registry.runner(entry, "reference", args, kwargs)()
    with torch.no_grad():
        assert relative_l2(module(*inputs), expected) < 1e-5


def measured(entry, wanted=(), **more):
    ceilings = {"fp32_gflops": 1.0, "bf16_gflops": 1.0, "copy_gbs": 1.0}
    machine = CpuMachine(Setting(rounds=2))
    return ops.measure(machine, entry, wanted=list(wanted), shrink=SHRINK, ceilings=ceilings, **more)


def test_rows_of_the_table():
    """Ours are put beside the fastest peer, by name; peers and the reference are not."""
    wanted = peers.select("eager,eager_cl3d", "fp32", networks=False)
    result = measured(smallest("lateral_fusion"), wanted)
    rows = {row["who"]: row for row in result["rows"]}
    assert {"reference", "eager", "eager_cl3d"} <= rows.keys() and all(r["green"] for r in rows.values())
    assert result["best_peer"] == min(("eager", "eager_cl3d"), key=lambda n: rows[n]["median_s"])
    text = ops.table([result])
    assert ops.heading(result) in text and "vs eager" not in text and "of direct floor" in text
    for name, row in rows.items():
        ours = name.startswith("cpu") or name in ("triton", "cuda")
        assert (row["speedup"] is not None) == row["ours"] == ours
        (line,) = (x for x in text.splitlines() if x.startswith(f"  {name} "))
        assert (f"x {result['best_peer']} " in line) == ours


def test_without_a_peer_there_is_no_speed_up():
    result = measured(smallest("pack_pathways"))
    assert result["best_peer"] is None and not any(row["speedup"] for row in result["rows"])


def test_tables_of_ops_fit_a_terminal():
    """What is not installed is told below, whole; the columns are explained."""
    result = measured(smallest("stem3d"))
    reason = "this peer needs a package: pip install " + " ".join(["something"] * 30)
    result["missing"] = {"autocast_cl3d_folded": reason}
    result["best_peer"] = "autocast_cl3d_folded"
    result["rows"].append(
        {**result["rows"][0], "who": "autocast_cl3d_folded", "ours": False, "speedup": None}
    )
    text = ops.table([result, result])
    assert max(map(len, text.splitlines())) <= ops.WIDTH
    assert text.count("not run: autocast_cl3d_folded: ") == 1 and text.count("something") == 30
    for word in (
        "cpu:",
        "cpu_packed:",
        "reference:",
        "speed-up over:",
        "parity:",
        "x2 behind",
        "direct floor:",
        "Winograd",
    ):
        assert word in text, word


def test_a_wrong_answer_gets_no_speed_up(monkeypatch):
    """Not ours, and a wrong peer is nobody to be faster than."""
    entry = smallest("stem3d")
    if "cpu" not in registry.providers("stem3d"):
        pytest.skip("no C++ provider")
    plain = registry.runner

    def broken(entry, provider, args, kwargs):
        run = plain(entry, provider, args, kwargs)
        return (lambda: run() * 1.01) if provider == "cpu" else run

    monkeypatch.setattr(registry, "runner", broken)
    wanted = peers.select("eager", "fp32", networks=False)
    rows = {r["who"]: r for r in measured(entry, wanted)["rows"]}
    assert not rows["cpu"]["green"] and rows["cpu"]["speedup"] is None and rows["cpu_packed"]["speedup"]
    monkeypatch.setattr(
        ops, "_peer", lambda machine, peer, *_: Contender(peer.name, [lambda: torch.zeros(1)])
    )
    result = measured(entry, wanted)
    assert result["best_peer"] is None and "RED" in ops.table([result])


# --- torchvision -------------------------------------------------------------------------------------------


def roi_calls():
    return [e for op in peers.ROI_OPS for e in registry.entries(op) if "volumes" not in e.case.name]


def test_torchvision_is_the_peer_of_roi_ops_alone():
    names = {p.name for p in peers.select("all", "fp32", networks=False)}
    assert "torchvision" in names and "torchvision" in peers.DEFAULT
    for op in op_names():
        running = {p.name for p in peers.PEERS.values() if p.runs(op)}
        assert (running == {"torchvision"}) == (op in peers.ROI_OPS)
    with pytest.raises(ValueError, match="peers: expected names among"):
        peers.select("torchvision", "fp32", networks=True)


def test_a_missing_torchvision_marks_the_row(monkeypatch):
    monkeypatch.setattr(torchvision_ops.importlib.util, "find_spec", lambda name: None)
    torchvision_ops.load.cache_clear()
    entry = min(roi_calls(), key=_bytes)
    result = measured(entry, peers.select(None, "fp32", networks=False))
    assert (
        "torchvision is not installed (pip install --no-deps torchvision=="
        in result["missing"]["torchvision"]
    )
    assert "not run: torchvision: torchvision is not installed" in ops.table([result]).replace("\n  ", " ")
    torchvision_ops.load.cache_clear()


def test_versions_of_torchvision_follow_pytorchs():
    assert torchvision_ops.matching_version("2.13.0+cpu") == "0.28.*"
    assert torchvision_ops.matching_version("2.11.0") == "0.26.*"


def test_make_bench_installs_it_without_a_pytorch_of_its_own():
    lines = (Path(__file__).parents[2] / "Makefile").read_text().splitlines()
    (line,) = (x for x in lines if "torchvision==" in x)
    assert "--no-deps" in line and "matching_version" in line


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("call", roi_calls(), ids=lambda entry: entry.name)
def test_compositions_around_torchvision_compute_the_op(call, dtype, monkeypatch):
    """With torchvision's operator where it is installed, else with this library's RoIAlign in its place: frames, boxes
    and pathways must be put together rightly in either case."""
    try:
        torchvision_ops.load()
    except peers.Unavailable:
        monkeypatch.setattr(torchvision_ops, "load", lambda: None)
        monkeypatch.setattr(torchvision_ops, "roi_align", _roi_align)
    entry = registry.Entry(call.op, call.case, dtype)
    args, kwargs = entry.arguments(shrink=SHRINK)
    made = op_module(call.op, args, kwargs)
    assert made is not None
    module, inputs = made
    expected = registry.runner(entry, "reference", args, kwargs)()
    run = peers.PEERS["torchvision"].build(module, inputs, dtype, 1)
    assert relative_l2(run(), expected) < (1e-5 if dtype == "fp32" else 1e-2)


def _roi_align(maps, rois, bins, scale, ratio, aligned):
    with backends.use_backend("reference"):
        return public.roi_align3d(maps[:, :, None], rois, bins, scale, ratio, aligned)[:, :, 0]


def test_torchvision_loads_beside_a_cpu_build():
    """The real operators; the extra bench brings them."""
    try:
        torchvision_ops.load()
    except peers.Unavailable as error:
        pytest.skip(str(error))
    maps, rois = torch.randn(2, 3, 9, 11), torch.tensor([[0.0, 3, 5, 100, 90], [1, -30, -20, 40, 400]])
    for aligned in (True, False):
        found = torchvision_ops.roi_align(maps, rois, (3, 2), 1 / 16, 0, aligned)
        assert relative_l2(found, _roi_align(maps, rois, (3, 2), 1 / 16, 0, aligned)) < 1e-5


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
