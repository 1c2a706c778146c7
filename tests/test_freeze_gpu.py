"""Frozen models on the GPU kernels, which the CPU runs in Triton's interpreter and in the CUDA emulator."""

from collections import Counter

import pytest
import torch

import slowfast_kernels as sf
from slowfast_kernels import backends
from slowfast_kernels.plans.gpu import GpuNetwork
from slowfast_kernels.plans.plan import Instance, Plan
from slowfast_kernels.precision import fp32_precision
from test_freeze import MODELS, call, clips_for, distance, reference, small_model

needs = {
    name: pytest.mark.skipif(
        backends.unavailable(name) is not None, reason=f"provider {name}: {backends.unavailable(name)}"
    )
    for name in ("triton", "cuda")
}
DEVICE = backends.home("triton")
TINY = {"crop": 32, "frames": 8}
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def tiny(key, **more):
    frames = {"slow": 4, "slowfast, alpha 8": 16}.get(key, 8)
    return small_model(key, **{**TINY, "frames": frames, **more})


def logits(model):
    """Without the softmax, which hides errors."""
    model.head.activation = "none"
    return model


@pytest.mark.parametrize("backend", [pytest.param(n, marks=needs[n]) for n in ("triton", "cuda")])
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_the_whole_of_slowfast_r50(backend, dtype):
    model = logits(tiny("all of depth 50"))
    clips = clips_for(model)
    expected = reference(model, clips)
    with sf.use_backend(backend), fp32_precision("ieee"):
        frozen = sf.freeze(model.to(DEVICE), dtype)
        scores = call(frozen, [x.to(DEVICE) for x in clips])
    assert scores.dtype == torch.float32
    assert distance(scores.cpu(), expected) <= LIMITS[dtype]
    if backend == "cuda":
        ((plan, _),) = frozen._plans.values()
        by_cuda = Counter(s.op for s in plan.steps if s.run.__name__ == "by_cuda")
        half = dtype != torch.float32  # the kernels on tensor cores; laterals do float32 as well
        blocks = 16 + 3 + 4  # the Fast pathway's, and Slow res2 and res3
        assert by_cuda == Counter(lateral_fusion=4, stem3d=2 * half, bottleneck3d=blocks * half)


@needs["triton"]
@pytest.mark.parametrize("key", [k for k in MODELS if k != "all of depth 50"])
def test_kinds_of_models(key):
    model = logits(tiny(key))
    clips = clips_for(model, batch=2 if key == "slow" else 1)
    expected = reference(model, clips)
    with sf.use_backend("triton"), fp32_precision("ieee"):
        frozen = sf.freeze(model.to(DEVICE))
        scores = call(frozen, [x.to(DEVICE) for x in clips])
    assert distance(scores.cpu(), expected) <= 1e-5


@needs["triton"]
@pytest.mark.parametrize("key", ["slowfast", "dilated res5", "slow"])
def test_two_dimensional_views(key):
    """What goes to cuDNN on a GPU: the same 2-D convolutions, here PyTorch's own."""
    model = logits(tiny(key))
    clips = clips_for(model)
    with sf.use_backend("triton"), torch.inference_mode(), fp32_precision("ieee"):
        network = GpuNetwork(model.to(DEVICE), torch.float32, ("convolutions", "cudnn"))
        plan = network.plan([x.shape for x in clips])
        scores = Instance(plan, DEVICE).run([*(x.to(DEVICE) for x in clips), None])
    convs = [s for s in plan.steps if s.op.startswith("conv_")]
    assert convs and all(s.run.__name__ == "by_cudnn" for s in convs)
    assert any(s.produces is not None for s in convs)
    assert any(s.produces is None for s in convs) == (len(clips) == 2)  # into a slice of the Slow buffer
    assert distance(scores.cpu(), reference(model.cpu(), clips)) <= 1e-5


class Ordered(Instance):
    """Runs the steps in any order that the plan's streams and waits allow: one stream as far ahead as it may."""

    def __init__(self, plan: Plan, first: int) -> None:
        super().__init__(plan)
        self.first, self.order = first, []

    def run(self, inputs, times=None):
        waits, done, result = self.plan.waits(), set(), None
        queues = {s: [i for i, x in enumerate(self.plan.steps) if x.stream == s] for s in (0, 1)}
        while any(queues.values()):
            for stream in (self.first, 1 - self.first):
                if queues[stream] and (waits[queues[stream][0]] is None or waits[queues[stream][0]] in done):
                    i = queues[stream].pop(0)
                    value = self.step(i, inputs)
                    result = value if i == len(self.plan.steps) - 1 else result
                    done.add(i)
                    self.order.append(i)
                    break
        return result


@needs["triton"]
@pytest.mark.skipif(DEVICE != "cpu", reason="simulates the order of the streams")
def test_streams_may_run_at_their_own_pace():
    model = logits(tiny("slowfast"))
    clips = clips_for(model)
    with sf.use_backend("triton"), torch.inference_mode(), fp32_precision("ieee"):
        plan = GpuNetwork(model, torch.float32).plan([x.shape for x in clips])
        assert {s.stream for s in plan.steps} == {0, 1}
        expected = Instance(plan).run([*clips, None])
        orders = []
        for first in (0, 1):
            instance = Ordered(plan, first)
            assert torch.equal(instance.run([*clips, None]), expected)
            orders.append(instance.order)
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
    # the Fast pathway never waits for the Slow one: it may be over before the Slow stem begins
    slow = [i for i in orders[1] if plan.steps[i].stream == 0]
    fast = [i for i in orders[1] if plan.steps[i].stream == 1]
    assert orders[1] == fast + slow


def test_a_step_waits_for_the_other_stream_only_where_memory_is_shared():
    plan = Plan(stream_of=lambda stage: int(stage == "side"))
    shape, dtype = (1, 8, 2, 2, 2), torch.float32
    a, b, c = (plan.buffer(shape, dtype) for _ in range(3))
    for stage, args in (
        ("main", (a,)),
        ("side", (b,)),
        ("main", (c.slice(0, 4),)),
        ("side", (b, c.slice(4, 8))),  # another part of c
        ("main", (c,)),
        ("side", (a,)),
    ):
        plan.add(stage, "op", lambda *views: None, args, 0, 0)
    assert plan.waits() == [None, None, None, None, 3, 0]
    plan.lay_out()
    assert len({v.buffer.offset for v in (a, b, c)}) == 3


@needs["triton"]
def test_several_shapes_and_an_unknown_backend():
    model = tiny("slowfast")
    with sf.use_backend("triton"):
        frozen = sf.freeze(model.to(DEVICE))
        for batch in (1, 2):
            clips = clips_for(model, batch=batch)
            scores = frozen([x.to(DEVICE) for x in clips])
            assert scores.shape == (batch, 11)
    with sf.use_backend("triton"), pytest.raises(RuntimeError, match="float64"):
        sf.freeze(model, torch.float64)


@pytest.mark.gpu
class TestOnAGPU:
    """What needs the device itself: graphs, streams, cuDNN."""

    @pytest.mark.parametrize("dtype", LIMITS, ids=str)
    def test_graph_replays(self, dtype):
        model = logits(tiny("all of depth 50")).cuda()
        clips = [clips_for(model, seed=seed) for seed in range(4)]
        expected = [reference(model.cpu(), c) for c in clips]
        with fp32_precision("ieee"):
            frozen = sf.freeze(model.cuda(), dtype)
            for c, e in zip(clips, expected, strict=True):
                assert distance(frozen([x.cuda() for x in c]).cpu(), e) <= LIMITS[dtype]
            ((_, (instance,)),) = frozen._plans.values()
            assert instance.graph is not None

    def test_without_capture(self):
        model = logits(tiny("slowfast")).cuda()
        clips = clips_for(model)
        expected = reference(model.cpu(), clips)
        with fp32_precision("ieee"):
            frozen = sf.freeze(model.cuda(), capture=False)
            for _ in range(3):
                assert distance(frozen([x.cuda() for x in clips]).cpu(), expected) <= 1e-5
