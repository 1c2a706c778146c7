"""pool_concat_head on every provider against the reference in float64."""

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ops.parity import (
    FLOATS,
    bits,
    call,
    case_named,
    check_gradients,
    on_each,
    on_each_computing,
    reference,
)
from slowfast_kernels import ops, use_backend
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops.pool_concat_head import cpu
from slowfast_kernels.ops.pool_concat_head.spec import HeadSpec
from slowfast_kernels.testing import assert_close, to_float64

OP = "pool_concat_head"
ACTIVATIONS = ("softmax", "sigmoid", "none")


def check(args, kwargs, what):
    """Scores are float32 sums of whatever was stored: float32's tolerance holds for every dtype."""
    got, exact = call(OP, args, kwargs)[0], reference(OP, *to_float64((args, kwargs)))[0]
    assert got.dtype == torch.float32
    assert_close(got, exact, args[2].shape[1], what=what)


@st.composite
def calls(draw):
    """A call of any shape, window, layout and mix of types."""
    n, ts, tf, h, w = (draw(st.integers(low, high)) for low, high in ((0, 3), (1, 3), (1, 5), (1, 9), (1, 9)))
    cs, cf = draw(st.one_of(st.integers(1, 70), st.integers(120, 150))), draw(st.integers(0, 20))
    classes = draw(st.integers(0, 40))
    source = Draw(seed=draw(st.integers(0, 999)), dtype=draw(st.sampled_from(FLOATS)))

    def tensor(*shape):
        layouts = {
            "channels last": lambda: source.normal(*shape),
            "channels first": lambda: source.normal(*shape).contiguous(),
            "slice": lambda: source.normal(shape[0], shape[1] + 5, *shape[2:])[:, 2 : 2 + shape[1]],
            "every other column": lambda: source.normal(*shape[:4], 2 * shape[4])[..., ::2],
        }
        return layouts[draw(st.sampled_from(sorted(layouts)))]()

    weight = source.weight(classes, cs + cf) * 4
    if draw(st.booleans()):
        weight = weight.float()
    args = (
        tensor(n, cs, ts, h, w),
        tensor(n, cf, tf, h, w) if cf else None,
        weight,
        source.uniform(classes).to(weight.dtype) if draw(st.booleans()) else None,
    )
    semantics = draw(st.sampled_from(["pyslowfast", "pytorchvideo", "mmaction2"]))
    window = None
    if semantics != "mmaction2":
        window = draw(st.one_of(st.none(), st.tuples(st.integers(1, h), st.integers(1, w))))
    return args, {
        "pool_size": window,
        "semantics": semantics,
        "activation": draw(st.sampled_from(ACTIVATIONS)),
    }


@on_each
@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    args, kwargs = drawn
    check(args, kwargs, provider)


class TestSemantics:
    """The three libraries' heads, written as their own modules compute them."""

    draw = Draw(seed=5)
    slow, fast = draw.normal(2, 12, 2, 8, 9), draw.normal(2, 6, 4, 8, 9)
    weight, bias = draw.weight(7, 18) * 8, draw.uniform(7)

    def head(self, **kwargs):
        return ops.pool_concat_head(self.slow, self.fast, self.weight, self.bias, **kwargs)

    def logits(self):
        pooled = [nn.AvgPool3d((x.shape[2], 7, 7), stride=1)(x) for x in (self.slow, self.fast)]
        return nn.functional.linear(torch.cat(pooled, 1).permute(0, 2, 3, 4, 1), self.weight, self.bias)

    @on_each
    def test_pyslowfast(self, provider):
        expected = nn.Softmax(dim=4)(self.logits()).mean([1, 2, 3])
        torch.testing.assert_close(self.head(), expected, rtol=1e-5, atol=1e-6)
        expected = nn.Sigmoid()(self.logits()).mean([1, 2, 3])
        torch.testing.assert_close(self.head(activation="sigmoid"), expected, rtol=1e-5, atol=1e-6)

    @on_each
    def test_pytorchvideo(self, provider):
        logits = nn.AdaptiveAvgPool3d(1)(self.logits().permute(0, 4, 1, 2, 3)).flatten(1)
        torch.testing.assert_close(self.head(semantics="pytorchvideo"), logits, rtol=1e-5, atol=1e-6)
        got = self.head(semantics="pytorchvideo", activation="softmax")
        torch.testing.assert_close(got, logits.softmax(1), rtol=1e-5, atol=1e-6)
        assert (got - self.head()).abs().max() > 1e-4  # the order of mean and softmax matters here

    @on_each
    def test_mmaction2(self, provider):
        pooled = [nn.AdaptiveAvgPool3d((1, 1, 1))(x).flatten(1) for x in (self.fast, self.slow)]
        expected = nn.functional.linear(torch.cat(pooled, 1), self.weight, self.bias)
        torch.testing.assert_close(self.head(semantics="mmaction2"), expected, rtol=1e-5, atol=1e-6)

    @on_each
    def test_all_agree_where_the_window_is_the_map(self, provider):
        slow, fast = self.slow[..., :7, :7], self.fast[..., :7, :7]
        permuted = torch.cat([self.weight[:, 12:], self.weight[:, :12]], 1)
        scores = [
            ops.pool_concat_head(slow, fast, weight, self.bias, semantics=semantics, activation="softmax")
            for semantics, weight in (
                ("pyslowfast", self.weight),
                ("pytorchvideo", self.weight),
                ("mmaction2", permuted),
            )
        ]
        for other in scores[1:]:
            torch.testing.assert_close(other, scores[0])

    @on_each
    def test_one_pathway(self, provider):
        got = ops.pool_concat_head(self.slow, None, self.weight[:, :12])
        nothing = torch.zeros_like(self.fast)
        torch.testing.assert_close(got, ops.pool_concat_head(self.slow, nothing, self.weight))


@on_each
def test_float32_weights_keep_their_precision_under_bfloat16_features(provider):
    draw = Draw(seed=2)
    slow, weight = draw.normal(1, 40, 2, 7, 7).bfloat16(), draw.weight(9, 40)
    fine = ops.pool_concat_head(slow, None, weight, activation="none")
    coarse = ops.pool_concat_head(slow, None, weight.bfloat16(), activation="none")
    torch.testing.assert_close(fine, ops.pool_concat_head(slow.float(), None, weight, activation="none"))
    assert 1e-4 < (fine - coarse).abs().max() < 1e-1


@on_each
def test_weights_may_be_a_view(provider):
    draw = Draw(seed=3)
    slow, wide = draw.normal(2, 11, 2, 7, 7), draw.normal(9, 20)
    for weight in (wide[:, 4:15], draw.normal(11, 9).t()):
        got = ops.pool_concat_head(slow, None, weight)
        assert torch.equal(got, ops.pool_concat_head(slow, None, weight.contiguous()))


@on_each_computing
def test_a_channel_slice_is_read_in_place(provider):
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.slowfast._pool_head_run_cpu.default:
                pointers.extend(x.data_ptr() for x in args[:2])
            return func(*args, **(kwargs or {}))

    pointers: list[int] = []
    draw = Draw()
    slow, fast = draw.normal(2, 24, 2, 7, 8)[:, 3:19], draw.normal(2, 4, 4, 7, 8)
    with Seen():
        cpu.run(slow, fast, HeadSpec(draw.weight(5, 20)))
    assert pointers == [slow.data_ptr(), fast.data_ptr()]


def test_gradients_in_bfloat16():
    args, kwargs = case_named(OP, "odd").args(dtype=torch.bfloat16)
    check_gradients(OP, args, kwargs, 1e-2, "bfloat16")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_the_reference(activation):
    draw = Draw(seed=1, dtype=torch.float64)
    args = [draw.normal(1, 3, 2, 3, 4), draw.normal(1, 2, 3, 3, 4), draw.weight(4, 5), draw.normal(4)]

    def head(*args):
        return ops.pool_concat_head(*args, pool_size=(2, 3), activation=activation)

    assert torch.autograd.gradcheck(head, [a.requires_grad_() for a in args], fast_mode=True)


NONFINITE = [math.nan, math.inf, -math.inf]


@on_each
@pytest.mark.parametrize("dtype", FLOATS, ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("semantics", ["pyslowfast", "pytorchvideo"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", NONFINITE)
def test_nonfinite_feature_stays_in_its_clip(value, activation, semantics, dtype, provider):
    draw = Draw(seed=6, dtype=dtype)
    slow, fast, weight = draw.normal(3, 19, 2, 8, 7), draw.normal(3, 5, 3, 8, 7), draw.weight(21, 24)
    bad = slow.clone(memory_format=torch.preserve_format)
    bad[1, 18, 1, 0, 3] = (
        value  # the last channel, in a partial vector, of a row that one window of two holds
    )
    kwargs = {"semantics": semantics, "activation": activation}
    got = ops.pool_concat_head(bad, fast, weight, **kwargs)
    exact = reference(OP, *to_float64(((bad, fast, weight), kwargs)))[0]
    assert_close(got, exact, 24)
    good = ops.pool_concat_head(slow, fast, weight, **kwargs)
    assert torch.equal(got[[0, 2]], good[[0, 2]])
    if math.isnan(value):
        assert bool(got[1].isnan().all())


@on_each
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("which", [2, 3], ids=["weight", "bias"])
@pytest.mark.parametrize("value", NONFINITE)
def test_nonfinite_parameters(value, which, activation, provider):
    draw = Draw(seed=7)
    args = [draw.normal(2, 19, 2, 8, 7), draw.normal(2, 5, 3, 8, 7), draw.weight(21, 24), draw.uniform(21)]
    args[which].view(21, -1)[20, -1] = value
    got = ops.pool_concat_head(*args, activation=activation)
    exact = reference(OP, *to_float64((args, {"activation": activation})))[0]
    if activation == "none":  # infinite or NaN depends on whether the positions are averaged before or after
        assert not got[:, 20].isfinite().any() and not exact[:, 20].isfinite().any()
        got, exact = got[:, :20], exact[:, :20]
    assert_close(got, exact, 24)
    if activation != "softmax":  # one class does not reach the others
        assert bool(got[:, :20].isfinite().all())


@on_each
def test_large_logits_do_not_overflow(provider):
    slow = torch.full((1, 1, 1, 8, 8), 1e4)
    weight = torch.tensor([[1.0], [-1.0], [0.5]])
    assert ops.pool_concat_head(slow, None, weight).tolist() == [[1, 0, 0]]
    assert ops.pool_concat_head(slow, None, weight, activation="sigmoid").tolist() == [[1, 0, 1]]


@on_each
def test_a_clip_does_not_depend_on_its_batch(provider):
    args, kwargs = case_named(OP, "odd").args()
    slow, fast, *rest = args
    together = ops.pool_concat_head(*args, **kwargs)
    for i in range(slow.shape[0]):
        alone = ops.pool_concat_head(slow[i : i + 1], fast[i : i + 1], *rest, **kwargs)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-6, atol=1e-7)


@on_each
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_autocast_converts_the_features_only(weights, provider):
    draw = Draw(seed=8)
    slow, fast, weight = (
        draw.normal(1, 9, 2, 8, 8),
        draw.normal(1, 4, 4, 8, 8),
        draw.weight(6, 13).to(weights),
    )
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.pool_concat_head(slow, fast.bfloat16(), weight)
    assert got.dtype == torch.float32
    assert torch.equal(got, ops.pool_concat_head(slow.bfloat16(), fast.bfloat16(), weight))
    assert not torch.equal(got, ops.pool_concat_head(slow, fast, weight))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()

    def loss(slow, fast, weight):
        return ops.pool_concat_head(slow, fast, weight, pool_size=(3, 4)).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    draw = Draw(seed=9)
    for n, h, w in ((1, 5, 6), (2, 4, 4)):
        shapes = ((n, 9, 2, h, w), (n, 4, 4, h, w), (6, 13))
        results: list[tuple[Any, ...]] = []
        for fn in (compiled, loss):
            args = [draw.normal(*s).requires_grad_() for s in shapes]
            if results:
                args = [a.detach().clone().requires_grad_() for a in results[0][0]]
            value = fn(*args)
            value.backward()
            results.append((args, value, [a.grad for a in args]))
        torch.testing.assert_close(results[0][1:], results[1][1:])


def native(**changes):
    """The C++ op itself, as a frozen model calls it, with memory of its own."""
    draw = Draw(seed=10)
    given = {
        "slow": draw.normal(2, 12, 2, 8, 8),
        "fast": draw.normal(2, 5, 4, 8, 8),
        "weight": draw.weight(6, 17),
        "bias": draw.uniform(6),
        "pool_h": 7,
        "pool_w": 6,
        "fast_first": False,
        "activation": 1,
        "per_position": True,
        "workspace": None,
        "out": torch.empty(2, 6),
    } | changes
    torch.ops.slowfast._pool_head_run_cpu(**given)
    return given


@on_each_computing
@pytest.mark.parametrize("per_position", [False, True])
def test_preallocated_memory(per_position, provider):
    plain = native(per_position=per_position)
    with pytest.raises(RuntimeError, match=r"workspace: expected \d+") as caught:
        native(per_position=per_position, workspace=torch.zeros(0))
    size = int(re.findall(r"workspace: expected (\d+)", str(caught.value))[0])
    guarded = torch.full((size + 1,), -7.5)
    got = native(per_position=per_position, workspace=guarded[:-1])
    assert torch.equal(bits(got["out"]), bits(plain["out"]))
    assert guarded[-1] == -7.5
    semantics = "pyslowfast" if per_position else "pytorchvideo"
    features = [plain[k] for k in ("slow", "fast", "weight", "bias")]
    public = ops.pool_concat_head(*features, pool_size=(7, 6), semantics=semantics, activation="softmax")
    assert torch.equal(bits(got["out"]), bits(public))


@on_each_computing
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workspace": torch.zeros(3)}, r"workspace: expected 276 contiguous float32 values, got 3"),
        ({"weight": torch.zeros(6, 16)}, r"weight: expected \[classes, 17\] with contiguous rows"),
        ({"weight": torch.zeros(17, 6).t()}, r"weight: expected \[classes, 17\] with contiguous rows"),
        ({"bias": torch.zeros(5)}, r"bias: expected 6 contiguous float32 values, got 5"),
        ({"out": torch.zeros(2, 5)}, r"out: expected contiguous float32 \[2, 6\]"),
        ({"out": torch.zeros(2, 6).bfloat16()}, r"out: expected contiguous float32 \[2, 6\]"),
        ({"pool_h": 9}, r"slow: expected at least one frame of 9x6 cells, got 2 of 8x8"),
        ({"pool_h": -1}, r"slow: expected at least one frame of -1x6 cells"),
        ({"fast": torch.zeros(2, 4, 8, 8, 5).permute(0, 4, 1, 2, 3)[:, :, :, :7]}, r"fast: expected "),
        (
            {"fast": torch.zeros(1, 4, 8, 8, 5).permute(0, 4, 1, 2, 3)},
            r"fast: expected a batch of 2, .* got 1",
        ),
        ({"slow": torch.zeros(2, 12, 2, 8, 8)}, r"slow: expected channels_last_3d memory"),
        ({"activation": 3}, r"activation: expected 0 \(none\), 1 \(softmax\) or 2 \(sigmoid\)"),
    ],
)
def test_the_native_op_checks_its_arguments(changes, message, provider):
    native()
    with pytest.raises(RuntimeError, match=message):
        native(**changes)


@on_each_computing
def test_float64_runs_on_the_reference_or_says_why(provider):
    slow, weight = torch.randn(1, 4, 2, 7, 7).double(), torch.randn(3, 4).double()
    with pytest.raises(RuntimeError, match=r"cpu: the maps are float64, the C\+\+ kernels take float32"):
        ops.pool_concat_head(slow, None, weight)
    with use_backend("auto"):
        assert ops.pool_concat_head(slow, None, weight).dtype == torch.float64


SLOW, FAST = (2, 6, 2, 8, 8), (2, 3, 4, 8, 8)


def test_dtypes_that_do_not_fit():
    slow, fast, weight = torch.zeros(SLOW), torch.zeros(FAST), torch.zeros(5, 9)
    with pytest.raises(ValueError, match=r"fast: expected torch\.float32, as slow has, got torch\.bfloat16"):
        ops.pool_concat_head(slow, fast.bfloat16(), weight)
    with pytest.raises(ValueError, match=r"slow: expected a floating-point tensor, got torch\.int64"):
        ops.pool_concat_head(slow.long(), fast, weight)
