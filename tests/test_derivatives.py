"""Second and third derivatives, forward mode and torch.func: right, or an error; never silently zero."""

import threading
from dataclasses import replace

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from slowfast_kernels import backends, models, ops, use_backend
from slowfast_kernels.backends import Provider
from slowfast_kernels.ops._cases import Draw, contracts_of, op_names
from slowfast_kernels.ops._registration import OPS, RecordCalls
from slowfast_kernels.testing import relative_l2, to_float64

DIFFERENTIABLE = [op for op in op_names() if op != "pack_pathways"]  # its pixels are integers
#: arguments of a public function that get no gradient
CONSTANT = ("rois", "out")


def variants(op):
    """Every small call of the contract: each argument changed on its own."""
    contract = contracts_of(op)["odd"](Draw(seed=3))
    calls = [contract.base, *(contract.base | c for cs in contract.changes.values() for c in cs)]
    return [call for call in calls if call.get("out") is None and call.get("kind") != "none"]


CALLS = [(op, i) for op in DIFFERENTIABLE for i in range(len(variants(op)))]
each_call = pytest.mark.parametrize("op, i", CALLS, ids=[f"{op}-{i}" for op, i in CALLS])
each_op = pytest.mark.parametrize("op", DIFFERENTIABLE)


def leaves_of(call):
    """The call with its floating-point tensors as leaves, and these."""
    fresh = pytree.tree_map_only(torch.Tensor, lambda v: v.detach().clone(), call)
    leaves = pytree.tree_leaves({k: v for k, v in fresh.items() if k not in CONSTANT})
    floating = [v for v in leaves if isinstance(v, torch.Tensor) and v.is_floating_point()]
    return fresh, [v.requires_grad_() for v in floating]


def plain(op, call):
    """The same call of the op's reference, which is nothing but PyTorch."""
    with RecordCalls() as record, torch.no_grad(), use_backend("reference"):
        getattr(ops, op)(**call)
    ((name, args),) = record.calls
    out = OPS[name].flat_reference(*args)
    return out if isinstance(out, torch.Tensor) else out[0]


def derivatives(function, leaves, order):
    """Derivatives of a nonlinear function of the result: ``order`` times the gradient of the squared gradients."""
    value = (function() * 2).tanh().square().sum()
    found = []
    for _ in range(order):
        wanted = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
        grads = [torch.zeros_like(v) if g is None else g for v, g in zip(leaves, wanted, strict=True)]
        found.append([g.detach() for g in grads])
        value = sum((g * g).sum() for g in grads)
    return found


def compare(op, call, order, bound):
    call, leaves = leaves_of(call)
    got = derivatives(lambda: getattr(ops, op)(**call), leaves, order)
    wide, wide_leaves = leaves_of(to_float64(call))
    expected = derivatives(lambda: plain(op, wide), wide_leaves, order)
    for n, (have, want) in enumerate(zip(got, expected, strict=True), 1):
        assert any(w.abs().max() > 0 for w in want), f"derivative {n} is zero: the test is vacuous"
        for g, w in zip(have, want, strict=True):
            assert relative_l2(g, w) < bound or (g - w).abs().max() < bound * 1e-3, f"derivative {n}"


@each_call
def test_second_derivatives(op, i):
    """In float32 on the C++ kernels, against float64 through plain PyTorch."""
    compare(op, variants(op)[i], 2, 2e-3)


@each_op
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_third_derivatives(op, backend):
    with use_backend(backend):
        compare(op, to_float64(variants(op)[0]), 3, 1e-9)


@each_op
def test_second_derivatives_under_cpu(op):
    with use_backend("cpu"):
        compare(op, variants(op)[0], 2, 2e-3)


@each_op
def test_gradgradcheck(op):
    call, leaves = leaves_of(to_float64(variants(op)[0]))
    each, treespec = pytree.tree_flatten(call)

    def function(*values):
        given = dict(zip(map(id, leaves), values, strict=True))
        return getattr(ops, op)(**pytree.tree_unflatten([given.get(id(v), v) for v in each], treespec))

    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_the_same_tensor_twice():
    x, weight = torch.randn(1, 4, 2, 5, 5).double().requires_grad_(), torch.randn(4, 4, 1, 1, 1).double()

    def both(conv):
        return derivatives(lambda: conv(x, weight, x), [x], 2)[1][0]

    expected = both(lambda x, w, r: torch.relu(torch.nn.functional.conv3d(x, w) + r))
    got = both(lambda x, w, r: ops.conv_bn_act3d(x, w, residual=r))
    assert relative_l2(got, expected) < 1e-12


def test_bfloat16():
    call = contracts_of("conv_bn_act3d")["odd"](Draw(seed=3, dtype=torch.bfloat16)).base
    call, leaves = leaves_of(call)
    _, second = derivatives(lambda: ops.conv_bn_act3d(**call).float(), leaves, 2)
    wide, wide_leaves = leaves_of(to_float64(call))
    expected = derivatives(lambda: plain("conv_bn_act3d", wide), wide_leaves, 2)
    for got, want, leaf in zip(second, expected[1], leaves, strict=True):
        assert got.dtype == leaf.dtype and relative_l2(got, want) < 0.1


@pytest.mark.parametrize("name", ["slowfast_8x8_r50", "slowfast_8x8_r50_ava"])
def test_gradient_penalty_of_a_model(name):
    """Against differences of first derivatives."""
    torch.manual_seed(0)
    config = models.configure(name, crop=32, frames=8, classes=5, blocks=(1, 1, 1, 1))
    thin = {p: replace(config.pathway(p), width=width) for p, width in (("slow", 16), ("fast", 2))}
    model = models.build(replace(config, **thin)).double().eval()
    clips = [torch.randn(1, 3, t, 32, 32).double().requires_grad_() for t in (2, 8)]
    boxes = [torch.tensor([[0, 2.0, 3, 25, 30]]).double()] if name.endswith("ava") else []
    weight = model.get_parameter("head.proj.weight")

    def penalty():
        scores = model(clips, *boxes).logit()
        grads = torch.autograd.grad(scores.square().sum(), clips, create_graph=True)
        return sum(g.square().sum() for g in grads)

    direction = torch.randn_like(weight)
    (got,) = torch.autograd.grad(penalty(), weight)
    ends = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight.add_(step * direction)
        ends.append(penalty().item())
        with torch.no_grad():
            weight.sub_(step * direction)
    expected = (ends[0] - ends[1]) / 2e-5
    assert abs(expected) > 1e-8
    assert (got * direction).sum().item() == pytest.approx(expected, rel=1e-5)


# --- torch.func and forward mode ---------------------------------------------------------------------------


def as_function(op):
    """The op's base call in float64 as a function of its first tensor, and that tensor."""
    call, leaves = leaves_of(to_float64(variants(op)[0]))
    name = next(k for k, v in call.items() if v is leaves[0])
    rest = pytree.tree_map_only(torch.Tensor, lambda v: v.detach(), call)
    return lambda x: (getattr(ops, op)(**rest | {name: x}) * 2).tanh(), leaves[0].detach()


@each_op
def test_forward_mode(op):
    """<J v, u> = <v, J' u>, in forward mode by itself and through torch.func."""
    function, x = as_function(op)
    v = torch.randn_like(x)
    out, pull = torch.func.vjp(function, x)  # type: ignore[misc]  # a third result comes only with has_aux
    u = torch.randn_like(out)
    expected = (pull(u)[0] * v).sum()
    value, pushed = torch.func.jvp(function, (x,), (v,))  # type: ignore[misc]
    assert torch.allclose(value, function(x)) and relative_l2((pushed * u).sum(), expected) < 1e-9
    with forward_ad.dual_level():
        pushed = forward_ad.unpack_dual(function(forward_ad.make_dual(x, v))).tangent
    assert relative_l2((pushed * u).sum(), expected) < 1e-9


@each_op
def test_forward_mode_through_a_backward(op):
    """A gradient is linear in the gradient it starts from; the forward ran before there were tangents."""
    function, x = as_function(op)
    x.requires_grad_()
    out = function(x)
    g, tangent = torch.randn_like(out), torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, x, tangent, retain_graph=True)
    with forward_ad.dual_level():
        (pulled,) = torch.autograd.grad(out, x, forward_ad.make_dual(g, tangent))
        assert relative_l2(forward_ad.unpack_dual(pulled).tangent, expected) < 1e-12


@each_op
def test_torch_func(op):
    function, x = as_function(op)

    def value(x):
        return function(x).square().sum()

    live = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(live), live, create_graph=True)
    assert relative_l2(torch.func.grad(value)(x), expected) < 1e-12
    v = torch.randn_like(x)
    (second,) = torch.autograd.grad(expected, live, v)
    # a product with the Hessian
    _, got = torch.func.jvp(torch.func.grad(value), (x,), (v,))  # type: ignore[misc]
    assert second.abs().max() > 0 and relative_l2(got, second) < 1e-9
    batch = torch.stack([x, v])
    assert torch.equal(torch.vmap(function)(batch), torch.stack([function(x), function(v)]))
    if "roi" not in op:  # with boxes, a gradient for each clip of a batch
        each = torch.vmap(torch.func.grad(value))(batch)
        assert relative_l2(each, torch.stack([torch.func.grad(value)(b) for b in batch])) < 1e-12


def test_jacobians_and_hessian():
    weight = torch.randn(3, 2, 1, 1, 1).double()
    x = torch.randn(1, 2, 2, 3, 3).double()

    def both(transform):
        def ours(w):
            return ops.conv_bn_act3d(x, w).square().sum((0, 2, 3, 4))

        def torchs(w):
            return torch.nn.functional.conv3d(x, w).relu().square().sum((0, 2, 3, 4))

        return transform(ours)(weight), transform(torchs)(weight)

    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        got, expected = both(transform)
        assert expected.abs().max() > 0 and relative_l2(got, expected) < 1e-12


@pytest.mark.parametrize("op", ["conv_bn_act3d", "roi_align3d", "roi_head_pool"])
def test_vmap_over_a_backward(op):
    function, x = as_function(op)
    x.requires_grad_()
    out = function(x)
    grads = torch.randn(3, *out.shape).double()

    def pull(g):
        return torch.autograd.grad(out, x, g, retain_graph=True)[0]

    assert torch.equal(torch.vmap(pull)(grads), torch.stack([pull(g) for g in grads]))


def test_a_batched_backward_says_what_is_missing():
    x = torch.randn(1, 4, 2, 5, 5, requires_grad=True)
    out = ops.conv_bn_act3d(x, torch.randn(6, 4, 1, 1, 1))
    with pytest.raises(RuntimeError, match="Batching rule not implemented for slowfast::conv_bn_act3d_bwd"):
        torch.autograd.grad(out, x, torch.randn(2, *out.shape), is_grads_batched=True)


def test_a_compiled_second_derivative_says_what_is_missing():
    x, weight = torch.randn(1, 4, 2, 5, 5, requires_grad=True), torch.randn(6, 4, 1, 1, 1)
    compiled = torch.compile(ops.conv_bn_act3d, fullgraph=True, backend="aot_eager")
    (first,) = torch.autograd.grad(compiled(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(first.square().sum(), x)
    torch.compiler.reset()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.hessian, torch.func.jacfwd])
def test_transforms_do_not_fall_back_silently(transform):
    def function(w):
        return ops.conv_bn_act3d(torch.ones(1, 2, 2, 3, 3), w).sum()

    with (
        use_backend("cpu"),
        pytest.raises(RuntimeError, match=r"cannot run here \(cpu: torch.func and forward"),
    ):
        transform(function)(torch.randn(3, 2, 1, 1, 1))


@pytest.mark.parametrize("op", ["roi_align3d", "roi_head_pool"])
def test_boxes_have_no_gradient(op):
    """As in torchvision, at any order."""
    call, leaves = leaves_of(variants(op)[0])
    call["rois"].requires_grad_()
    value = getattr(ops, op)(**call).square().sum()
    grads = torch.autograd.grad(value, [*leaves, call["rois"]], create_graph=True, allow_unused=True)
    assert grads[-1] is None
    value = sum(g.square().sum() for g in grads[:-1])
    second = torch.autograd.grad(value, [*leaves, call["rois"]], allow_unused=True)
    assert second[-1] is None and all(g.abs().sum() > 0 for g in second[:-1])


# --- the backward's surroundings ---------------------------------------------------------------------------


@each_op
def test_the_backward_remembers_the_backend(op, monkeypatch):
    """Also in another thread, as of PyTorch's for GPUs, where no choice is in force."""
    entry, seen = OPS[f"{op}_bwd"], []

    def run(*args):
        seen.append(backends.current())
        return entry.reference(*args)

    for name in ("reference", "cpu"):
        monkeypatch.setitem(entry.providers, name, Provider(run))
    call, _ = leaves_of(variants(op)[0])
    for name in ("reference", "cpu"):
        with use_backend(name):
            value = getattr(ops, op)(**call).square().sum()
        thread = threading.Thread(target=value.backward)
        thread.start()
        thread.join()
        assert seen and set(seen) == {name}
        seen.clear()


@each_op
def test_a_backward_inside_autocast(op):
    """Autocast is for the forward: the gradient is the same inside the block and after it."""
    grads = []
    for inside in (False, True):
        call, leaves = leaves_of(variants(op)[0])
        value = getattr(ops, op)(**call).square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            grads.append(torch.autograd.grad(value, leaves))
    for got, expected in zip(*grads, strict=True):
        assert torch.equal(got, expected)


def out_calls():
    x, weight = torch.randn(1, 4, 2, 5, 5), torch.randn(6, 4, 1, 1, 1)
    buffer = torch.zeros(1, 10, 2, 5, 5).contiguous(memory_format=torch.channels_last_3d)
    yield "conv_bn_act3d", (x, weight), {"out": buffer}, buffer
    slow = buffer[:, :4]
    yield "lateral_fusion", (slow, x.repeat(1, 1, 2, 1, 1), weight), {"alpha": 2, "out": buffer}, buffer


@pytest.mark.parametrize("op, args, kwargs, buffer", [*out_calls()], ids=["conv_bn_act3d", "lateral_fusion"])
def test_out_has_no_gradient_and_says_so(op, args, kwargs, buffer):
    function = getattr(ops, op)
    args[-1].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"{op}\(\): functions with out=... arguments don't support"):
        function(*args, **kwargs)
    with torch.no_grad():
        function(*args, **kwargs)
    args[-1].requires_grad_(False)

    with pytest.raises(RuntimeError, match="don't support automatic"), forward_ad.dual_level():
        function(*args[:-1], forward_ad.make_dual(args[-1], args[-1]), **kwargs)

    scale = torch.ones(1, requires_grad=True)
    product = buffer * scale  # keeps the buffer for its backward
    function(*args, **kwargs)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
