"""Frozen models on the GPU kernels, which the CPU runs in Triton's interpreter and in the CUDA emulator."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import slowfast_kernels as sf
from slowfast_kernels import backends
from slowfast_kernels.ops import ConvSpec
from slowfast_kernels.ops.conv_bn_act3d.cudnn import CudnnConv
from slowfast_kernels.plans import gpu
from slowfast_kernels.plans.capture import captured
from slowfast_kernels.plans.gpu import GpuTarget
from slowfast_kernels.plans.network import Network
from slowfast_kernels.plans.plan import Input, Instance, Plan
from slowfast_kernels.precision import fp32_precision
from test_freeze import MODELS, call, clips_for, distance, reference, small_model
from test_graph import trained

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


def planned(model, clips, dtype, providers=None):
    network = Network(model.to(DEVICE), GpuTarget(torch.device(DEVICE), dtype, providers))
    graph, inputs = network.graph((clips if len(clips) > 1 else clips[0],))
    return network.plan(graph, inputs)


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
        by_cuda = Counter(s.op for s in plan.steps if s.provider == "cuda")
        half = dtype != torch.float32  # the kernels on tensor cores; laterals do float32 as well
        blocks = 16 + 3 + 4  # the Fast pathway's, and Slow res2 and res3
        assert by_cuda == Counter(lateral_fusion=4, stem3d=2 * half, bottleneck3d=blocks * half)


@needs["cuda"]
def test_chained_blocks():
    """Slow res2 and res3 with each block computing the next one's conv_a: within rounding of blocks on their own."""
    model = logits(tiny("all of depth 50"))
    clips = [x.to(DEVICE) for x in clips_for(model)]
    scores, steps, dtype = {}, {}, torch.bfloat16
    with torch.inference_mode():
        for form, providers in (("blocks", ("cuda", "triton")), ("chain", ("cuda", "chain", "triton"))):
            plan = planned(model, clips, dtype, providers)
            scores[form] = Instance(plan, torch.device(DEVICE)).run(clips).cpu()
            steps[form] = Counter(s.stage for s in plan.steps if s.provider == "cuda chain")
    assert steps == {"blocks": {}, "chain": {"res2.slow": 3, "res3.slow": 4}}
    expected = reference(model.cpu(), [x.cpu() for x in clips])
    for form, found in scores.items():
        assert distance(found, expected) <= LIMITS[dtype], form


#: Who may compute on a GPU with everything installed, and on one without cuDNN.
EVERYBODY = ("cuda", "blocks", "chain", "triton", "convolutions", "cudnn")
BY_DEFAULT = {
    "res2.slow": ({"cuda": 3}, {"cuda": 3}),
    # the last convolution writes into a fused buffer, which Triton's does itself
    "res3.slow": ({"cudnn": 11, "triton": 1}, {"cuda": 4}),
    "res4.slow": ({"cudnn": 17, "triton": 1}, {"triton": 18}),
    "res5.slow": ({"cudnn": 9}, {"triton": 9}),
    "res2.fast": ({"cuda": 3}, {"cuda": 3}),
    "res3.fast": ({"cuda": 4}, {"cuda": 4}),
    "res4.fast": ({"cuda": 6}, {"cuda": 6}),
    "res5.fast": ({"cuda": 3}, {"cuda": 3}),
}


@needs["triton"]
@pytest.mark.parametrize("cudnn", [True, False])
def test_who_computes_a_stage_by_default(cudnn):
    """Where nothing was measured: the CUDA kernels up to an inner width of 64, beyond it cuDNN if it is there."""
    model = tiny("all of depth 50")
    clips = [x.to(DEVICE) for x in clips_for(model)]
    plan = planned(model, clips, torch.bfloat16, EVERYBODY if cudnn else EVERYBODY[:-1])
    found: dict[str, Counter] = {}
    for step in plan.steps:
        if step.stage.startswith("res"):
            found.setdefault(step.stage, Counter())[step.provider] += 1
    assert found == {stage: both[not cudnn] for stage, both in BY_DEFAULT.items()}


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
        plan = planned(model, clips, torch.float32, ("convolutions", "cudnn"))
        scores = Instance(plan, DEVICE).run([x.to(DEVICE) for x in clips])
    convs = [s for s in plan.steps if s.op.startswith("conv_")]
    assert convs and all(s.provider == "cudnn" for s in convs)
    assert any(s.produces is not None for s in convs)
    assert any(s.produces is None for s in convs) == (len(clips) == 2)  # into a slice of the Slow buffer
    assert distance(scores.cpu(), reference(model.cpu(), clips)) <= 1e-5


class TestCudnn:
    """The calls of cuDNN with its functions played, on a device that says it is a GPU."""

    X, RESIDUAL = (1, 8, 2, 4, 4), (1, 8, 2, 4, 4)

    @pytest.fixture
    def conv(self, monkeypatch):
        module = torch.nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1))
        spec = ConvSpec((module.weight, None, module.bias), padding=(0, 1, 1))
        conv = CudnnConv(spec, torch.float32, torch.device("cpu"))
        conv.device = torch.device("cuda", 0)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        return conv

    @pytest.mark.parametrize("mode, expected", [("ieee", "ieee"), ("tf32", "tf32"), ("bf16x3", "ieee")])
    def test_float32_is_multiplied_as_asked(self, conv, mode, expected, monkeypatch):
        cudnn: Any = torch.backends.cudnn
        seen = []
        before = cudnn.benchmark, cudnn.conv.fp32_precision

        def relu(x, weight, bias, *more):
            seen.append((cudnn.benchmark, cudnn.conv.fp32_precision))
            return F.conv2d(x, weight, bias, *more).relu()

        monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
        with fp32_precision(mode):
            conv.fresh(torch.randn(self.X), None, None)
        assert seen == [(True, expected)]
        assert (cudnn.benchmark, cudnn.conv.fp32_precision) == before

    def test_without_an_engine_for_the_whole(self, conv, monkeypatch):
        """The layer is not cuDNN's, and the question is asked once for shapes and a way to multiply."""
        asked = []

        def refused(*args):
            asked.append(args)
            raise RuntimeError("FIND was unable to find an engine to execute this computation\nand more")

        monkeypatch.setattr(torch, "cudnn_convolution_add_relu", refused)
        for _ in range(2):
            reason = conv.cannot_run(self.X, self.RESIDUAL)
            assert reason == "cuDNN: FIND was unable to find an engine to execute this computation"
        assert len(asked) == 1
        with fp32_precision("ieee"):
            assert conv.cannot_run(self.X, self.RESIDUAL) and len(asked) == 2

    @pytest.mark.parametrize("reads", [False, True], ids=["sound", "reads its result's memory"])
    def test_an_engine_that_multiplies_what_lies_there_by_zero(self, conv, reads, monkeypatch):
        made = []

        def full(weight, size, value):
            made.append(value)
            return torch.Tensor.new_empty(weight, size).fill_(value)

        def relu(x, weight, bias, *more):
            there = made[-1] if reads else 1.0  # what the allocator would hand out
            return (F.conv2d(x, weight, bias, *more) + 0.0 * there).relu()

        monkeypatch.setattr(torch.Tensor, "new_full", full)
        monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
        assert conv.cannot_run(self.X) == ("cuDNN reads memory that nobody wrote" if reads else None)

    def test_a_capture_asks_nothing(self, conv, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert "captured" in conv.cannot_run(self.X)

    def test_out_of_memory_is_no_answer(self, conv, monkeypatch):
        def full(*args):
            raise torch.OutOfMemoryError("full")

        monkeypatch.setattr(torch, "cudnn_convolution_relu", full)
        with pytest.raises(torch.OutOfMemoryError):
            conv.cannot_run(self.X)
        assert not conv.found


@needs["triton"]
@pytest.mark.parametrize("works", [True, False])
def test_what_cudnn_does_not_fuse_is_tritons(works, monkeypatch):
    """So is what goes into a slice of a wider map, which cuDNN would have to copy there."""
    monkeypatch.setattr(CudnnConv, "cannot_run", lambda self, *shapes: None if works else "no engine")
    monkeypatch.setattr(gpu, "CUDNN_CHANNELS", 1)  # its by default
    model = logits(tiny("slowfast"))
    with sf.use_backend("triton"), torch.inference_mode(), fp32_precision("ieee"):
        plan = planned(model, clips_for(model), torch.float32, ("convolutions", "cudnn", "triton"))
    convs = [s for s in plan.steps if s.op.startswith("conv_")]
    whole = [s for s in convs if s.produces is not None]
    assert {s.provider for s in convs} == ({"cudnn", "triton"} if works else {"triton"})
    assert [s for s in convs if s.provider == "cudnn"] == whole


class Ordered(Instance):
    """Runs the steps in any order that the plan's streams and waits allow: one stream as far ahead as it may."""

    def __init__(self, plan: Plan, first: int) -> None:
        super().__init__(plan)
        self.first = first
        self.order: list[int] = []

    def run(self, inputs, times=None):
        waits, done = self.plan.waits(), set()
        queues = {s: [i for i, x in enumerate(self.plan.steps) if x.stream == s] for s in (0, 1)}
        while any(queues.values()):
            for stream in (self.first, 1 - self.first):
                if queues[stream] and (waits[queues[stream][0]] is None or waits[queues[stream][0]] in done):
                    i = queues[stream].pop(0)
                    self.step(i, inputs)
                    done.add(i)
                    self.order.append(i)
                    break
        return self.output(inputs)


@needs["triton"]
@pytest.mark.skipif(DEVICE != "cpu", reason="simulates the order of the streams")
def test_streams_may_run_at_their_own_pace():
    model = logits(tiny("slowfast"))
    clips = clips_for(model)
    with sf.use_backend("triton"), torch.inference_mode(), fp32_precision("ieee"):
        plan = planned(model, clips, torch.float32)
        assert {s.stream for s in plan.steps} == {0, 1}
        expected = Instance(plan).run(clips)
        orders = []
        for first in (0, 1):
            instance = Ordered(plan, first)
            assert torch.equal(instance.run(clips), expected)
            orders.append(instance.order)
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
    # the Fast pathway never waits for the Slow one: it may be over before the Slow stem begins
    slow = [i for i in orders[1] if plan.steps[i].stream == 0]
    fast = [i for i in orders[1] if plan.steps[i].stream == 1]
    assert orders[1] == fast + slow


class Reads(nn.Module):
    """The caller's tensors are read by ops, by glue, and late."""

    def __init__(self):
        super().__init__()
        self.stem = sf.nn.Stem(3, 8, 3)
        self.block = sf.nn.ConvBN(8, 8, (1, 3, 3))

    def forward(self, clip, other, third):
        y = self.block(other)
        z = self.stem(clip)
        return y + other, torch.cat([z, third], dim=1), other, clip.mean(dim=(2, 3, 4)) + third.sum()


@needs["triton"]
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_callers_tensors_are_read_before_anything_else(dtype):
    """A graph cannot follow them: the stem takes the clip as it lies, where the type is its own; the others a copy."""
    module = trained(Reads()).eval().to(DEVICE)
    clip, other, third = torch.randn(1, 3, 3, 32, 32), torch.randn(1, 8, 3, 8, 8), torch.randn(1, 8, 3, 8, 8)
    given = [x.to(DEVICE) for x in (clip, other, third)]
    with torch.no_grad(), sf.use_backend("reference"):
        expected = module(*given)
    with sf.use_backend("triton"), torch.inference_mode(), fp32_precision("ieee"):
        network = Network(module, GpuTarget(torch.device(DEVICE), dtype))
        graph, inputs = network.graph(tuple(given))
        plan = network.plan(graph, inputs)
        found = Instance(plan, DEVICE).run(inputs)
    readers = [i for i, s in enumerate(plan.steps) if any(isinstance(a, Input) for a in s.args)]
    assert readers == list(range(len(readers)))
    assert (plan.steps[0].op == "stem3d") == (dtype == torch.float32)
    for got, want in zip(found, expected, strict=True):
        assert distance(got.float(), want) <= LIMITS[dtype]


def test_a_step_waits_for_the_other_stream_only_where_memory_is_shared():
    plan = Plan()
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
        plan.lane = int(stage == "side")
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

    def test_a_capture_that_fails_leaves_no_trace(self):
        """On PyTorch's own streams and allocator, which test_plan_graph.py plays."""
        x = torch.ones(4, device="cuda")
        before = torch.cuda.current_stream()
        with pytest.raises(RuntimeError), captured(torch.cuda.CUDAGraph(), x.device):
            (x + 1).sum().item()  # waits for the device
        assert torch.cuda.current_stream() == before
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with captured(graph, x.device):
            y = x * 2
        graph.replay()
        assert y.sum().item() == 8
