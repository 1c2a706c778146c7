"""For tests of the ops: errors against float64, tolerances, poisoned memory, providers by name, random weights.

Usable by other projects' tests as well; needs nothing but torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors

from . import backends

Module = TypeVar("Module", bound=nn.Module)

#: Providers as tests name them: the C++ kernels once per instruction set.
PROVIDERS = ("reference", "cpu:avx2", "cpu:avx512", "cpu:avx512_bf16", "triton", "cuda")


def devices() -> list[str]:
    """Devices of this machine that tests run on."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


# --- providers ---------------------------------------------------------------------------------------------


def provider_missing(name: str) -> str | None:
    """Why a provider of ``PROVIDERS`` cannot run on this machine, or None when it can."""
    backend, _, isa = name.partition(":")
    if backend == "reference":
        return None
    reason = backends.unavailable(backend)
    if reason is None and isa:
        from ._extension import ISAS

        best = backends.cpu_isa_found()
        if ISAS.index(isa) > ISAS.index(best):
            reason = f"this processor's best instruction set is {best}"
    return reason


def provider_device(name: str) -> str:
    """The device whose tensors a provider takes."""
    return backends.home(name.partition(":")[0])


@contextlib.contextmanager
def use_provider(name: str) -> Iterator[None]:
    """Compute every op inside the block with one of ``PROVIDERS``."""
    backend, _, isa = name.partition(":")
    with contextlib.ExitStack() as stack:
        stack.enter_context(backends.use_backend(backend))
        if isa:
            stack.enter_context(backends.force_cpu_isa(isa))
        yield


# --- arguments ---------------------------------------------------------------------------------------------


def to_float64(tree: Any) -> Any:
    """Every floating-point tensor (and dtype) of a nest of arguments in float64; aliases stay aliases."""
    seen: dict[int, torch.Tensor] = {}

    def convert(x: torch.Tensor | torch.dtype) -> torch.Tensor | torch.dtype:
        if isinstance(x, torch.dtype):
            return torch.float64 if x.is_floating_point else x
        if not x.is_floating_point():
            return x
        base = x._base if x._base is not None and x._base.dtype == x.dtype else None
        if base is None:
            return seen.setdefault(id(x), x.detach().double())
        wide = seen.setdefault(id(base), base.detach().double())
        if wide.stride() != base.stride():  # an overlapping or padded base: no aliasing to keep
            return x.detach().double()
        return wide.as_strided(x.shape, x.stride(), x.storage_offset() - base.storage_offset())

    return pytree.tree_map_only((torch.Tensor, torch.dtype), convert, tree)


def with_gradients(tree: Any) -> tuple[Any, list[torch.Tensor]]:
    """The arguments with every floating-point tensor as a leaf that wants a gradient, and those leaves."""
    leaves: list[torch.Tensor] = []

    def mark(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        leaf = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
        leaves.append(leaf.copy_(x.detach()).requires_grad_())
        return leaf

    return pytree.tree_map_only(torch.Tensor, mark, tree), leaves


# --- models ------------------------------------------------------------------------------------------------


def randomise(model: Module, seed: int = 0) -> Module:
    """Random weights whose answers are worth comparing, in place; the model.

    A fresh network ends its residual branches with zeros and folds batch norms that are the identity: a comparison of
    its outputs would miss what happens inside. Convolutions keep the size of what passes them and a ReLU, batch norms
    have statistics and scales that are neither zero nor one, linear layers tell classes apart.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(x: torch.Tensor | None, std: float) -> None:
        if x is not None:
            x.copy_(torch.randn(x.shape, generator=g) * std)

    def uniform(x: torch.Tensor, low: float, high: float) -> None:
        x.copy_(torch.rand(x.shape, generator=g) * (high - low) + low)

    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine:
                uniform(layer.weight, 0.5, 1.0)
                normal(layer.bias, 0.1)
                if layer.running_mean is not None and layer.running_var is not None:
                    normal(layer.running_mean, 0.1)
                    uniform(layer.running_var, 0.5, 1.5)
            elif isinstance(layer, nn.modules.conv._ConvNd):
                normal(layer.weight, math.sqrt(2 / layer.weight[0].numel()))
                normal(layer.bias, 0.1)
            elif isinstance(layer, nn.Linear):
                normal(layer.weight, 4 / math.sqrt(layer.in_features))
                normal(layer.bias, 0.1)
    return model


# --- errors ------------------------------------------------------------------------------------------------


def _tensors_of(output: Any) -> list[torch.Tensor]:
    """The tensors of an output, whatever it is: a tensor, a NumPy array, a sequence of them."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (tuple, list)):
        return [t for part in output for t in _tensors_of(part)]
    return [torch.as_tensor(output)]


def relative_l2(got: Any, expected: Any) -> float:
    """``|got - expected| / |expected|``, the largest over the tensors of two outputs; norms are float64's.

    0 for equal and for empty tensors; inf where shapes differ, where only ``expected`` is 0, and where a value is
    not finite. Computed on the device of ``got``, which may hold gigabytes.
    """
    ours, theirs = _tensors_of(got), _tensors_of(expected)
    if [x.shape for x in ours] != [y.shape for y in theirs]:
        return math.inf
    worst = 0.0
    for x, y in zip(ours, theirs, strict=True):
        wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = x.detach().to(wide), y.detach().to(x.device, wide)
        error, size = (torch.linalg.vector_norm(v, dtype=torch.float64).item() for v in (x - y, y))
        if not math.isfinite(error) or (error and not size):
            return math.inf
        worst = max(worst, error / size if size else 0.0)
    return worst


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def tolerance(dtype: torch.dtype, reduction: int = 1) -> float:
    """Relative L2 error that a kernel may make against float64.

    dtype:     of inputs and output; sums are float32 (float64 for float64).
    reduction: products per output. Rounding errors of a sum add up like a random walk, so the bound grows
               with the square root; for float32 it stays below the project's limit of 1e-5.
    """
    walk = 2 * math.sqrt(max(1, reduction)) + 4
    if dtype == torch.float64:
        return walk * unit_roundoff(torch.float64)
    if dtype == torch.float32:
        return min(1e-5, walk * unit_roundoff(torch.float32))
    # inputs, folded weights, intermediate maps and the result are each rounded once
    return 4 * unit_roundoff(dtype) + walk * unit_roundoff(torch.float32)


def _describe(got: torch.Tensor, expected: torch.Tensor) -> str:
    if got.numel() == 0:
        return "empty"
    error = (got.double() - expected.double()).abs()
    error = torch.where(torch.isnan(error), math.inf, error)
    at = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    return f"largest at {list(at)}: expected {expected[at].item():.8g}, got {got[at].item():.8g}"


def assert_same_layout(got: torch.Tensor, expected: torch.Tensor, what: str = "result") -> None:
    """Same shape and, where a dimension has an extent to tell it by, the same strides."""
    assert got.shape == expected.shape, (
        f"{what}: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    )
    assert got.stride() == expected.stride(), (
        f"{what}: expected strides {expected.stride()}, got {got.stride()}"
    )


def assert_same_nonfinite(got: torch.Tensor, expected: torch.Tensor, what: str = "result") -> None:
    """NaN and infinities of the same sign at the same places, and nowhere else."""
    assert got.shape == expected.shape, (
        f"{what}: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    )
    for kind, of in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        have, want = of(got), of(expected)
        if not torch.equal(have, want):
            at = tuple(int(i) for i in (have != want).nonzero()[0])
            raise AssertionError(
                f"{what}: expected {int(want.sum())} {kind}, got {int(have.sum())}; first difference at "
                f"{list(at)}: expected {expected[at].item()}, got {got[at].item()}"
            )


def assert_close(
    got: torch.Tensor,
    expected: torch.Tensor,
    reduction: int = 1,
    *,
    bound: float | None = None,
    what: str = "result",
) -> None:
    """``got`` equals the float64 ``expected`` within ``tolerance(got.dtype, reduction)``, or ``bound``.

    Relative L2 over the whole tensor, and every element within 32 such errors of an average element: a single
    wrong element in a large tensor does not hide.
    """
    assert_same_nonfinite(got, expected, what)
    finite = torch.isfinite(expected)
    if not bool(finite.all()):
        got, expected = got[finite], expected[finite]
    limit = tolerance(got.dtype, reduction) if bound is None else bound
    error = relative_l2(got, expected)
    assert error <= limit, (
        f"{what}: relative L2 error {error:.3g}, at most {limit:.3g}; {_describe(got, expected)}"
    )
    if got.numel():
        wide = expected.double()
        rms = wide.square().mean().sqrt().item()
        worst = (got.double() - wide).abs().sub_(wide.abs() * 4 * limit).max().item()
        assert worst <= 32 * limit * rms, (
            f"{what}: one element is off by {worst:.3g} where the average element is {rms:.3g}; "
            f"{_describe(got, expected)}"
        )


def assert_no_worse(
    got: torch.Tensor,
    peer: torch.Tensor,
    expected: torch.Tensor,
    factor: float = 2.0,
    *,
    what: str = "result",
) -> None:
    """The error of ``got`` is at most ``factor`` times that of ``peer``, against the float64 ``expected``.

    ``peer`` is PyTorch's own result in the same type. One rounding of the exact result is always allowed. The
    largest single error may be 2 * ``factor`` times the peer's largest.
    """
    assert got.dtype == peer.dtype, f"{what}: expected {peer.dtype}, got {got.dtype}"
    assert_same_nonfinite(got, expected, what)
    finite = torch.isfinite(expected) & torch.isfinite(peer)
    one = unit_roundoff(got.dtype)
    got, peer, wide = got[finite].double(), peer[finite].double(), expected[finite].double()
    if got.numel() == 0:
        return
    error, allowed = relative_l2(got, wide), max(one, factor * relative_l2(peer, wide))
    assert error <= allowed, (
        f"{what}: relative L2 error {error:.3g}, at most {allowed:.3g} = {factor} times PyTorch's own; "
        f"{_describe(got, wide)}"
    )
    worst, peer_worst = (got - wide).abs().max().item(), (peer - wide).abs().max().item()
    allowed = 2 * factor * peer_worst + 2 * one * wide.abs().max().item()
    assert worst <= allowed, (
        f"{what}: largest error {worst:.3g}, at most {allowed:.3g} (PyTorch's own: {peer_worst:.3g}); "
        f"{_describe(got, wide)}"
    )


def assert_gradient(
    got: torch.Tensor, expected: torch.Tensor, bound: float, *, ratio: float = 0.02, what: str = "gradient"
) -> None:
    """A gradient equals the float64 ``expected``: relative L2 within ``bound``, every slice's norm alike.

    The second check takes every index of the first two axes (clip or channel): the norms of the slices may
    differ by ``ratio`` at most. It notices gradients that are zeroed, doubled or scaled for one channel,
    which an error over the whole tensor forgives at low precision.
    """
    assert got.shape == expected.shape, (
        f"{what}: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    )
    assert_same_nonfinite(got, expected, what)
    error = relative_l2(got, expected)
    assert error <= bound, (
        f"{what}: relative L2 error {error:.3g}, at most {bound:.3g}; {_describe(got, expected)}"
    )
    for dim in range(min(2, got.dim())):
        rest = [d for d in range(got.dim()) if d != dim]
        have, want = (
            (x.double().square().sum(rest) if rest else x.double().square()).sqrt() for x in (got, expected)
        )
        floor = 1e-3 * want.mean() if want.numel() else 0.0
        off = (have - want).abs() > ratio * want + floor
        assert not bool(off.any()), (
            f"{what}: along axis {dim}, index {int(off.nonzero()[0])}: expected a gradient of norm "
            f"{want[off][0].item():.4g}, got {have[off][0].item():.4g}"
        )


# --- poisoned memory ---------------------------------------------------------------------------------------

_M_PERTURB = -6


def _fill(x: torch.Tensor) -> torch.Tensor:
    if x.is_floating_point() and x.device.type != "meta":
        with torch.no_grad():
            x.detach().fill_(math.nan)
    return x


def _poisoning(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        return _fill(fn(*args, **kwargs))

    return poisoned


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory is NaN inside the block, so that reading it, or not writing it, shows in a result.

    ``torch.empty``, ``empty_like``, ``empty_strided`` and ``Tensor.new_empty`` called from Python return NaN.
    With glibc, so does every larger ``malloc`` of the process (all bits set, a NaN in every type), which
    reaches the scratch memory of native kernels and the tensors they allocate.
    """
    owners = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty"))
    originals = [getattr(owner, name) for owner, name in owners]
    # torch.device(...) as a context manager lists the factory functions once: before they are replaced
    _device_constructors()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        # glibc fills with the complement of this value's low byte, and takes 0 for "off"
        mallopt(_M_PERTURB, 0x100)
    for (owner, name), original in zip(owners, originals, strict=True):
        setattr(owner, name, _poisoning(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(owners, originals, strict=True):
            setattr(owner, name, original)
        if mallopt:
            mallopt(_M_PERTURB, 0)
