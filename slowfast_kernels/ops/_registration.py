"""What every op's ``op.py`` calls: schema, provider choice, fake, autograd and autocast in one place.

Gradients: an op keeps what its ``Gradient`` says and calls an op ``<name>_bwd``, registered here like any other,
whose reference is the vector-Jacobian product of the op's reference. That product is plain PyTorch and is
differentiated as such, to any order. torch.func and forward-mode derivatives pass through the reference itself.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import forward_ad

from .. import backends
from ..backends import Provider
from ._memory import channels_last

LIBRARY = torch.library.Library("slowfast", "FRAGMENT")


@dataclass(frozen=True)
class Gradient:
    """The backward of an op.

    save:     inputs, outputs -> what the backward needs, tensors or not.
    backward: those values, which inputs need a gradient, the outputs' gradients -> the inputs' gradients or None
              (those of the last inputs may be left out).
    """

    save: Callable[[tuple[Any, ...], Any], Sequence[Any]]
    backward: Callable[..., Sequence[torch.Tensor | None]]


@dataclass(frozen=True)
class Op:
    """A registered op: what the tests, the benchmarks and the provider choice need to know of it."""

    name: str
    arguments: tuple[str, ...]
    schema: str
    reference: Callable[..., Any]
    providers: dict[str, Provider] = field(default_factory=dict)

    @property
    def handle(self) -> Any:
        return getattr(torch.ops.slowfast, self.name).default


#: name -> Op, filled by the imports of ``slowfast_kernels.ops``.
OPS: dict[str, Op] = {}


def define_native(schema: str) -> None:
    """Declare a private op that a native library implements (``_<name>_cpu``, ``_<name>_cuda``)."""
    LIBRARY.define(schema)


def float32(x: torch.Tensor | None) -> torch.Tensor | None:
    """Per-channel vector as the kernels read it."""
    return None if x is None else x.detach().float().contiguous()


def _canonical(out: Any) -> Any:
    """Outputs leave an op with the strides its fake promises. (A list's are those of the inputs it belongs to.)"""
    if isinstance(out, torch.Tensor):
        return channels_last(out) if out.dim() == 5 else out.contiguous()
    return tuple(_canonical(o) for o in out) if isinstance(out, tuple) else out


def register(
    name: str,
    arguments: str,
    returns: str = "Tensor",
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    providers: dict[str, Provider] | None = None,
    autocast: Sequence[str] = (),
    gradient: Gradient | str = "recomputed",
    mutates: bool = False,
) -> Op:
    """Define ``slowfast::<name>`` and everything PyTorch wants to know of it.

    arguments: the schema's argument list.
    reference: plain PyTorch, takes the arguments in schema order; also the source of the gradients.
    fake:      shapes and strides of the outputs.
    providers: the other providers by name. An op that has none runs its reference whatever backend is asked for.
    autocast:  names of the floating-point tensor arguments that autocast converts.
    gradient:  "recomputed": op ``<name>_bwd`` re-runs the reference at the saved inputs;
               "traced": calls that want gradients run the reference as plain PyTorch;
               "none": the op is not differentiable;
               a ``Gradient``: the op's own, usually a call of an op ``<name>_bwd``.
    mutates:   the op writes into its arguments marked "(a!)", returns nothing and has no gradient.
    """
    schema = f"{name}({arguments}) -> {returns}"
    LIBRARY.define(schema)
    op = Op(
        name,
        tuple(_argument_names(arguments)),
        schema,
        reference,
        {"reference": Provider(reference), **(providers or {})},
    )
    OPS[name] = op

    def run(*args: Any) -> Any:
        device = next(a.device.type for a in args if isinstance(a, torch.Tensor))
        only = op.providers["reference"] if len(op.providers) == 1 else None
        out = (only or backends.choose(name, op.providers, device, args)).run(*args)
        return None if mutates else _canonical(out)

    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, _positional(run, op), key)
    torch.library.register_fake(f"slowfast::{name}", _positional(fake, op), lib=LIBRARY)
    if autocast:
        _register_autocast(op, autocast)
    if mutates:
        _register_autograd(op, _refuses_gradients(op, arguments))
    elif gradient == "recomputed":
        _register_autograd(op, _differentiable(op, _recomputed(op, arguments)))
    elif gradient == "traced":
        _register_autograd(op, _traced(op))
        torch.library.register_vmap(f"slowfast::{name}", _vmapped(op), lib=LIBRARY)
    elif isinstance(gradient, Gradient):
        _register_autograd(op, _differentiable(op, gradient))
    return op


def _argument_names(arguments: str) -> list[str]:
    # "int[3] stride, Tensor? x=None" -> ["stride", "x"]
    parts = [p.strip() for p in arguments.split(",") if p.strip() not in ("", "*")]
    return [p.split("=")[0].split()[-1] for p in parts]


def _positional(fn: Callable[..., Any], op: Op) -> Callable[..., Any]:
    """Accept the dispatcher's mix of positional and keyword arguments, hand on positionals."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, *(kwargs[n] for n in op.arguments[len(args) :]))

    return call


# --- autocast ----------------------------------------------------------------------------------------------

_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def _without(*keys: str) -> Any:
    """The dispatcher passes over these keys inside the block."""
    found = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, keys[0]))
    for key in keys[1:]:
        found = found | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    return torch._C._ExcludeDispatchKeyGuard(found)


def _register_autocast(op: Op, cast: Sequence[str]) -> None:
    where = [op.arguments.index(c) for c in cast]
    for device, key in _AUTOCAST.items():

        def run(*args: Any, device: str = device, key: str = key) -> Any:
            dtype = torch.get_autocast_dtype(device)
            values = list(args)
            for i in where:
                v = values[i]
                if isinstance(v, torch.Tensor) and v.is_floating_point() and v.dtype != torch.float64:
                    values[i] = v.to(dtype)
            with _without(key):
                return op.handle(*values)

        LIBRARY.impl(op.name, _positional(run, op), key)


# --- autograd ----------------------------------------------------------------------------------------------


def _wants_gradient(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)


def _transformed(args: Sequence[Any]) -> bool:
    """Whether a torch.func transform or a forward-mode derivative passes through these arguments."""
    if torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 and any(
        isinstance(a, torch.Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args
    )


def _register_autograd(op: Op, kernel: Callable[..., Any]) -> None:
    """``kernel(below, *args)``: ``below`` is the op without autograd."""
    handle = op.handle

    def run(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        def below(*values: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return handle.redispatch(keyset & torch._C._after_autograd_keyset, *values)

        return kernel(below, *args, *(kwargs[n] for n in op.arguments[len(args) :]))

    LIBRARY.impl(op.name, run, "Autograd", with_keyset=True)


def _refuses_gradients(op: Op, arguments: str) -> Callable[..., Any]:
    """As torch's own ``out=``; what saved the argument for its backward notices that it has changed."""
    written = [i for i, a in enumerate(arguments.split(",")) if "!" in a]

    def kernel(below: Callable[..., Any], *args: Any) -> None:
        if _wants_gradient(args) or _transformed(args):
            raise RuntimeError(
                f"{op.name.removesuffix('_out')}(): functions with out=... arguments don't support automatic "
                "differentiation, but one of the arguments requires grad."
            )
        below(*args)
        for i in written:
            torch.autograd.graph.increment_version(args[i])

    return kernel


def _differentiable(op: Op, gradient: Gradient) -> Callable[..., Any]:
    def forward(ctx: Any, below: Callable[..., Any], *args: Any) -> Any:
        out = below(*args)
        outputs = out if isinstance(out, tuple) else (out,)
        ctx.mark_non_differentiable(*(o for o in outputs if not o.is_floating_point()))
        kept = gradient.save(args, out)
        ctx.save_for_backward(*(v for v in kept if isinstance(v, torch.Tensor)))
        ctx.others = [None if isinstance(v, torch.Tensor) else (v,) for v in kept]
        ctx.backend = backends.current()  # the backward may run in a thread where no choice is in force
        return out

    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        kept = [next(tensors) if other is None else other[0] for other in ctx.others]
        needs = ctx.needs_input_grad[1:]
        with backends.use_backend(ctx.backend):
            found = gradient.backward(kept, needs, *grads)
        return None, *found, *(None for _ in needs[len(found) :])

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(op.name, (torch.autograd.Function,), methods)

    def kernel(below: Callable[..., Any], *args: Any) -> Any:
        if _transformed(args):
            if backends.current() not in ("auto", "reference"):
                raise RuntimeError(
                    f"slowfast::{op.name} cannot run here ({backends.current()}: torch.func and forward-mode "
                    "derivatives pass through the reference)"
                )
            return op.reference(*args)
        return function.apply(below, *args) if _wants_gradient(args) else below(*args)

    return kernel


def _traced(op: Op) -> Callable[..., Any]:
    def kernel(below: Callable[..., Any], *args: Any) -> Any:
        return op.reference(*args) if _wants_gradient(args) or _transformed(args) else below(*args)

    return kernel


def _recomputed(op: Op, arguments: str) -> Gradient:
    """Gradient of the reference at the saved inputs, as an opaque op so that torch.compile need not trace it."""
    takes = inspect.signature(op.reference).parameters
    assert len(op.arguments) == len(takes), f"{op.name}: reference and schema differ"

    def fake(*args: Any) -> list[torch.Tensor]:
        _, *inputs, needs = args
        return [torch.empty_like(v) for v, need in zip(inputs, needs, strict=True) if need]

    bwd = register(
        f"{op.name}_bwd",
        f"Tensor grad_output, {arguments}, bool[] needs",
        "Tensor[]",
        reference=_vjp(op.reference),
        fake=fake,
        gradient="traced",
    )

    def backward(
        inputs: Sequence[Any], needs: Sequence[bool], grad: torch.Tensor
    ) -> Sequence[torch.Tensor | None]:
        grads = iter(bwd.handle(grad, *inputs, list(needs)))
        return [next(grads) if need else None for need in needs]

    return Gradient(lambda inputs, output: inputs, backward)


def _vjp(reference: Callable[..., Any]) -> Callable[..., list[torch.Tensor]]:
    """Gradient of the result, arguments, which of them need a gradient -> those gradients.

    Can be differentiated itself, with respect to all its tensors, where they require a gradient.
    """

    def vjp(grad: torch.Tensor, *args: Any) -> list[torch.Tensor]:
        *inputs, needs = args
        again = _wants_gradient((grad, *inputs))
        with _autograd():
            live = [
                _leaf(v, need, again) if isinstance(v, torch.Tensor) else v
                for v, need in zip(inputs, needs, strict=True)
            ]
            out = reference(*live)
            wanted = [v for v, need in zip(live, needs, strict=True) if need]
            found = torch.autograd.grad(
                out, wanted, grad.to(out.dtype), create_graph=again, allow_unused=True, materialize_grads=True
            )
            given = [v for v, need in zip(inputs, needs, strict=True) if need]
            if again:
                return [g.to(v.dtype) for v, g in zip(given, found, strict=True)]
        return [torch.empty_like(v).copy_(g) for v, g in zip(given, found, strict=True)]

    return vjp


def _leaf(v: torch.Tensor, need: bool, again: bool) -> torch.Tensor:
    """A tensor to differentiate with respect to; still a function of ``v`` for a derivative of the derivative.

    Low precision becomes float32: sums are better, and torch 2.13's bfloat16 conv3d weight gradient on the CPU
    reads uninitialised memory at channel counts such as 12.
    """
    connected = again and v.requires_grad
    leaf = v.view_as(v) if connected else v.detach()  # a view: the same tensor may be passed twice
    leaf = leaf.float() if v.dtype in (torch.bfloat16, torch.float16) else leaf
    return leaf.requires_grad_() if need and not connected else leaf


@contextlib.contextmanager
def _autograd() -> Iterator[None]:
    """Autograd as in a fresh thread: recording, without autocast, and with its keys, which are excluded inside
    an op and inside a dispatch mode (a FLOP counter, say).
    """
    key, include = torch._C.DispatchKey, torch._C._SetExcludeDispatchKeyGuard
    with (
        include(key.AutogradFunctionality, False),
        include(key.ADInplaceOrView, False),
        _without(*_AUTOCAST.values()),
        torch.enable_grad(),
    ):
        yield


def _vmapped(op: Op) -> Callable[..., Any]:
    """vmap one call after the other, as torch does for every op but those that return a list."""

    def batched(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        def call(i: int) -> Any:
            return op.handle(
                *(
                    a.select(d, i) if isinstance(a, torch.Tensor) and d is not None else a
                    for a, d in zip(args, in_dims, strict=True)
                )
            )

        results = zip(*(call(i) for i in range(info.batch_size)), strict=True)
        out = [torch.stack(r) for r in results]
        return out, [0] * len(out)

    return batched


def as_triple(value: int | Sequence[int], name: str) -> list[int]:
    """An int or three ints (time, height, width) as a list of three."""
    if isinstance(value, int):
        return [value] * 3
    if len(value) != 3:
        raise ValueError(f"{name}: expected an int or three ints (time, height, width), got {tuple(value)}")
    return [int(v) for v in value]
