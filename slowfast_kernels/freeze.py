"""``freeze``: a model for inference only, with everything decided once."""

from __future__ import annotations

import copy
import statistics
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from . import backends, known_issues
from .inference import Folded, Inference, undisturbed
from .models.config import ModelConfig
from .models.overrides import override
from .nn.block import Block
from .ops._dtypes import FLOAT32_BF16
from .precision import fp32_mode

if TYPE_CHECKING:  # what only a frozen model needs is imported with the first one
    from .plans.lower import Target
    from .plans.plan import Instance, Plan

#: Input shapes whose plans a frozen model keeps; the least recently used one is dropped beyond that.
KEPT_PLANS = 4


class Frozen(Inference):
    """Inference form of a module on packed kernels, made by `freeze`; called as the module was.

    Weights are packed and batch norms folded once; memory is planned once per set of input shapes and reused by
    every call. Several threads may call it at the same time: each call in flight has buffers of its own, which
    later calls reuse.

    It has neither parameters nor buffers (`dtype` and `device` are attributes), so `state_dict` is empty, with a
    warning: what is worth keeping is the model that it was made from (`save_checkpoint`). Copies share the packed
    weights. pickle, torch.save and processes started by "spawn" keep it as it is packed; what they write is read
    (torch.load with weights_only=False) by the same version of this library, on a machine that has the kernels.
    Conversions to another dtype or device raise. Clips may be of any floating-point type.

    On a GPU a plan becomes a CUDA graph at the second call with its shapes, with the Fast pathway on a stream of its
    own; `capture=False` runs kernel by kernel. torch.profiler shows every step as "slowfast::OP STAGE", of a graph the
    kernels by their own names. A caller who captures calls in a graph of their own keeps this module
    alive, and calls it with no more than four sets of shapes: memory of the least recently used ones is given back.
    """

    def __init__(self, module: nn.Module, target: Target, *, capture: bool = True) -> None:
        super().__init__(module, "cpu" if target.provider == "cpu" else backends.current())
        self.dtype, self.device = target.dtype, target.device
        self._capture = capture
        from .plans.network import Network

        self._network = Network(module, target)
        self._start()

    def _start(self) -> None:
        self._plans: OrderedDict[tuple[Any, ...], tuple[Plan, list[Instance]]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        from . import __version__

        state = {k: v for k, v in self.__dict__.items() if k not in ("_plans", "_lock")}
        return {**state, "_packed_by": __version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from . import __version__

        packed_by = state.pop("_packed_by")
        super().__setstate__(state)
        self._start()
        reason = backends.unavailable(self._network.target.provider)
        if packed_by != __version__:
            reason = f"it was packed by version {packed_by} of slowfast-kernels, this is {__version__}"
        elif moved := self._network.elsewhere():
            reason = f"its weights came to {moved}"
        if reason:
            raise RuntimeError(
                f"a model frozen for {self.device} in {self.dtype} cannot be used here: {reason}; keep the model "
                "that it was made from (save_checkpoint) and freeze that"
            )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if (moved.dtype, moved.device) != (self.dtype, self.device):
            raise RuntimeError(
                f"frozen for {self.device} in {self.dtype}, asked for {moved.device} and {moved.dtype}: convert the "
                "model that it was made from, and freeze(model, dtype=...) again"
            )
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        warnings.warn(
            f"state_dict: {prefix.rstrip('.') or 'this'} is a frozen model, whose packed weights are not in it; keep "
            "the model that it was made from (save_checkpoint), or the frozen one whole (torch.save)",
            stacklevel=2,
        )
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def profile(self, *args: Any, runs: int = 5, **kwargs: Any) -> list[dict[str, Any]]:
        """Time of every call of a kernel, the median over `runs` runs of a call with these arguments.

        Returns one dict per call: stage ("res2.slow"), op ("opaque" for what runs outside of our kernels and of the
        glue between them), provider, seconds, flops, bytes (least traffic of the call).
        """
        samples: list[list[float]] = []
        with undisturbed(self.device):
            given = self._inputs(args, kwargs)
            for _ in range(runs + 1):
                times: list[float] = []
                _, plan = self._run(given, times)
                samples.append(times)
        return [
            {
                "stage": step.stage,
                "op": step.op,
                "provider": step.provider,
                "seconds": statistics.median(column),
                "flops": step.work,
                "bytes": step.bytes,
            }
            for step, column in zip(plan.steps, zip(*samples[1:], strict=True), strict=True)
        ]

    def workspace_bytes(self) -> int:
        """Memory that the plans kept now hold, in bytes."""
        with self._lock:
            return sum(len(idle) * plan.arena_bytes for plan, idle in self._plans.values())

    def _answer(self, args: tuple[Any, ...]) -> Any:
        return self._run(args, None)[0]

    def _run(self, args: tuple[Any, ...], times: list[float] | None) -> tuple[Any, Plan]:
        graph, inputs = self._network.graph(args)
        if self.device.type == "cpu":
            inputs = [
                x if x.dtype in FLOAT32_BF16 or not x.is_floating_point() else x.float() for x in inputs
            ]
        shapes = tuple(None if i in graph.free else (tuple(x.shape), x.dtype) for i, x in enumerate(inputs))
        key = (graph, shapes, fp32_mode())  # kernels are chosen, and graphs captured, for one way to multiply
        with torch.inference_mode():
            with self._lock:
                if key not in self._plans:
                    self._plans[key] = (self._network.plan(graph, inputs), [])
                    if len(self._plans) > KEPT_PLANS:
                        self._plans.popitem(last=False)
                self._plans.move_to_end(key)
                plan, idle = self._plans[key]
                instance = idle.pop() if idle else None
            instance = instance or self._instance(plan)
            try:
                return instance.run(inputs, times), plan
            finally:
                with self._lock:
                    idle.append(instance)

    def _instance(self, plan: Plan) -> Instance:
        if self.device.type == "cuda":
            from .plans.capture import StreamedInstance

            return StreamedInstance(plan, self.device, self._capture)
        from .plans.plan import Instance

        return Instance(plan)


def freeze(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    *,
    output: str | None = None,
    capture: bool = True,
) -> Inference:
    """Inference form of a network made of `slowfast_kernels.nn`: same call, same answers, no gradients.

    The module's `forward` is followed once for every way that it is called (a list of clips, with boxes or without);
    blocks of `slowfast_kernels.nn` become ops with their batch norms folded and their weights packed once, glue between
    them (cat, add, mul, relu, pools, mean, flatten, indexing, ...) stays PyTorch's, and a concatenation is where its
    parts are written. What cannot be followed runs as it is, and a UserWarning names it. Memory is planned once per
    input shape. It runs where the model lies: on the CPU
    on the C++ kernels; on a GPU on Triton, CUDA and cuDNN, whichever is fastest for a layer, captured in a CUDA graph
    per input shape. Where these cannot run (another dtype or device, an installation without them), PyTorch's own
    operators do, and a UserWarning says so, once for each reason. A `use_backend` in force is obeyed, and stays in
    force for every call of what is returned.

    Args:
        model: a model of `slowfast_kernels.models`, or any module with blocks of `slowfast_kernels.nn` in it (for other
            libraries' models see `accelerate`). It is not changed, and later changes of its weights are not seen.
        dtype: storage dtype of weights and activations: torch.float32 or torch.bfloat16, on a GPU torch.float16 as
            well; None keeps the model's. Sums and the classifier are float32 in any case.
        output: "scores", "features" or "maps" of a model of `slowfast_kernels.models`, as `HeadConfig` has it; None
            keeps the model's.
        capture: on a GPU, capture CUDA graphs. False runs kernel by kernel, for shapes that never come twice.

    Returns:
        A module (`Frozen`, or `Folded` on PyTorch's own operators; `kernels` and `reason` tell which) with the model's
        call signature, returning what the model in eval mode does (a tensor, a tuple, a dictionary): maps in `dtype`,
        anything else in float32.

    Raises:
        TypeError: the model has no block of `slowfast_kernels.nn`, or dtype is no torch.dtype.
        ValueError: dtype is no floating-point type, or output none of the three.
        RuntimeError: a backend asked for by `use_backend` cannot run it.
    """
    blocks = isinstance(model, nn.Module) and any(isinstance(m, Block) for m in model.modules())
    if not blocks or isinstance(model, Inference):
        what = "for a PySlowFast or pytorchvideo model use slowfast_kernels.accelerate"
        if isinstance(model, Inference):
            what = "it is frozen already: freeze the model that it was made from"
        raise TypeError(
            f"freeze: expected a module with blocks of slowfast_kernels.nn, got {type(model).__name__}; {what}"
        )
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"freeze: dtype: expected a torch.dtype such as torch.bfloat16, got {dtype!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"freeze: dtype: expected a floating-point type such as torch.bfloat16, got {dtype}")
    if output is not None:
        if not isinstance(getattr(model, "config", None), ModelConfig):
            raise ValueError(f"freeze: output: expected None for a {type(model).__name__}, got {output!r}")
        model = copy.copy(model)
        config: Any = model.config
        model.config = override(config, {"output": output})  # type: ignore[assignment]
    dtype = dtype or next(model.parameters()).dtype
    device = next(model.parameters()).device
    asked = backends.current()
    on_gpu = asked in ("triton", "cuda") or (asked == "auto" and device.type != "cpu")
    reason = _gpu_refuses(device, dtype, asked) if on_gpu else _cpu_refuses(device, dtype)
    if reason and asked not in ("auto", "reference"):
        raise RuntimeError(f"freeze: backend {asked!r} was asked for but {reason}")
    if asked == "reference":
        reason = "the reference was asked for"
    elif reason:
        _warn_once(reason)
    with torch.no_grad():
        if reason:
            return Folded(model, dtype, reason)
        if on_gpu:
            from .plans.gpu import GpuTarget

            if device.type == "cuda":
                known_issues.warn_once()
            return Frozen(model, GpuTarget(device, dtype), capture=capture)
        from .plans.cpu import CpuTarget

        return Frozen(model, CpuTarget(device, dtype))


def _cpu_refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the model is on {device}"
    if dtype not in FLOAT32_BF16:
        return f"dtype is {dtype}, the C++ kernels take float32 and bfloat16"
    return backends.unavailable("cpu")


def _gpu_refuses(device: torch.device, dtype: torch.dtype, asked: str) -> str | None:
    reason = backends.unavailable(asked) if asked != "auto" else backends.unavailable("triton")
    if reason:
        return reason
    from .plans import gpu

    return gpu.refuses(device, dtype)


_warned: set[str] = set()


def _warn_once(reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"freeze: no fused kernels, PyTorch's own operators run: {reason} (`slowfast-kernels info` shows what this "
            "installation has; use_backend('reference') asks for them without a warning)",
            UserWarning,
            stacklevel=3,
        )
