"""What the parity tests of all ops share: one call on a provider against the reference in float64."""

import functools
import mmap

import pytest
import torch
from torch.utils import _pytree as pytree

from slowfast_kernels import backends, ops
from slowfast_kernels.ops._cases import Case, cases_of
from slowfast_kernels.testing import (
    assert_close,
    assert_gradient,
    assert_no_worse,
    relative_l2,
    to_float64,
    with_gradients,
)

#: Providers that compute something of their own, as parameters of the `provider` fixture.
COMPUTING = ("cpu:avx2", "cpu:avx512", "cpu:avx512_bf16")
CPU_PROVIDERS = ("reference", *COMPUTING)

#: Providers of the GPU. Without one they run in Triton's interpreter, which is slow, and in the emulator.
GPU_PROVIDERS = ("triton", "cuda")

on_each = pytest.mark.parametrize("provider", CPU_PROVIDERS, indirect=True)
on_each_computing = pytest.mark.parametrize("provider", COMPUTING, indirect=True)
on_gpu = pytest.mark.parametrize("provider", GPU_PROVIDERS, indirect=True)
on_triton = pytest.mark.parametrize("provider", ["triton"], indirect=True)
on_cuda = pytest.mark.parametrize("provider", ["cuda"], indirect=True)

#: Types that GPU kernels take.
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

#: How the emulator chooses who runs next (csrc/emulator), a few of each; a GPU chooses for itself.
ORDERS = ("mixed", "random:1", "random:2", "reversed", "ahead", "ahead:2")

#: Height and width of real layers are divided by this: every channel count and kernel, few pixels.
SHRINK = 8


def outputs(result):
    """The tensors of a result, as a list."""
    return [result] if isinstance(result, torch.Tensor) else list(result)


def call(op, args, kwargs):
    """The public function's results, as a list."""
    return outputs(getattr(ops, op)(*args, **kwargs))


def there(tree):
    """Every tensor on the device of the provider in force; views, such as channel slices, stay views of one memory."""
    device, moved = backends.home(backends.current()), {}

    def move(x):
        if x.device.type == device:
            return x
        base = x if x._base is None else x._base
        if id(base) not in moved:
            moved[id(base)] = base.to(device)
        if base is x:
            return moved[id(base)]
        return moved[id(base)].as_strided(x.shape, x.stride(), x.storage_offset())

    return pytree.tree_map_only(torch.Tensor, move, tree)


def run(op, args, kwargs):
    """`call` on the device of the provider in force, the results back on the CPU."""
    args, kwargs = there((args, kwargs))
    return [r.cpu() for r in call(op, args, kwargs)]


def reference(op, args, kwargs):
    """The same in plain PyTorch, in the type of the arguments."""
    with backends.use_backend("reference"):
        return call(op, args, kwargs)


def case_named(op: str, name: str) -> Case:
    return next(case for case in cases_of(op) if case.name == name)


def size_of(provider: str) -> dict[str, int | None]:
    """How much of a case a provider gets: all channels, few pixels; a simulated one few frames and boxes."""
    few = {"triton": 2, "cuda": 3} if backends.simulated(provider) else {}
    return {"shrink": SHRINK, "most": few.get(provider)}


@functools.lru_cache(maxsize=4)
def expected_of(op: str, name: str, dtype: torch.dtype, most: int | None = None):
    """(float64 results, PyTorch's own in `dtype`) of a case: computed once for all providers."""
    case, size = case_named(op, name), {"shrink": SHRINK, "most": most}
    exact = reference(op, *to_float64(case.args(dtype=dtype, **size)))
    return exact, reference(op, *case.args(dtype=dtype, **size))


def check(got, exact, peer, reduction, what):
    """float32 within the tolerance of its sums, lower precision within twice PyTorch's own error."""
    assert len(got) == len(exact) == len(peer)
    for g, e, p in zip(got, exact, peer, strict=True):
        assert g.dtype == p.dtype, f"{what}: expected {p.dtype}, got {g.dtype}"
        assert g.shape == e.shape, f"{what}: expected shape {tuple(e.shape)}, got {tuple(g.shape)}"
        if g.dtype == torch.float32:
            assert_close(g, e, reduction, what=what)
        elif g.is_floating_point():
            assert_no_worse(g, p, e, what=what)
        else:
            assert torch.equal(g, e), what


def check_gradients(op: str, args, kwargs, bound: float, what: str) -> None:
    """Gradients of every floating-point argument against autograd through the reference in float64."""
    wide, wide_leaves = with_gradients(to_float64((args, kwargs)))
    exact = reference(op, *wide)
    upstream = [
        torch.randn(e.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64) for e in exact
    ]
    torch.autograd.backward(exact, upstream)

    narrow, leaves = with_gradients((args, kwargs))
    got = call(op, *narrow)
    torch.autograd.backward(got, [u.to(g.dtype) for u, g in zip(upstream, got, strict=True)])
    assert len(leaves) == len(wide_leaves)
    for i, (leaf, wide_leaf) in enumerate(zip(leaves, wide_leaves, strict=True)):
        if wide_leaf.grad is None:  # not differentiable, as the corners of boxes
            assert leaf.grad is None, f"{what}: a gradient for tensor argument {i}, which has none"
            continue
        assert leaf.grad is not None, f"{what}: no gradient for tensor argument {i}"
        assert leaf.grad.dtype == leaf.dtype, f"{what}: gradient {i} is {leaf.grad.dtype}, not {leaf.dtype}"
        assert_gradient(leaf.grad, wide_leaf.grad, bound, what=f"{what}: gradient of tensor argument {i}")


def check_threads(op: str, args, kwargs) -> None:
    """The same bits with one thread, two and five."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([r.clone() for r in call(op, args, kwargs)])
    finally:
        torch.set_num_threads(before)
    for threads, other in zip((2, 5), results[1:], strict=True):
        for one, many in zip(results[0], other, strict=True):
            assert torch.equal(bits(one), bits(many)), (
                f"{op}: {threads} threads and one thread differ by {relative_l2(many, one):.3g}"
            )


def bits(x: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, in logical order."""
    return x.flatten().clone().view(torch.uint8)


def untouched(size: int) -> torch.Tensor:
    """`size` bytes of the host's memory, of which only those that are used take a page."""
    if backends.home(backends.current()) != "cpu":
        pytest.skip("the memory is the host's: pages that are never touched")
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), dtype=torch.uint8)


def far_apart(x: torch.Tensor, pitch: int) -> torch.Tensor:
    """``x`` [N, C, T, H, W] with its pixels `pitch` elements apart, in `untouched` memory."""
    n, c, t, h, w = x.shape
    memory = untouched(n * t * h * w * pitch * x.element_size()).view(x.dtype)
    return memory.as_strided(x.shape, (t * h * w * pitch, 1, h * w * pitch, w * pitch, pitch)).copy_(x)
