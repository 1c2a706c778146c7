"""What every public function says to arguments of the wrong kind; torchvision's interface; torch.fx."""

import inspect
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from slowfast_kernels import ops
from slowfast_kernels.ops._cases import Draw, contracts_of, op_names

SAME_TYPE = ("weight", "fast", "residual")
BOXES = [op for op in op_names() if "rois" in inspect.signature(getattr(ops, op)).parameters]
each_op = pytest.mark.parametrize("op", op_names())
each_with_boxes = pytest.mark.parametrize("op", BOXES)


def base(op, dtype=torch.float32):
    call = dict(contracts_of(op)["odd"](Draw(seed=2, dtype=dtype)).base)
    if op == "conv_bn_act3d":
        call["residual"] = torch.zeros_like(ops.conv_bn_act3d(**call))
    return call


def tensors_of(op):
    annotations = {n: str(p.annotation) for n, p in inspect.signature(getattr(ops, op)).parameters.items()}
    return {n: "None" in a for n, a in annotations.items() if a in ("torch.Tensor", "torch.Tensor | None")}


@each_op
def test_what_is_no_tensor_is_named(op):
    function = getattr(ops, op)
    assert tensors_of(op)
    for name, optional in tensors_of(op).items():
        wrong = {"numpy.ndarray": torch.zeros(3).numpy(), "list": [1.0, 2.0], "float": 1.0}
        for kind, value in (wrong if optional else wrong | {"NoneType": None}).items():
            with pytest.raises(ValueError, match=f"^{name}: expected a tensor, got {kind}$"):
                function(**base(op) | {name: value})
    first = next(iter(tensors_of(op)))
    call = base(op)
    call.pop(first)
    with pytest.raises(ValueError, match=f"^{first}: expected a tensor, got list"):
        function([1], **call)


def mixed():
    """(op, argument): tensors that have to be of the first one's dtype."""
    for op in op_names():
        own = op == "pool_concat_head"  # its weights may be of any type
        yield from ((op, n) for n in tensors_of(op) if n in SAME_TYPE and not (own and n == "weight"))


@pytest.mark.parametrize("op, name", [*mixed()])
def test_mixed_types_are_named(op, name):
    function, call = getattr(ops, op), base(op)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        with pytest.raises(ValueError, match=f"^{name}: expected torch.float32, as .* has, got {dtype}"):
            function(**call | {name: call[name].to(dtype)})
    wide = base(op, torch.float64)
    with pytest.raises(ValueError, match=f"^{name}: expected torch.float64"):
        function(**wide | {name: wide[name].float()})
    with torch.autocast("cpu", torch.bfloat16):  # converts both, but leaves float64 alone
        function(**call | {name: call[name].bfloat16()})
        with pytest.raises(ValueError, match=f"^{name}: expected torch.float64"):
            function(**wide | {name: wide[name].float()})


@each_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_vectors_may_stay_float32(op, dtype):
    call = base(op, dtype)
    assert any(isinstance(v, torch.Tensor) and v.dtype != dtype for v in pytree.tree_leaves(call))
    getattr(ops, op)(**call)


def test_a_head_takes_other_weights():
    call = base("pool_concat_head", torch.bfloat16)
    wide = ops.pool_concat_head(**call | {"weight": call["weight"].float()})
    assert torch.allclose(wide, ops.pool_concat_head(**call), atol=1e-2)


@pytest.mark.parametrize("op", ["conv_bn_act3d", "lateral_fusion"])
def test_out_of_another_type_is_refused(op):
    call = base(op)
    out = torch.zeros(getattr(ops, op)(**call).shape).contiguous(memory_format=torch.channels_last_3d)
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match=f"out: expected torch.float32, the result's, got {dtype}"):
            getattr(ops, op)(**call | {"out": out.to(dtype)})


# --- torchvision's interface -------------------------------------------------------------------------------


def with_boxes(op, rois, **settings):
    x = torch.randn(3, 4, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    maps = {"features": x} if op == "roi_align3d" else {"slow": x, "fast": None}
    return getattr(ops, op)(**maps, rois=rois, **{"output_size": 2, "spatial_scale": 1.0} | settings)


@each_with_boxes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_boxes_of_each_clip(op, dtype):
    """A list of [Ki, 4], as torchvision takes them; a clip may have none."""
    boxes = [torch.tensor([[0, 1, 4, 5], [1, 0, 6, 3]]), torch.zeros(0, 4), torch.tensor([[2, 2, 5, 5]])]
    boxes = [b.to(dtype) for b in boxes]
    index = torch.tensor([[0], [0], [2]]).to(dtype)
    expected = with_boxes(op, torch.cat([index, torch.cat(boxes)], 1))
    assert torch.equal(with_boxes(op, boxes), expected) and expected.abs().sum() > 0
    assert torch.equal(with_boxes(op, tuple(boxes)), expected)
    none = with_boxes(op, [torch.zeros(0, 4)] * 3)
    assert none.shape == (0, *expected.shape[1:])


def test_boxes_of_no_clip():
    assert ops.roi_align3d(torch.zeros(0, 4, 2, 6, 7), [], 2).shape == (0, 4, 2, 2, 2)


def test_the_batch_index_of_a_box_in_half_precision_is_exact():
    x = torch.arange(300.0).view(300, 1, 1, 1, 1).expand(300, 1, 1, 2, 2)
    boxes = [torch.tensor([[0.0, 0, 2, 2]]).bfloat16()] * 300
    assert torch.equal(ops.roi_align3d(x, boxes, 1).flatten(), torch.arange(300.0))


@each_with_boxes
@pytest.mark.parametrize(
    "rois, settings, message",
    [
        ([torch.zeros(1, 4)], {}, "rois: expected a list of 3 tensors, one for every clip, got 1"),
        ([torch.zeros(1, 5)] * 3, {}, r"rois\[0\]: expected floating-point \[Ki, 4\].*shape \(1, 5\)"),
        ([torch.zeros(1, 4).int()] * 3, {}, r"rois\[0\]: expected floating-point \[Ki, 4\].*got torch.int32"),
        ([torch.zeros(1, 4), [0, 0, 1, 1]], {}, r"rois\[1\]: expected a tensor \[Ki, 4\], got list"),
        (None, {}, r"rois: expected a tensor or a list of \[Ki, 4\] for mode 'frame', got NoneType"),
        (torch.zeros(3, 5).numpy(), {}, "rois: expected a tensor or a list .* got numpy.ndarray"),
    ],
)
def test_boxes_that_do_not_fit(op, rois, settings, message):
    with pytest.raises(ValueError, match=message):
        with_boxes(op, rois, **settings)


def test_a_list_is_of_whole_clips():
    with pytest.raises(ValueError, match="rois: expected a tensor for mode 'tube', got list"):
        with_boxes("roi_align3d", [torch.zeros(1, 4)] * 3, mode="tube")


@each_with_boxes
def test_minus_one_is_adaptive(op):
    rois = torch.tensor([[0, 0.3, 1, 5.2, 5], [1, 1, 0, 6, 3]])
    assert torch.equal(with_boxes(op, rois, sampling_ratio=-1), with_boxes(op, rois, sampling_ratio=0))


# --- torch.fx ----------------------------------------------------------------------------------------------


@each_op
def test_symbolic_trace_records_the_function(op):
    """Whichever of its tensors is traced."""
    call, function = base(op), getattr(ops, op)
    expected = as_tuple(function(**call))
    for name in [n for n, v in call.items() if isinstance(v, torch.Tensor)]:

        def with_one(traced):
            return function(**call | {name: traced})  # noqa: B023 (called in the same round)

        class Call(torch.nn.Module):
            def forward(self, traced):
                return with_one(traced)  # noqa: B023

        traced = torch.fx.symbolic_trace(Call())
        targets = [n.target for n in traced.graph.nodes if n.op == "call_function"]
        assert [t for t in targets if t is not ops.ConvAffine] == [function]
        assert all(map(torch.equal, as_tuple(traced(call[name])), expected))


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


class Block(torch.nn.Module):
    """Something to trace, to run and to keep."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 4, 1, 1, 1))

    def forward(self, x, rois):
        return ops.roi_align3d(ops.conv_bn_act3d(x, self.weight).neg(), rois, output_size=2)


def test_a_traced_module_runs_and_pickles():
    module, args = Block(), (torch.randn(1, 4, 2, 5, 5), torch.tensor([[0, 0, 0, 4, 4.0]]))
    traced = torch.fx.symbolic_trace(module)
    for other in (traced, pickle.loads(pickle.dumps(traced))):
        assert torch.equal(other(*args), module(*args))
