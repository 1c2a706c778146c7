"""Plans on a GPU's streams and in its graphs. The device is played: work is done at once, captured work noted."""

import contextlib
import threading
import weakref

import pytest
import torch

from slowfast_kernels.plans import capture
from slowfast_kernels.plans.capture import StreamedInstance, captured
from slowfast_kernels.plans.plan import Input, Plan, View

CPU = torch.device("cpu")
SHAPE = (1, 4, 1, 2, 2)


class Stream:
    def __init__(self, device=None, priority=0):
        self.waited, self.priority = [], priority

    def wait_stream(self, other):
        self.waited.append(other)

    def wait_event(self, event):
        self.waited.append(event)

    def record_event(self):
        return Event()


class Event:
    def __init__(self, enable_timing=False):
        self.on = None

    def record(self, stream=None):
        self.on = stream or Device.now.current

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1.0


class Graph:
    def __init__(self):
        self.tape = []

    def replay(self):
        for work in self.tape:
            work()


class Capture:
    """As torch.cuda.graph of PyTorch 2.11: leaves stream and allocator as they are where the end of a capture fails."""

    def __init__(self, graph, pool, stream, capture_error_mode):
        self.graph, self.pool, self.stream = graph, pool, stream

    def __enter__(self):
        device = Device.now
        assert not device.pools, "captures_underway.empty() INTERNAL ASSERT FAILED"
        self.before, device.current = device.current, self.stream
        device.pools.add(self.pool)
        device.capturing, device.broken = self.graph, False

    def __exit__(self, *error):
        device = Device.now
        device.capturing = None
        if device.broken:
            raise RuntimeError("operation failed due to a previous error during capture")
        device.pools.remove(self.pool)
        device.current = self.before


class Device:
    """The device that is played."""

    now: "Device"

    def __init__(self):
        self.first = self.current = Stream()
        self.capturing, self.broken, self.pools, self.released, self.used = None, False, set(), [], []
        Device.now = self

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def end_allocate(self, index, pool):
        if pool not in self.pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.pools.remove(pool)

    def release(self, index, pool):
        self.released.append(pool)

    def forbid(self, what):
        """Something that no capture survives."""
        if self.capturing is not None:
            self.broken = True
            raise RuntimeError(f"{what} while a stream is captured")


@pytest.fixture
def device(monkeypatch):
    played = Device()
    names = {
        "device": lambda index: contextlib.nullcontext(),
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": Capture,
        "stream": played.on,
        "current_stream": lambda index: played.current,
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: played.capturing is not None,
        "graph_pool_handle": lambda: (0, len(played.released)),
        "synchronize": lambda index=None: played.forbid("synchronize"),
        "_sleep": lambda cycles: None,
    }
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", played.end_allocate, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", played.release, raising=False)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: played.used.append(stream))
    capture._capture_stream.cache_clear()
    yield played
    capture._capture_stream.cache_clear()


class Doubling:
    """A plan: the clip's copy, twice of it in a tensor of the step's own, and that plus the boxes.

    trouble: called by the middle step.
    """

    def __init__(self, trouble=lambda: None, boxes=True):
        self.trouble = trouble
        self.plan = plan = Plan()
        x, y = (plan.buffer(SHAPE, torch.float32) for _ in range(2))
        plan.add("stem", "input", lambda out, clip: out.copy_(clip), (x, Input(0, SHAPE)), 0, 0)
        plan.add("res5", "conv", self.double, (x,), 0, 0, produces=y)
        z = View(plan.result(None, torch.float32))
        head = self.head if boxes else lambda y: self.head(y, None)
        plan.add("head", "head", head, (y, Input(1)) if boxes else (y,), 0, 0, produces=z)
        plan.output = z
        plan.lay_out()

    def instance(self):
        return StreamedInstance(self.plan, CPU)

    def noted(self, work):
        """`work` returns the tensor it makes; a replay makes its value again, in the same memory."""
        out = work()
        if (captured := Device.now.capturing) is not None:
            captured.tape.append(lambda: out.copy_(work()))
        return out

    def double(self, x):
        self.trouble()
        return self.noted(lambda: x * 2)

    def head(self, y, boxes):
        return self.noted(lambda: y + (0 if boxes is None else boxes))


def inputs(value, boxes=None):
    return [torch.full(SHAPE, float(value)), None if boxes is None else torch.tensor(float(boxes))]


@pytest.mark.parametrize("boxes", [None, 100], ids=["classifier", "detector"])
def test_the_second_run_captures_and_later_ones_replay(device, boxes):
    started = []
    trouble = lambda: started.append(device.capturing is not None)  # noqa: E731
    instance = Doubling(trouble, boxes is not None).instance()
    results = [instance.run(inputs(value, boxes)) for value in range(5)]
    assert started == [False, True]
    for value, result in enumerate(results):  # of its own: the next replay does not overwrite it
        assert torch.equal(result, torch.full(SHAPE, 2.0 * value + (boxes or 0)))


class Maps(Doubling):
    def head(self, y, boxes):
        return self.noted(lambda: torch.stack([y, y - 1]))


def test_maps_of_a_replay_are_the_callers(device):
    instance = Maps(boxes=False).instance()
    with torch.inference_mode():
        results = [instance.run(inputs(value)) for value in range(5)]
    assert instance.graph is not None
    for value, maps in enumerate(results):
        assert [m.mean() for m in maps] == [2 * value, 2 * value - 1]
        if value > 0:  # replayed: the first run's are as the steps made them
            assert not any(m.is_inference() for m in maps)


def test_what_nobody_reads_any_more_is_given_back(device):
    """Its memory may then be the next step's, also inside a graph; but not where two streams use it."""
    alive: list[list[bool]] = []
    made: list[weakref.ref[torch.Tensor]] = []

    def step(*read):
        alive.append([ref() is not None for ref in made])
        made.append(weakref.ref(out := torch.ones(SHAPE)))
        return out

    plan = Plan()
    a, b, c, d, e = (View(plan.result(SHAPE, torch.float32)) for _ in range(5))
    for lane, out, read in ((0, a, []), (0, b, [a]), (1, c, [b]), (0, d, [c]), (0, e, [d])):
        plan.lane = lane
        plan.add("stage", "op", step, read, 0, 0, produces=out)
    plan.output = [e, a]
    plan.lay_out()
    StreamedInstance(plan, CPU, capture=False).run([])
    assert alive[-1] == [True, True, True, True]  # a is returned, b and c are of two streams, d is read
    plan.output = [e]
    made.clear()
    alive.clear()
    StreamedInstance(plan, CPU, capture=False).run([])
    assert alive[2:] == [[False, True], [False, True, True], [False, True, True, True]]


def test_the_slow_pathway_goes_first(device):
    instance = Doubling().instance()
    for value in range(2):
        instance.run(inputs(value, 100))
    assert capture._capture_stream(CPU).priority < instance.side.priority


def test_a_run_step_by_step_between_replays(device):
    """The detector's head reads what the graph wrote, not what a profile did."""
    instance = Doubling().instance()
    for value in range(3):
        instance.run(inputs(value, 100))
    times: list[float] = []
    assert instance.run(inputs(7, 100), times).mean() == 114 and len(times) == 3
    assert instance.run(inputs(1, 100)).mean() == 102


def test_a_capture_that_fails_leaves_no_trace(device):
    instance = Doubling(lambda: device.forbid("measuring")).instance()
    instance.run(inputs(1))
    with pytest.warns(UserWarning, match="kernel by kernel: measuring while a stream is captured"):
        assert instance.run(inputs(2)).mean() == 4
    assert device.current is device.first
    assert not device.pools and len(device.released) == 1
    assert instance.run(inputs(3)).mean() == 6
    other = Doubling().instance()  # another model's capture
    for value in range(3):
        assert other.run(inputs(value)).mean() == 2 * value
    assert other.graph is not None and instance.graph is None


def test_a_pool_is_released_once(device):
    """An error after the end of a capture: PyTorch has let go of its memory by then."""
    with pytest.raises(ValueError), captured(Graph(), CPU):
        raise ValueError
    assert not device.pools and device.current is device.first


def test_another_stream_waits_for_the_last_run(device):
    instance, second = Doubling().instance(), Stream()
    instance.run(inputs(1))
    instance.run(inputs(2))
    assert not device.first.waited  # the same stream waits for nothing
    with device.on(second):
        instance.run(inputs(3))
    assert second.waited[0] is instance.done and instance.done.on is second
    assert device.used == [device.first, second]


def test_a_thread_captures_what_it_has_run_itself(device):
    """cuDNN keeps what it measured per thread, and measures nothing while a graph is captured."""
    measured = threading.local()

    def cudnn():
        if not hasattr(measured, "plan"):
            device.forbid("measuring")
            measured.plan = True

    instance = Doubling(cudnn).instance()
    instance.run(inputs(1))
    graphs = []

    def other():
        for value in (2, 3):
            instance.run(inputs(value))
            graphs.append(instance.graph)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert graphs[0] is None and graphs[1] is not None


def test_a_stream_that_the_caller_captures(device):
    """Neither a capture of its own nor a replay: the steps themselves go into the caller's graph."""
    instance, mine = Doubling().instance(), Graph()
    for value in range(3):
        instance.run(inputs(value))
    device.capturing = mine
    instance.run(inputs(4))
    device.capturing = None
    assert len(mine.tape) == 2 and not device.broken
