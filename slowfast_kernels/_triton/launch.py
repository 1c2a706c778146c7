"""Starting a Triton kernel.

A kernel is started through `launch` and nowhere else. Inside `recording` nothing runs: each start is noted with
what decides its machine code (argument types, divisibility, constants, warps), so that meta tensors of the real
shapes are enough to compile every kernel ahead of time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


@dataclass(frozen=True)
class Launch:
    """What decides the machine code of one start.

    types:     (name, type) of every argument, Triton's spelling; "constexpr" for constants.
    constants: (name, value) of the constants, of None arguments and of integers that are 1.
    divisible: names of the pointers and integers that are multiples of 16.
    grid:      programs along each axis (does not decide the code).
    fusion:    whether the compiler may contract a product and a sum into a fused multiply-add.
    values:    every argument by name (does not decide the code).
    """

    kernel: Any
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]
    warps: int
    stages: int
    grid: tuple[int, ...] = (1,)
    fusion: bool = True
    values: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for starts that share their machine code: Triton's own hash of the source, and the options."""
        return (_source(self).hash(), self.warps, self.stages, self.fusion)

    @property
    def configuration(self) -> tuple[Any, ...]:
        """Equal for starts that differ in nothing but what 16 divides: same types, constants, tiles, warps."""
        return replace(self, divisible=()).key


_recorded: ContextVar[tuple[list[Launch], int] | None] = ContextVar(
    "slowfast_recorded_launches", default=None
)

#: Compute capability that the interpreter stands for, and that recorded starts are made for unasked.
NEWEST = 90


@contextlib.contextmanager
def recording(capability: int = NEWEST) -> Iterator[list[Launch]]:
    """Nothing runs inside the block; the list receives a `Launch` for every start on a GPU of this capability."""
    launches: list[Launch] = []
    token = _recorded.set((launches, capability))
    try:
        yield launches
    finally:
        _recorded.reset(token)


def capability(device: torch.device) -> int:
    """Compute capability that kernels are started for, 80 or 90: the device's, the recording's, the interpreter's."""
    recorded = _recorded.get()
    if recorded is not None:
        return recorded[1]
    if device.type != "cuda":
        return NEWEST
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def launch(
    kernel: Any,
    grid: Sequence[int],
    *args: Any,
    warps: int = 4,
    stages: int = 1,
    fusion: bool = True,
    **constants: Any,
) -> None:
    """Start ``kernel`` on ``grid`` programs.

    args:      tensors, their descriptors, integers, floats and None, by position.
    constants: the kernel's ``tl.constexpr`` parameters, by name.
    warps, stages: warps per program; depth of the software pipeline.
    fusion:    False rounds every product and every sum; only ``tl.fma`` is then a fused multiply-add.

    An empty grid starts nothing.
    """
    extents = tuple(int(g) for g in grid)
    if not all(extents):
        return
    recorded = _recorded.get()
    if recorded is not None:
        recorded[0].append(_describe(kernel, extents, args, constants, warps, stages, fusion))
        return
    maps = (a.base if isinstance(a, TensorDescriptor) else a for a in args)
    device = next(a.device for a in maps if isinstance(a, torch.Tensor))
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[extents](*args, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=fusion)


def _describe(
    kernel: Any,
    grid: tuple[int, ...],
    args: Sequence[Any],
    constants: dict[str, Any],
    warps: int,
    stages: int,
    fusion: bool,
) -> Launch:
    names = list(kernel.arg_names)
    types, fixed, divisible = {}, dict(constants), []
    params = getattr(kernel, "params", ())
    general = {p.name for p in params if p.do_not_specialize}
    unaligned = general | {p.name for p in params if p.do_not_specialize_on_alignment}
    for name, value in zip(names, args, strict=False):
        one = isinstance(value, int) and not isinstance(value, bool) and value == 1
        if value is None or (one and name not in general):
            types[name], fixed[name] = "constexpr", value
        elif isinstance(value, TensorDescriptor):
            box = ",".join(str(extent) for extent in value.block_shape)
            types[name] = f"tensordesc<{_POINTERS[value.base.dtype].removeprefix('*')}[{box}]>"
        elif isinstance(value, torch.Tensor):
            types[name] = _POINTERS[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                divisible.append(name)
        elif isinstance(value, bool):
            types[name] = "i1"
        elif isinstance(value, int):
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and name not in unaligned:
                divisible.append(name)
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            raise TypeError(f"{kernel.fn.__name__}: argument {name} is a {type(value).__name__}")
    for name in names[len(args) :]:
        if name not in constants:
            raise TypeError(f"{kernel.fn.__name__}: argument {name} is missing")
        types[name] = "constexpr"
    return Launch(
        kernel,
        tuple((n, types[n]) for n in names),
        tuple((n, fixed[n]) for n in names if n in fixed),
        tuple(divisible),
        warps,
        stages,
        grid,
        fusion,
        dict(zip(names, args, strict=False)) | constants,
    )


def cdiv(a: int, b: int) -> int:
    """Ceiling of a / b."""
    return -(-a // b)


def next_power_of_2(n: int, low: int = 1, high: int = 1 << 30) -> int:
    """Smallest power of two that is at least ``n``, within [low, high]: Triton's block extents."""
    return max(low, min(high, int(triton.next_power_of_2(max(1, n)))))


def _source(item: Launch) -> Any:
    """What Triton compiles for a recorded start."""
    from triton.compiler import ASTSource

    names = [n for n, _ in item.types]
    return ASTSource(
        item.kernel,
        dict(item.types),
        constexprs={(names.index(n),): v for n, v in item.constants},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in item.divisible},
    )


def compile_launch(item: Launch, capability: int) -> Any:
    """Triton's compiled kernel of a recorded start for compute capability ``capability`` (80, 90); no GPU needed."""
    from triton.backends.compiler import GPUTarget

    options = {"num_warps": item.warps, "num_stages": item.stages, "enable_fp_fusion": item.fusion}
    return triton.compile(_source(item), target=GPUTarget("cuda", capability, 32), options=options)
