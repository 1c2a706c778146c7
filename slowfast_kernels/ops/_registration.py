"""What every op's ``op.py`` calls: schema, provider choice, fake, autograd and autocast in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import backends
from ..backends import Provider

LIBRARY = torch.library.Library("slowfast", "FRAGMENT")


@dataclass(frozen=True)
class Op:
    """A registered op: what the tests, the benchmarks and the provider choice need to know of it."""

    name: str
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


def empty_channels_last(
    like: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Uninitialised tensor of ``shape``: channels_last_3d strides for 5-D shapes, contiguous for others."""
    memory_format = torch.channels_last_3d if len(shape) == 5 else torch.contiguous_format
    return torch.empty(
        tuple(shape), dtype=dtype or like.dtype, device=like.device, memory_format=memory_format
    )


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """``x`` with exactly the channels_last_3d strides (ambiguous ones, as of T = 1, are made canonical)."""
    n, c, t, h, w = x.shape
    strides = (t * h * w * c, 1, h * w * c, w * c, c)
    return x if x.stride() == strides else empty_channels_last(x, x.shape).copy_(x)


def pixel_rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """``x`` [N, C, T, H, W] with its pixels at equal distances, and that distance in elements.

    Channels-last maps and channel slices of them are taken as they are; anything else is copied.
    """
    _, c, t, h, w = x.shape
    p = x.stride(4)
    if w > 1 and p >= c and x.stride() == (t * h * w * p, 1, h * w * p, w * p, p):
        return x, p
    return channels_last(x), c


def float32(x: torch.Tensor | None) -> torch.Tensor | None:
    """Per-channel vector as the kernels read it."""
    return None if x is None else x.detach().float().contiguous()


def _canonical(out: Any) -> Any:
    """Outputs leave an op with the strides its fake promises."""
    if isinstance(out, torch.Tensor):
        return channels_last(out) if out.dim() == 5 else out.contiguous()
    return tuple(_canonical(o) for o in out) if isinstance(out, (tuple, list)) else out


def register(
    name: str,
    arguments: str,
    returns: str = "Tensor",
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    providers: dict[str, Provider] | None = None,
    autocast: Sequence[str] = (),
    differentiable: bool = True,
    backward: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
    mutates: bool = False,
) -> Op:
    """Define ``slowfast::<name>`` and everything PyTorch wants to know of it.

    arguments:      the schema's argument list.
    reference:      plain PyTorch, takes the arguments in schema order; also the source of the gradients.
    fake:           shapes and strides of the outputs.
    providers:      the other providers by name.
    autocast:       names of the floating-point tensor arguments that autocast converts.
    differentiable: gradients by re-running the reference (op ``<name>_bwd``); False registers none.
    backward:       (setup_context, backward) of ``torch.library.register_autograd``: a gradient of the op's
                    own in place of the reference's, usually a call of an op ``<name>_bwd``.
    mutates:        the op writes into an argument and returns nothing.
    """
    schema = f"{name}({arguments}) -> {returns}"
    LIBRARY.define(schema)
    op = Op(name, schema, reference, {"reference": Provider(reference), **(providers or {})})
    OPS[name] = op

    def run(*args: Any) -> Any:
        device = next(a.device.type for a in args if isinstance(a, torch.Tensor))
        out = backends.choose(name, op.providers, device, args).run(*args)
        return None if mutates else _canonical(out)

    qualified = f"slowfast::{name}"
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, _positional(run, arguments), key)
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    if autocast:
        _register_autocast(name, op, arguments, autocast)
    if backward is not None:
        torch.library.register_autograd(qualified, backward[1], setup_context=backward[0], lib=LIBRARY)
    elif differentiable:
        _register_gradient(op, arguments)
    return op


def _argument_names(arguments: str) -> list[str]:
    # "int[3] stride, Tensor? x=None" -> ["stride", "x"]
    parts = [p.strip() for p in arguments.split(",") if p.strip() not in ("", "*")]
    return [p.split("=")[0].split()[-1] for p in parts]


def _positional(fn: Callable[..., Any], arguments: str) -> Callable[..., Any]:
    """Accept the dispatcher's mix of positional and keyword arguments, hand on positionals."""
    names = _argument_names(arguments)

    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, *(kwargs[n] for n in names[len(args) :]))

    return call


def _register_autocast(name: str, op: Op, arguments: str, cast: Sequence[str]) -> None:
    names = _argument_names(arguments)
    where = [names.index(c) for c in cast]
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):

        def run(*args: Any, device: str = device, key: str = key) -> Any:
            dtype = torch.get_autocast_dtype(device)
            values = list(args)
            for i in where:
                v = values[i]
                if isinstance(v, torch.Tensor) and v.is_floating_point() and v.dtype != torch.float64:
                    values[i] = v.to(dtype)
            keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return op.handle(*values)

        LIBRARY.impl(name, _positional(run, arguments), key)


def _widened(x: torch.Tensor) -> torch.Tensor:
    """Low precision as float32: sums are better, and torch 2.13's bfloat16 conv3d weight gradient on the CPU reads
    uninitialised memory at channel counts such as 12.
    """
    return x.detach().float() if x.dtype in (torch.bfloat16, torch.float16) else x.detach()


def _register_gradient(op: Op, arguments: str) -> None:
    """Gradient of the reference at the saved inputs, as an opaque op so that torch.compile need not trace it."""
    names = _argument_names(arguments)
    bwd = f"{op.name}_bwd"
    LIBRARY.define(f"{bwd}(Tensor grad, {arguments}, bool[] needs) -> Tensor[]")

    def run(*args: Any) -> list[torch.Tensor]:
        grad, *inputs, needs = args
        # A dispatch mode around the backward (a FLOP counter, say) has the autograd keys excluded here.
        key, include = torch._C.DispatchKey, torch._C._SetExcludeDispatchKeyGuard
        with (
            include(key.AutogradFunctionality, False),
            include(key.ADInplaceOrView, False),
            torch.enable_grad(),
        ):
            live = [
                _widened(v).requires_grad_(need) if isinstance(v, torch.Tensor) else v
                for v, need in zip(inputs, needs, strict=True)
            ]
            out = op.reference(*live)
            wanted = [v for v, need in zip(live, needs, strict=True) if need]
            grads = torch.autograd.grad(out, wanted, grad.to(out.dtype), allow_unused=True)
        given = [v for v, need in zip(inputs, needs, strict=True) if need]
        return [
            torch.zeros_like(v) if g is None else torch.empty_like(v).copy_(g)
            for v, g in zip(given, grads, strict=True)
        ]

    def run_fake(*args: Any) -> list[torch.Tensor]:
        _, *inputs, needs = args
        return [torch.empty_like(v) for v, need in zip(inputs, needs, strict=True) if need]

    bwd_arguments = f"Tensor grad, {arguments}, bool[] needs"
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(bwd, _positional(run, bwd_arguments), key)
    torch.library.register_fake(f"slowfast::{bwd}", _positional(run_fake, bwd_arguments), lib=LIBRARY)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(v for v in inputs if isinstance(v, torch.Tensor)))
        ctx.others = [None if isinstance(v, torch.Tensor) else (v,) for v in inputs]

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        inputs = [next(tensors) if other is None else other[0] for other in ctx.others]
        needs = list(ctx.needs_input_grad)
        grads = iter(getattr(torch.ops.slowfast, bwd)(grad, *inputs, needs))
        return tuple(next(grads) if need else None for need in needs)

    torch.library.register_autograd(
        f"slowfast::{op.name}", backward, setup_context=setup_context, lib=LIBRARY
    )
    assert len(names) == len(inspect.signature(op.reference).parameters), (
        f"{op.name}: reference and schema differ"
    )


def as_triple(value: int | Sequence[int], name: str) -> list[int]:
    """An int or three ints (time, height, width) as a list of three."""
    if isinstance(value, int):
        return [value] * 3
    if len(value) != 3:
        raise ValueError(f"{name}: expected an int or three ints (time, height, width), got {tuple(value)}")
    return [int(v) for v in value]
