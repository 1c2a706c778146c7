"""``freeze``: a model for inference only, with everything decided once."""

from __future__ import annotations

import copy
import statistics
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn

from . import backends, known_issues
from .inference import Folded, Inference, undisturbed
from .models.overrides import override
from .models.slowfast import SlowFast
from .ops.conv_bn_act3d.cpu import DTYPES
from .plans.cpu import CpuNetwork
from .plans.graph import StreamedInstance
from .plans.network import Network
from .plans.plan import Instance, Plan, Result
from .precision import fp32_mode

#: Input shapes whose plans a frozen model keeps; the least recently used one is dropped beyond that.
KEPT_PLANS = 4


class Frozen(Inference):
    """Inference form of a model on packed kernels, made by `freeze`; called as the model was.

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

    def __init__(self, model: SlowFast, network: Network, *, capture: bool = True) -> None:
        asked = backends.current()
        super().__init__(model.config, "cpu" if isinstance(network, CpuNetwork) else asked)
        self.dtype, self.device = network.dtype, network.device
        self._network, self._capture = network, capture
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
        on_cpu = isinstance(self._network, CpuNetwork)
        reason = backends.unavailable("cpu" if on_cpu else "triton")
        if packed_by != __version__:
            reason = f"it was packed by version {packed_by} of slowfast-kernels, this is {__version__}"
        elif (at := self._network.head.head.proj.weight.device) != self.device:
            reason = f"its weights came to {at}"
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
        return super()._apply(fn, recurse)  # type: ignore[no-any-return]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        warnings.warn(
            f"state_dict: {prefix.rstrip('.') or 'this'} is a frozen model, whose packed weights are not in it; keep "
            "the model that it was made from (save_checkpoint), or the frozen one whole (torch.save)",
            stacklevel=2,
        )
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def profile(self, clips: Any, rois: torch.Tensor | None = None, *, runs: int = 5) -> list[dict[str, Any]]:
        """Time of every kernel call, the median over `runs` runs.

        Returns one dict per call: stage ("res2.slow"), op, seconds, flops, bytes (least traffic of the call).
        """
        samples: list[list[float]] = []
        with undisturbed(self.device):
            inputs = self._inputs(clips, rois)
            for _ in range(runs + 1):
                times: list[float] = []
                _, plan = self._run([*inputs, rois], times)
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

    def _inputs(self, clips: Any, rois: torch.Tensor | None) -> list[torch.Tensor]:
        tensors = super()._inputs(clips, rois)
        if self.device.type == "cpu":
            tensors = [x if x.dtype in DTYPES else x.float() for x in tensors]
        return tensors

    def _answer(self, clips: list[torch.Tensor], rois: torch.Tensor | None) -> Result:
        return self._run([*clips, rois], None)[0]

    def _run(self, inputs: list[torch.Tensor | None], times: list[float] | None) -> tuple[Result, Plan]:
        shapes = tuple(tuple(x.shape) for x in inputs[: len(self.config.pathways)] if x is not None)
        key = (shapes, fp32_mode())  # kernels are chosen, and graphs captured, for one way to multiply
        with torch.inference_mode():
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


def freeze(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    *,
    output: str | None = None,
    capture: bool = True,
) -> Inference:
    """Inference form of a SlowFast-family model: same call, same answers, no gradients.

    Folds batch norms into the convolutions, packs the weights for the kernels once, plans all buffers once per
    input shape, and writes laterals straight into the Slow pathway's buffers. It runs where the model lies: on the CPU
    on the C++ kernels; on a GPU on Triton, CUDA and cuDNN, whichever is fastest for a layer, captured in a CUDA graph
    per input shape. Where these cannot run (another dtype or device, an installation without them), PyTorch's own
    operators do, and a UserWarning says so, once for each reason. A `use_backend` in force is obeyed, and stays in
    force for every call of what is returned.

    Args:
        model: a model of `slowfast_kernels.models` (for other libraries' models see `accelerate`). It is not
            changed, and later changes of its weights are not seen.
        dtype: storage dtype of weights and activations: torch.float32 or torch.bfloat16, on a GPU torch.float16 as
            well; None keeps the model's. Sums and the classifier are float32 in any case.
        output: "scores", "features" or "maps", as `HeadConfig` has it; None keeps the model's.
        capture: on a GPU, capture CUDA graphs. False runs kernel by kernel, for shapes that never come twice.

    Returns:
        A module (`Frozen`, or `Folded` on PyTorch's own operators; `kernels` and `reason` tell which) with the model's
        call signature, returning what the model in eval mode does: scores and features in float32, maps in `dtype`.

    Raises:
        TypeError: the model is not one of `slowfast_kernels.models`, or dtype no torch.dtype.
        ValueError: dtype is no floating-point type, or output none of the three.
        RuntimeError: a backend asked for by `use_backend` cannot run it.
    """
    if not isinstance(model, SlowFast):
        what = "for a PySlowFast or pytorchvideo model use slowfast_kernels.accelerate"
        if isinstance(model, Inference):
            what = "it is frozen already: freeze the model that it was made from"
        raise TypeError(
            f"freeze: expected a model of slowfast_kernels.models, got {type(model).__name__}; {what}"
        )
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"freeze: dtype: expected a torch.dtype such as torch.bfloat16, got {dtype!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"freeze: dtype: expected a floating-point type such as torch.bfloat16, got {dtype}")
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
    if asked == "reference":
        reason = "the reference was asked for"
    elif reason:
        _warn_once(reason)
    with torch.no_grad():
        if reason:
            return Folded(model, dtype, reason)
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
