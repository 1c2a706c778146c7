"""What every op's ``op.py`` calls: schema, provider choice, fake, autograd and autocast in one place.

Gradients: an op keeps what its ``Gradient`` says and calls an op ``<name>_bwd``, registered here like any other,
whose reference is the vector-Jacobian product of the op's reference. That product is plain PyTorch and is
differentiated as such, to any order. torch.func and forward-mode derivatives pass through the reference itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from .. import backends
from ..backends import Provider
from ._memory import channels_last
from ._spec import Cost, Spec

LIBRARY = torch.library.Library("slowfast", "FRAGMENT")


@dataclass(frozen=True)
class Gradient:
    """The backward of an op.

    save:     (inputs, spec), outputs -> what the backward needs, tensors or not.
    backward: those values, which arguments need a gradient, the outputs' gradients -> the arguments' gradients or None
              (those of the last arguments may be left out).
    """

    save: Callable[[Sequence[Any], Any], Sequence[Any]]
    backward: Callable[..., Sequence[torch.Tensor | None]]


def _least(*call: Any) -> Cost:
    return call[-1].cost(*call[:-1])


@dataclass(frozen=True)
class Op:
    """A registered op: what the tests, the benchmarks and the provider choice need to know of it.

    ``op(*inputs, spec)`` calls it. arguments: names of the flat arguments that PyTorch knows, the inputs' first.
    cost: inputs, spec -> least work of a call.
    """

    name: str
    arguments: tuple[str, ...]
    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    spec: type[Spec] | None
    providers: dict[str, Provider] = field(default_factory=dict)
    cost: Callable[..., Cost] = _least

    @property
    def handle(self) -> Any:
        return getattr(torch.ops.slowfast, self.name).default

    def __call__(self, *call: Any) -> Any:
        return self.handle(*(call if self.spec is None else (*call[:-1], *call[-1].flat())))

    def split(self, values: Sequence[Any], named: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """(inputs, spec) of flat values, the last of which may be given by name."""
        flat = [*values, *(named[n] for n in self.arguments[len(values) :])] if named else values
        if self.spec is None:
            return flat
        first = len(self.arguments) - len(self.spec.arguments())
        return *flat[:first], self.spec.from_flat(flat[first:])

    def flat_reference(self, *values: Any) -> Any:
        """The reference on flat values."""
        return self.reference(*self.split(values))


#: name -> Op, filled by the imports of ``slowfast_kernels.ops``.
OPS: dict[str, Op] = {}


class RecordCalls(TorchDispatchMode):
    """Calls of the library's registered ops inside the block: ``calls`` is a list of (name, flat arguments).

    run: False computes nothing; what the ops return is uninitialised.
    """

    def __init__(self, run: bool = True) -> None:
        super().__init__()
        self.run = run
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "slowfast":
            return func(*args, **kwargs)
        schema = func._schema.arguments
        given = [*args, *(kwargs[a.name] for a in schema[len(args) :] if a.name in kwargs)]
        name = func._schema.name.removeprefix("slowfast::")
        self.calls.append((name, tuple(given)))
        return func(*args, **kwargs) if self.run else OPS[name].fake(*OPS[name].split(given))


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
    inputs: str,
    spec: type[Spec] | None = None,
    returns: str = "Tensor",
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    providers: Mapping[str, Provider] | None = None,
    autocast: Sequence[str] = (),
    gradient: Gradient | str = "recomputed",
    vjp: Callable[..., Sequence[torch.Tensor] | None] | None = None,
    cost: Callable[..., Cost] | None = None,
    mutates: bool = False,
) -> Op:
    """Define ``slowfast::<name>`` and everything PyTorch wants to know of it.

    inputs:    the schema's first arguments.
    spec:      the class whose fields are the other ones; None where there are none.
    reference: plain PyTorch, takes the inputs and a spec, as fake and the providers do; also the source of gradients.
    fake:      shapes and strides of the outputs.
    providers: the other providers by name. An op that has none runs its reference whatever backend is asked for.
    autocast:  names of the inputs that autocast converts, and a spec's convolution weights with them.
    gradient:  "recomputed": op ``<name>_bwd`` re-runs the reference at the saved inputs;
               "traced": calls that want gradients run the reference as plain PyTorch;
               "none": the op is not differentiable;
               a ``Gradient``: the op's own, usually a call of an op ``<name>_bwd``.
    vjp:       of a recomputed gradient: output's gradient, needs, inputs, spec -> the gradients that are needed where
               the reference need not be run for them, else None.
    cost:      inputs, spec -> least work of a call; by default the spec's.
    mutates:   the op writes into its arguments marked "(a!)", returns nothing and has no gradient.
    """
    arguments = ", ".join([inputs, *(spec.arguments() if spec else ())])
    names = tuple(_argument_names(arguments))
    schema = f"{name}({arguments}) -> {returns}"
    LIBRARY.define(schema)
    all_providers = {"reference": Provider(reference), **(providers or {})}
    op = OPS[name] = Op(name, names, schema, reference, fake, spec, all_providers, cost or _least)

    def run(*values: Any, **named: Any) -> Any:
        call = op.split(values, named)
        device = next(a.device.type for a in values if isinstance(a, torch.Tensor))
        only = op.providers["reference"] if len(op.providers) == 1 else None
        out = (only or backends.choose(name, op.providers, device, call)).run(*call)
        return None if mutates else _canonical(out)

    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(
        f"slowfast::{name}", lambda *values, **named: fake(*op.split(values, named)), lib=LIBRARY
    )
    if autocast:
        weights = [n for n in names if n.split("_")[0] == "weight"] if has_convolutions(spec) else []
        _register_autocast(op, [*autocast, *weights])
    if mutates:
        _register_autograd(op, _refuses_gradients(op, arguments))
    elif gradient == "recomputed":
        _register_autograd(op, _differentiable(op, _recomputed(op, arguments, vjp)))
    elif gradient == "traced":
        _register_autograd(op, _traced(op))
        torch.library.register_vmap(f"slowfast::{name}", _vmapped(op), lib=LIBRARY)
    elif isinstance(gradient, Gradient):
        _register_autograd(op, _differentiable(op, gradient))
    return op


def has_convolutions(spec: type | None) -> bool:
    """Whether an op has convolution weights, which its providers prepare."""
    return spec is not None and any(kind.startswith("ConvAffine") for _, kind in getattr(spec, "layout", ()))


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
        kept = gradient.save(op.split(args), out)
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
            return op.flat_reference(*args)
        return function.apply(below, *args) if _wants_gradient(args) else below(*args)

    return kernel


def _traced(op: Op) -> Callable[..., Any]:
    def kernel(below: Callable[..., Any], *args: Any) -> Any:
        return op.flat_reference(*args) if _wants_gradient(args) or _transformed(args) else below(*args)

    return kernel


def _recomputed(
    op: Op, arguments: str, direct: Callable[..., Sequence[torch.Tensor] | None] | None
) -> Gradient:
    """Gradient of the reference at the saved inputs, as an opaque op so that torch.compile need not trace it."""

    def fake(grad: torch.Tensor, needs: Sequence[bool], *inputs: Any) -> list[torch.Tensor]:
        return [torch.empty_like(v) for v, need in zip(inputs, needs, strict=True) if need]

    bwd = register(
        f"{op.name}_bwd",
        f"Tensor grad_output, bool[] needs, {arguments}",
        returns="Tensor[]",
        reference=_vjp(op, direct),
        fake=fake,
        gradient="traced",
    )

    def backward(
        inputs: Sequence[Any], needs: Sequence[bool], grad: torch.Tensor
    ) -> Sequence[torch.Tensor | None]:
        grads = iter(bwd.handle(grad, list(needs), *_flat(inputs)))
        return [next(grads) if need else None for need in needs]

    return Gradient(lambda call, output: _flat(call), backward)


def _flat(call: Sequence[Any]) -> list[Any]:
    """Flat values of (inputs, spec)."""
    return [*call[:-1], *call[-1].flat()] if isinstance(call[-1], Spec) else list(call)


def _vjp(
    op: Op, direct: Callable[..., Sequence[torch.Tensor] | None] | None
) -> Callable[..., list[torch.Tensor]]:
    """Gradient of the result, which arguments need a gradient, arguments -> those gradients.

    Can be differentiated itself, with respect to all its tensors, where they require a gradient.
    """

    def vjp(grad: torch.Tensor, needs: Sequence[bool], *inputs: Any) -> list[torch.Tensor]:
        again = _wants_gradient((grad, *inputs))
        if direct is not None and not again and not _transformed((grad, *inputs)):
            wide = [_wide(v) if isinstance(v, torch.Tensor) else v for v in inputs]
            found = direct(_wide(grad), needs, *op.split(wide))
            if found is not None:
                given = [v for v, need in zip(inputs, needs, strict=True) if need]
                return [_as(v, g) for v, g in zip(given, found, strict=True)]
        with _autograd():
            live = [
                _leaf(v, need, again) if isinstance(v, torch.Tensor) else v
                for v, need in zip(inputs, needs, strict=True)
            ]
            out = op.flat_reference(*live)
            wanted = [v for v, need in zip(live, needs, strict=True) if need]
            found = torch.autograd.grad(
                out, wanted, grad.to(out.dtype), create_graph=again, allow_unused=True, materialize_grads=True
            )
            given = [v for v, need in zip(inputs, needs, strict=True) if need]
            if again:
                return [g.to(v.dtype) for v, g in zip(given, found, strict=True)]
        return [_as(v, g) for v, g in zip(given, found, strict=True)]

    return vjp


def _as(v: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """A gradient in the type and the memory layout that the fake promises."""
    like = torch.empty_like(v, device="meta")
    same = grad.dtype == v.dtype and grad.stride() == like.stride()
    return grad if same else torch.empty_like(v).copy_(grad)


def _wide(v: torch.Tensor) -> torch.Tensor:
    return v.float() if v.dtype in (torch.bfloat16, torch.float16) else v


def _leaf(v: torch.Tensor, need: bool, again: bool) -> torch.Tensor:
    """A tensor to differentiate with respect to; still a function of ``v`` for a derivative of the derivative.

    Low precision becomes float32: sums are better, and torch 2.13's bfloat16 conv3d weight gradient on the CPU
    reads uninitialised memory at channel counts such as 12.
    """
    connected = again and v.requires_grad
    leaf = v.view_as(v) if connected else v.detach()  # a view: the same tensor may be passed twice
    leaf = _wide(leaf)
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
