"""The public functions under torch.compile: one graph, forward and backward, the same results."""

import pytest
import torch

from slowfast_kernels import models, ops, use_backend
from slowfast_kernels.ops._cases import cases_of, op_names
from slowfast_kernels.testing import relative_l2, with_gradients

#: One real layer and a few odd calls of every op.
SMALL = [
    (op, case)
    for op in op_names()
    for case in ([c for c in cases_of(op) if c.real][:1] + [c for c in cases_of(op) if c.edge][:4])
]
IDS = [f"{op}-{case}" for op, case in SMALL]


@pytest.fixture(autouse=True)
def no_compiled_code_of_other_tests():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def as_list(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


def assert_equal(got, expected):
    for g, e in zip(as_list(got), as_list(expected), strict=True):
        assert g.dtype == e.dtype and g.stride() == e.stride()
        assert torch.equal(g, e), f"differs by {relative_l2(g, e):.3g}"


@pytest.mark.parametrize("op, case", SMALL, ids=IDS)
def test_forward_is_one_graph(op, case):
    function = getattr(ops, op)
    args, kwargs = case.args(shrink=16)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(*args, **kwargs), function(*args, **kwargs))


@pytest.mark.parametrize("op, case", SMALL, ids=IDS)
def test_backward(op, case):
    function = getattr(ops, op)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    gradients = []
    for f in (function, compiled):
        (args, kwargs), leaves = with_gradients(case.args(shrink=16))
        results = [r for r in as_list(f(*args, **kwargs)) if r.requires_grad]
        if not results:  # pixels have no gradient
            assert not leaves
            return
        torch.autograd.backward(results, [r.detach() for r in results])
        gradients.append([leaf.grad for leaf in leaves])
    assert any(g is not None for g in gradients[0])
    for got, expected in zip(*reversed(gradients), strict=True):
        assert (got is None) == (expected is None)
        if expected is not None:
            assert_equal(got, expected)


def test_writing_into_a_buffer():
    x, weight = torch.randn(1, 4, 2, 5, 5), torch.randn(6, 4, 1, 1, 1)

    def call(x, weight, buffer):
        ops.conv_bn_act3d(x, weight, out=buffer, channel_offset=2)
        return buffer * 2

    buffers = [torch.zeros(1, 9, 2, 5, 5).contiguous(memory_format=torch.channels_last_3d) for _ in range(2)]
    expected = call(x, weight, buffers[0])
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(x, weight, buffers[1])
    assert torch.equal(got, expected)
    assert torch.equal(buffers[1], buffers[0]) and buffers[0].abs().sum() > 0


def test_dynamic_shapes():
    compiled = torch.compile(ops.conv_bn_act3d, fullgraph=True, backend="aot_eager", dynamic=True)
    weight = torch.randn(6, 4, 1, 3, 3)
    for shape in ((1, 4, 2, 5, 6), (2, 4, 3, 9, 7), (3, 4, 5, 8, 11)):
        x = torch.randn(shape)
        assert_equal(compiled(x, weight, stride=(1, 2, 2)), ops.conv_bn_act3d(x, weight, stride=(1, 2, 2)))


def test_errors_survive():
    compiled = torch.compile(ops.conv_bn_act3d, backend="aot_eager")
    with pytest.raises(Exception, match="expected 4 channels, as weight has"):
        compiled(torch.randn(1, 5, 2, 5, 5), torch.randn(6, 4, 1, 1, 1))


def test_provider_is_chosen_when_compiled_code_runs():
    args = torch.randn(1, 4, 2, 5, 5).double(), torch.randn(6, 4, 1, 1, 1).double()
    compiled = torch.compile(ops.conv_bn_act3d, fullgraph=True, backend="aot_eager")
    compiled(*args)
    with use_backend("cpu"), pytest.raises(RuntimeError, match="conv_bn_act3d cannot run here"):
        compiled(*args)


def small_network(slow, fast, weights):
    """A stem, a block of each pathway, a lateral connection and a head."""
    slow = ops.stem3d(slow, weights["stem slow"])
    fast = ops.stem3d(fast, weights["stem fast"])
    slow = ops.lateral_fusion(slow, fast, weights["lateral"], alpha=2)
    slow = torch.tanh(slow) * 2  # something for the compiler to fuse between ops of ours
    slow = ops.bottleneck3d(slow, *weights["block slow"])
    fast = ops.bottleneck3d(fast, *weights["block fast"])
    return ops.pool_concat_head(slow, fast, weights["head"], pool_size=2)


def test_inductor():
    """The default compiler, which rearranges memory layouts around our ops; forward and backward."""
    g = torch.Generator().manual_seed(0)

    def weight(*shape):
        return (torch.randn(shape, generator=g) * shape[1] ** -0.5 * 0.3).requires_grad_()

    def block(cin, inner):
        a, b, c = weight(inner, cin, 3, 1, 1), weight(inner, inner, 1, 3, 3), weight(cin, inner, 1, 1, 1)
        return a, b, c

    weights = {
        "stem slow": weight(16, 3, 1, 7, 7),
        "stem fast": weight(4, 3, 5, 7, 7),
        "lateral": weight(8, 4, 5, 1, 1),
        "block slow": block(24, 8),
        "block fast": block(4, 4),
        "head": weight(5, 28),
    }
    leaves = [t for w in weights.values() for t in (w if isinstance(w, tuple) else (w,)) if t is not None]
    slow, fast = torch.randn(1, 3, 2, 16, 16, generator=g), torch.randn(1, 3, 4, 16, 16, generator=g)
    results = []
    for f in (small_network, torch.compile(small_network, fullgraph=True)):
        out = f(slow, fast, weights)
        results.append([out, *torch.autograd.grad(out[:, 0].sum(), leaves)])
    for got, expected in zip(results[1], results[0], strict=True):
        assert relative_l2(got, expected) < 1e-5


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = models.create("slowfast_8x8_r50", crop=32, frames=8, classes=5, blocks=(1, 1, 1, 1)).eval()
    return model, [torch.randn(1, 3, 2, 32, 32), torch.randn(1, 3, 8, 32, 32)]


def test_a_whole_model_is_one_graph(network):
    model, clips = network
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_equal(compiled(clips), model(clips))


def test_a_whole_model_is_exported(network):
    model, clips = network
    with torch.no_grad():
        exported = torch.export.export(model, (clips,))
        assert_equal(exported.module()(clips), model(clips))
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert {"slowfast.stem3d.default", "slowfast.bottleneck3d.default"} <= names
