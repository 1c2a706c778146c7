"""Frozen models: same answers as the reference, planned memory, several threads, several shapes."""

import copy
import resource
import threading
from collections import Counter
from typing import Any

import pytest
import torch

import slowfast_kernels as sf
from slowfast_kernels import backends
from slowfast_kernels._extension import ISAS
from slowfast_kernels.plans.plan import Plan

needs_cpu = pytest.mark.skipif(
    backends.unavailable("cpu") is not None, reason=f"no C++ kernels here: {backends.unavailable('cpu')}"
)

SMALL = {"crop": 64, "frames": 16, "classes": 11, "blocks": (2, 1, 1, 1)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "slowfast": ("slowfast_8x8_r50", {}),
    "slowfast, alpha 8": ("slowfast_4x16_r50", {}),
    "all of depth 50": ("slowfast_8x8_r50", {"blocks": (3, 4, 6, 3)}),
    "basic blocks": ("slowfast_8x8_r50", {"block": "basic"}),
    "dilated res5": ("slowfast_8x8_r50", {"res5_stride": 1, "res5_dilation": 2, "pool": None}),
    "beta 1/6": ("slowfast_8x8_r50", {"beta": 1 / 6}),
    "gray Fast": ("slowfast_8x8_r50", {"fast_input": "gray"}),
    "plain lateral": ("slowfast_8x8_r50", {"lateral": "conv_plain"}),
    "no lateral": ("slowfast_8x8_r50", {"lateral": "none"}),
    "T-sample": ("slowfast_8x8_r50", {"lateral": "time_sample"}),
    "TtoC concat": ("slowfast_8x8_r50", {"lateral": "time_to_channel_concat"}),
    "TtoC sum": ("slowfast_8x8_r50", {"lateral": "time_to_channel_sum", "beta": 1 / 4}),
    "mmaction2 head": ("slowfast_8x8_r50", {"head": "mmaction2"}),
    "slow": ("slow_8x8_r50", {"frames": 4}),
    "fast": ("fast_only", {}),
    "i3d": ("i3d_8x8_r50", {"frames": 8}),
    "c2d": ("c2d_8x8_r50", {"frames": 8}),
}


def small_model(key: str, **more) -> torch.nn.Module:
    """A model with statistics and scales that every layer's output depends on."""
    name, overrides = MODELS[key]
    torch.manual_seed(0)
    model = sf.models.create(name, zero_init_final_bn=False, **{**SMALL, **overrides, **more}).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    torch.nn.init.normal_(model.head.proj.weight, 0, 0.05)
    return model


def clips_for(
    model: torch.nn.Module, batch: int = 1, seed: int = 1, crop: int | None = None
) -> list[torch.Tensor]:
    c, g = model.config, torch.Generator().manual_seed(seed)
    side = crop or c.input.crop
    return [
        torch.randn(batch, c.pathway(p).in_channels, c.frames_of(p), side, side, generator=g)
        for p in c.pathways
    ]


def call(model: torch.nn.Module, clips: list[torch.Tensor]) -> torch.Tensor:
    return model(clips if len(clips) > 1 else clips[0])


def reference(model: torch.nn.Module, clips: list[torch.Tensor]) -> torch.Tensor:
    """Scores of the plain PyTorch path in float64."""
    with torch.inference_mode(), sf.use_backend("reference"):
        return call(copy.deepcopy(model).double(), [x.double() for x in clips])


def distance(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.double() - expected).norm() / expected.norm()).item()


def scores(model: torch.nn.Module) -> torch.nn.Module:
    """The model returning logits: a softmax would hide differences."""
    model.head.activation = "none"
    return model


@needs_cpu
@pytest.mark.parametrize(
    ("key", "isa"), [("slowfast", isa) for isa in ISAS[1:-1]] + [(key, "auto") for key in MODELS]
)
def test_agrees_with_the_reference(key: str, isa: str) -> None:
    if isa in ISAS and ISAS.index(backends.cpu_isa_found()) < ISAS.index(isa):
        pytest.skip(f"this processor has no {isa}")
    model = scores(small_model(key))
    clips = clips_for(model, batch=2)
    before = [x.clone() for x in clips]
    expected = reference(model, clips)
    with backends.force_cpu_isa(isa):
        assert distance(call(sf.freeze(model), clips), expected) < 1e-5
        with torch.inference_mode(), sf.use_backend("reference"):
            peer = call(copy.deepcopy(model).bfloat16(), [x.bfloat16() for x in clips])
        y = call(sf.freeze(model, torch.bfloat16), clips)
    assert y.dtype == torch.float32
    assert distance(y, expected) < 2 * max(distance(peer, expected), 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(clips, before, strict=True))


@needs_cpu
def test_detection_model() -> None:
    model = small_model("dilated res5", roi=True)
    rois = torch.tensor([[0, 3.0, 4.0, 50.0, 60.0], [1, 0.0, 0.0, 20.0, 33.0], [0, 10.0, 10.0, 11.0, 64.0]])
    clips = clips_for(model, batch=2)
    with torch.inference_mode(), sf.use_backend("reference"):
        expected = copy.deepcopy(model).double()([x.double() for x in clips], rois.double())
    frozen = sf.freeze(model)
    assert distance(frozen(clips, rois), expected) < 1e-5
    assert frozen(clips, rois[:0]).shape == (0, 11)
    with pytest.raises(ValueError, match="expected rois"):
        frozen(clips)


@needs_cpu
def test_shapes_may_change_and_plans_stay_few() -> None:
    model = scores(small_model("slowfast", pool=None, blocks=(1, 1, 1, 1)))
    frozen = sf.freeze(model)
    for crop, batch in ((64, 1), (70, 1), (64, 2), (48, 1), (33, 1), (64, 1)):
        clips = clips_for(model, batch, seed=crop, crop=crop)
        assert distance(frozen(clips), reference(model, clips)) < 1e-5
    assert len(frozen._plans) <= 4


@needs_cpu
def test_threads_share_a_frozen_model() -> None:
    model = scores(small_model("slowfast"))
    frozen = sf.freeze(model)
    inputs = [clips_for(model, seed=s) for s in range(6)]
    expected = [frozen(x) for x in inputs]
    wrong: list[int] = []

    def work(k: int) -> None:
        for i in range(8):
            j = (i + k) % len(inputs)
            if not torch.equal(frozen(inputs[j]), expected[j]):
                wrong.append(j)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    ((_, idle),) = frozen._plans.values()
    assert 1 <= len(idle) <= 4


@needs_cpu
def test_memory_does_not_grow_with_the_number_of_calls() -> None:
    model = small_model("slowfast")
    frozen, clips = sf.freeze(model), clips_for(model)
    for _ in range(5):
        frozen(clips)
    held, peak = frozen.workspace_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(40):
        frozen(clips)
    assert frozen.workspace_bytes() == held
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 4096  # KiB


@needs_cpu
def test_results_do_not_depend_on_threads_or_on_old_memory() -> None:
    model = scores(small_model("slowfast"))
    frozen, clips = sf.freeze(model), clips_for(model)
    expected = frozen(clips)
    ((plan, idle),) = frozen._plans.values()
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            for value in (0, 255):  # 255s read as NaN
                with torch.inference_mode():
                    idle[0].arena.fill_(value)
                assert torch.equal(frozen(clips), expected)
    finally:
        torch.set_num_threads(threads)
    assert plan.arena_bytes < sum(
        {id(a.buffer): a.buffer.nbytes for s in plan.steps for a in s.args if hasattr(a, "buffer")}.values()
    )


@needs_cpu
def test_profile_accounts_for_every_multiply_add() -> None:
    model = small_model("slowfast")
    frozen, clips = sf.freeze(model), clips_for(model)
    rows = frozen.profile(clips, runs=1)
    assert all(r["seconds"] > 0 and r["bytes"] > 0 for r in rows)
    assert {r["stage"] for r in rows} >= {"stem.slow", "stem.fast", "lateral.3", "res5.fast", "head"}
    macs = sum(r["flops"] for r in rows) / 2
    assert macs == pytest.approx(sf.models.macs(model, 16, 64), rel=1e-3)


def test_reference_backend_is_obeyed() -> None:
    model = scores(small_model("slowfast"))
    clips = clips_for(model)
    with sf.use_backend("reference"):
        frozen = sf.freeze(model)
    assert type(frozen).__name__ == "Folded"
    assert distance(frozen(clips), reference(model, clips)) < 1e-5
    assert frozen.profile(clips, runs=1)[0]["stage"] == "model"


def test_errors() -> None:
    model = small_model("slowfast")
    with pytest.raises(TypeError, match="accelerate"):
        sf.freeze(torch.nn.Linear(2, 2))
    with sf.use_backend("cpu"), pytest.raises(RuntimeError, match="float16"):
        sf.freeze(model, torch.float16)
    frozen = sf.freeze(model)
    slow, fast = clips_for(model)
    with pytest.raises(ValueError, match=r"2 clip\(s\)"):
        frozen(slow)
    with pytest.raises(ValueError, match="fast clip"):
        frozen([slow, fast[:, :, :-1]])
    with pytest.raises(ValueError, match="no rois"):
        frozen([slow, fast], torch.zeros(1, 5))


def test_layout_keeps_live_buffers_apart() -> None:
    plan = Plan()
    views = [plan.buffer([n], torch.uint8) for n in (100, 1000, 10, 500)]
    for a, b in zip(views, views[1:], strict=False):
        plan.add("s", "op", lambda *x: None, (a, b), 0, 0)
    plan.lay_out()
    for i, a in enumerate(views):
        for b in views[i + 1 :]:
            x, y = a.buffer, b.buffer
            if x.first <= y.last and y.first <= x.last:
                assert x.offset + x.nbytes <= y.offset or y.offset + y.nbytes <= x.offset
    assert plan.arena_bytes < 1610


def test_a_profilers_trace_names_every_step():
    model = small_model("slowfast")
    clips = clips_for(model)
    frozen = sf.freeze(model)
    call(frozen, clips)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call(frozen, clips)
    counted = {e.key: e.count for e in profile.key_averages() if e.key.startswith("slowfast::")}
    ((plan, _),) = frozen._plans.values()
    expected = Counter(f"slowfast::{s.op} {s.stage}" for s in plan.steps)
    assert len(expected) > 10 and {k: counted.get(k) for k in expected} == expected
