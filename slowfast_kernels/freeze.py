"""``freeze``: a model for inference only, with everything decided once."""

from __future__ import annotations

import copy
import statistics
import threading
import time
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from . import backends, known_issues
from .models.overrides import override
from .models.slowfast import SlowFast, check_clips, check_rois
from .ops.conv_bn_act3d.cpu import DTYPES
from .plans.cpu import CpuNetwork
from .plans.graph import StreamedInstance
from .plans.network import Network
from .plans.plan import Instance, Plan, Result
from .precision import fp32_mode

#: Input shapes whose plans a frozen model keeps; the least recently used one is dropped beyond that.
KEPT_PLANS = 4


class Frozen(nn.Module):
    """Inference form of a model, made by `freeze`; called as the model was.

    Weights are packed and batch norms folded once; memory is planned once per set of input shapes and reused by
    every call. Several threads may call it at the same time: each call in flight has buffers of its own, which
    later calls reuse. Training-mode switches have no effect.

    On a GPU a plan becomes a CUDA graph at the second call with its shapes, with the Fast pathway on a stream of its
    own; `capture=False` runs kernel by kernel. torch.profiler shows every step as "slowfast::OP STAGE", of a graph the
    kernels by their own names. A caller who captures calls in a graph of their own keeps this module
    alive, and calls it with no more than four sets of shapes: memory of the least recently used ones is given back.
    """

    def __init__(self, model: SlowFast, network: Network, *, capture: bool = True) -> None:
        super().__init__()
        self.config, self.dtype, self.device = model.config, network.dtype, network.device
        self._network, self._capture = network, capture
        self._plans: OrderedDict[tuple[Any, ...], tuple[Plan, list[Instance]]] = OrderedDict()
        self._lock = threading.Lock()

    def forward(self, clips: Any, rois: torch.Tensor | None = None) -> Result:
        """What the model's own forward returns in eval mode, without gradients: scores or features in float32, or maps
        in the frozen dtype. The caller owns it."""
        with torch.inference_mode():
            return self._run(self._inputs(clips, rois), None)[0]

    def profile(self, clips: Any, rois: torch.Tensor | None = None, *, runs: int = 5) -> list[dict[str, Any]]:
        """Time of every kernel call, the median over `runs` runs.

        Returns one dict per call: stage ("res2.slow"), op, seconds, flops, bytes (least traffic of the call).
        """
        samples: list[list[float]] = []
        with torch.inference_mode():
            inputs = self._inputs(clips, rois)
            for _ in range(runs + 1):
                times: list[float] = []
                _, plan = self._run(inputs, times)
                samples.append(times)
        return [
            {
                "stage": step.stage,
                "op": step.op,
                "seconds": statistics.median(column),
                "flops": step.flops,
                "bytes": step.bytes,
            }
            for step, column in zip(plan.steps, zip(*samples[1:], strict=True), strict=True)
        ]

    def workspace_bytes(self) -> int:
        """Memory that the plans kept now hold, in bytes."""
        with self._lock:
            return sum(len(idle) * plan.arena_bytes for plan, idle in self._plans.values())

    def _inputs(self, clips: Any, rois: torch.Tensor | None) -> list[torch.Tensor | None]:
        check_rois(self.config, rois)
        tensors = list(check_clips(self.config, clips).values())
        for name, x in zip(self.config.pathways, tensors, strict=True):
            if x.device != self.device:
                raise ValueError(
                    f"{name} clip: expected a tensor on {self.device} (the model was frozen for it), got {x.device}"
                )
        if self.device.type == "cpu":
            tensors = [x if x.dtype in DTYPES else x.float() for x in tensors]
        return [*tensors, rois]

    def _run(self, inputs: list[torch.Tensor | None], times: list[float] | None) -> tuple[Result, Plan]:
        shapes = tuple(tuple(x.shape) for x in inputs[: len(self.config.pathways)] if x is not None)
        key = (shapes, fp32_mode())  # kernels are chosen, and graphs captured, for one way to multiply
        with self._lock:
            if key not in self._plans:
                self._plans[key] = (self._network.plan(shapes), [])
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
            return StreamedInstance(plan, self.device, self._capture)
        return Instance(plan)

    def extra_repr(self) -> str:
        return f"{self.config.name!r}, dtype={self.dtype}, device={self.device}"


class Folded(nn.Module):
    """Inference form of a model on the functional ops, for devices and dtypes without packed kernels."""

    def __init__(self, model: SlowFast, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = model.config, dtype
        self._backend = backends.current()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                module.to(dtype)  # batch norms keep their digits until they are folded

    def forward(self, clips: Any, rois: torch.Tensor | None = None) -> Result:
        """As `Frozen.forward`."""
        tensors = [clips] if isinstance(clips, torch.Tensor) else list(clips)
        tensors = [x.to(self.dtype) for x in tensors]
        with torch.no_grad(), backends.use_backend(self._backend):
            out = self.model(tensors[0] if isinstance(clips, torch.Tensor) else tensors, rois)
        return out if isinstance(out, list) else out.float()

    def profile(self, clips: Any, rois: torch.Tensor | None = None, *, runs: int = 5) -> list[dict[str, Any]]:
        """Time of the whole call as one entry: there are no separate kernel calls to time."""
        samples = []
        for _ in range(runs + 1):
            start = time.perf_counter()
            self(clips, rois)
            samples.append(time.perf_counter() - start)
        return [
            {
                "stage": "model",
                "op": "model",
                "seconds": statistics.median(samples[1:]),
                "flops": 0,
                "bytes": 0,
            }
        ]


def freeze(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    *,
    output: str | None = None,
    capture: bool = True,
) -> nn.Module:
    """Inference form of a SlowFast-family model: same call, same answers, no gradients.

    Folds batch norms into the convolutions, packs the weights for the kernels once, plans all buffers once per
    input shape, and writes laterals straight into the Slow pathway's buffers. It runs where the model lies: on the CPU
    on the C++ kernels; on a GPU on Triton, CUDA and cuDNN, whichever is fastest for a layer, captured in a CUDA graph
    per input shape.

    Args:
        model: a model of `slowfast_kernels.models` (for other libraries' models see `accelerate`). It is not
            changed, and later changes of its weights are not seen.
        dtype: storage dtype of weights and activations: torch.float32 or torch.bfloat16, on a GPU torch.float16 as
            well; None keeps the model's. Sums and the classifier are float32 in any case.
        output: "scores", "features" or "maps", as `HeadConfig` has it; None keeps the model's.
        capture: on a GPU, capture CUDA graphs. False runs kernel by kernel, for shapes that never come twice.

    Returns:
        A module with the model's call signature, returning what the model in eval mode does: scores and features in
        float32, maps in `dtype`.

    Raises:
        TypeError: the model is not one of `slowfast_kernels.models`.
        RuntimeError: a backend asked for by `use_backend` cannot run it.
    """
    if not isinstance(model, SlowFast):
        raise TypeError(
            f"freeze: expected a model of slowfast_kernels.models, got {type(model).__name__}; "
            "for a PySlowFast or pytorchvideo model use slowfast_kernels.accelerate"
        )
    if output is not None:
        model = copy.copy(model)
        model.config = override(model.config, {"output": output})
    dtype = dtype or next(model.parameters()).dtype
    device = next(model.parameters()).device
    asked = backends.current()
    on_gpu = asked in ("triton", "cuda") or (asked == "auto" and device.type != "cpu")
    reason = _gpu_refuses(device, dtype, asked) if on_gpu else _cpu_refuses(device, dtype)
    if reason and asked not in ("auto", "reference"):
        raise RuntimeError(f"freeze: backend {asked!r} was asked for but {reason}")
    with torch.no_grad():
        if reason or asked == "reference":
            return Folded(model, dtype)
        if on_gpu:
            from .plans.gpu import GpuNetwork

            if device.type == "cuda":
                known_issues.warn_once()
            return Frozen(model, GpuNetwork(model, dtype), capture=capture)
        return Frozen(model, CpuNetwork(model, dtype))


def _cpu_refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the model is on {device}"
    if dtype not in DTYPES:
        return f"dtype is {dtype}, the C++ kernels take float32 and bfloat16"
    return backends.unavailable("cpu")


def _gpu_refuses(device: torch.device, dtype: torch.dtype, asked: str) -> str | None:
    reason = backends.unavailable(asked) if asked != "auto" else backends.unavailable("triton")
    if reason:
        return reason
    from .plans import gpu

    return gpu.refuses(device, dtype)
