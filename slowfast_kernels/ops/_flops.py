"""FLOP formulas for ``torch.utils.flop_counter``, from the ops' own costs.

A gradient that is recomputed counts as PyTorch counts a convolution's: what the forward does, once for the gradient
of the maps and once for that of the weights. The forward that it computes again is not counted.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from ._registration import OPS, Op

COUNTER = "torch.utils.flop_counter"
MAPS = ("x", "slow", "fast")


def register_flop_formulas(names: Sequence[str]) -> None:
    """Tell PyTorch's FLOP counter what the public ops, their in-place forms and their gradients do.

    At once if the counter is imported, else when it will be: importing it takes as long as importing Triton.
    """

    def tell(counter: ModuleType) -> None:
        for public in names:
            for name in (public, f"{public}_out", f"{public}_bwd"):
                if name in OPS:
                    packet = getattr(torch.ops.slowfast, name)
                    counter.register_flop_formula(packet, get_raw=True)(_formula(public, OPS[name]))

    if COUNTER in sys.modules:
        tell(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported(COUNTER, tell))


def _formula(public: str, op: Op) -> Callable[..., int]:
    """FLOPs of a call of ``op``; of a recomputed gradient from the op that it belongs to."""

    def flops(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        call, passes, of = op.split(args, kwargs), 1, op
        if op.arguments[:2] == ("grad_output", "needs"):
            wanted = [n for n, need in zip(op.arguments[2:], call[1], strict=True) if need]
            passes = any(n in MAPS for n in wanted) + any(n.startswith("weight") for n in wanted)
            of = OPS[public]
            call = of.split(call[2:])
        if not all(_has_values(v) for n, v in zip(of.arguments, call, strict=False) if n == "rois"):
            return 0
        return passes * of.cost(*call).flops

    return flops


def _has_values(rois: torch.Tensor | None) -> bool:
    """Whether a cost can be told: that of boxes depends on where they are."""
    from torch._subclasses.fake_tensor import FakeTensor

    return rois is None or not (rois.is_meta or isinstance(rois, FakeTensor))


class _WhenImported(importlib.abc.MetaPathFinder):
    """Calls a function with a module as soon as it is imported, once."""

    def __init__(self, name: str, function: Callable[[ModuleType], None]) -> None:
        self.name, self.function = name, function

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.function(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
