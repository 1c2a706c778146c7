"""What the two inference forms of a module share: how they are called, and what they say about themselves."""

from __future__ import annotations

import contextlib
import copy
import inspect
import statistics
import sys
import time
from typing import Any, Self

import torch
from torch import nn
from torch.utils import _pytree as pytree

from . import backends


class Inference(nn.Module):
    """Inference form of a module, made by `freeze`; called as the module was, returns what it returns.

    kernels: "fused", or "reference" where PyTorch's own operators run. reason: why they do, None with fused kernels.
    config: of a model of `slowfast_kernels.models`.

    Dtype and provider were decided when it was made: autocast and training mode change nothing, and a call inside
    `use_backend` of a provider that is not the one that runs raises RuntimeError. torch.compile leaves it as it is: the
    graph of a larger module breaks before and behind it, and with fullgraph=True torch raises.
    """

    kernels = "fused"
    config: Any
    dtype: torch.dtype
    device: torch.device

    def __init__(self, module: nn.Module, runs: str | None, reason: str | None = None) -> None:
        """runs: the only provider that computes, None where there are several."""
        super().__init__()
        self.config, self.reason = getattr(module, "config", None), reason
        self.name = getattr(self.config, "name", "") or type(module).__name__
        self._call = _Call(module)
        self._asked = backends.current()
        self._runs = runs
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Nothing: it is for inference only."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's own forward returns in eval mode, without gradients: maps in the frozen dtype, anything
        else in float32. The caller owns it."""
        call = _untraced if "torch._dynamo" in sys.modules else _call
        return call(self, args, kwargs)

    def _inputs(self, args: Any, kwargs: Any) -> tuple[Any, ...]:
        """The arguments by position, checked."""
        asked = backends.current()
        if asked not in ("auto", self._asked, self._runs):
            raise RuntimeError(
                f"use_backend({asked!r}): this model was frozen under {self._asked!r}, which decided its kernels; "
                f"freeze it again where {asked!r} is asked for"
            )
        given = self._call.bind(args, kwargs)
        for x in pytree.tree_leaves(given):
            if isinstance(x, torch.Tensor) and x.device != self.device:
                raise ValueError(
                    f"{self.name}: expected tensors on {self.device} (the model was frozen for it), got {x.device}"
                )
        return given

    def _answer(self, args: tuple[Any, ...]) -> Any:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.name!r}, dtype={self.dtype}, device={self.device}, kernels={self.kernels!r}"


class _Call:
    """How a module is called: its parameters' names and defaults, and what brings the arguments into one form."""

    def __init__(self, module: nn.Module) -> None:
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
        self.signature = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
        self.name = type(module).__name__
        self.arguments = getattr(module, "arguments", None)

    def bind(self, args: Any, kwargs: Any) -> tuple[Any, ...]:
        """The arguments by position. Raises TypeError as a call would."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        bound.apply_defaults()
        if bound.kwargs:
            raise TypeError(
                f"{self.name}: expected arguments by position, got {', '.join(bound.kwargs)} by name alone"
            )
        given = list(bound.args if self.arguments is None else self.arguments(*bound.args))
        defaults = [p.default for p in self.signature.parameters.values()]
        while given and given[-1] is defaults[min(len(given), len(defaults)) - 1]:
            given.pop()
        return tuple(given)


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Any:
    """Neither gradients nor autocast."""
    kind = device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.no_grad(), torch.autocast(kind, enabled=False) if casts else contextlib.nullcontext():
        yield


def _call(module: Inference, args: Any, kwargs: Any) -> Any:
    if torch.jit.is_tracing():
        raise RuntimeError("torch.jit.trace: expected a model, got a frozen one, which torch.export takes")
    with undisturbed(module.device):
        return module._answer(module._inputs(args, kwargs))


def _untraced(module: Inference, args: Any, kwargs: Any) -> Any:
    """`_call` outside of what torch.compile traces. It makes itself when Dynamo is there and calls come: to import
    that takes seconds."""
    globals()["_untraced"] = torch.compiler.disable(_call, reason="a frozen model is compiled already")
    return _untraced(module, args, kwargs)


class Folded(Inference):
    """Inference form of a module on PyTorch's own operators, for devices and dtypes without packed kernels."""

    kernels = "reference"

    def __init__(self, model: nn.Module, dtype: torch.dtype, reason: str) -> None:
        super().__init__(model, "reference", reason)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                module.to(dtype)  # batch norms keep their digits until they are folded

    @property
    def _weight(self) -> torch.Tensor:
        return next(m.weight for m in self.model.modules() if isinstance(m, nn.Conv3d | nn.Linear))

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self._weight.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._weight.device

    def _answer(self, args: tuple[Any, ...]) -> Any:
        with backends.use_backend("reference"):
            out = self.model(*pytree.tree_map_only(torch.Tensor, self._cast, args))
        return pytree.tree_map_only(torch.Tensor, lambda x: x if x.dim() == 5 else x.float(), out)

    def _cast(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype) if x.dim() == 5 and x.is_floating_point() else x

    def profile(self, *args: Any, runs: int = 5, **kwargs: Any) -> list[dict[str, Any]]:
        """Time of the whole call as one entry: there are no separate kernel calls to time."""
        samples = []
        for _ in range(runs + 1):
            start = time.perf_counter()
            self(*args, **kwargs)
            samples.append(time.perf_counter() - start)
        seconds = statistics.median(samples[1:])
        row = {"stage": "model", "op": "model", "provider": "reference", "seconds": seconds}
        return [{**row, "flops": 0, "bytes": 0}]
