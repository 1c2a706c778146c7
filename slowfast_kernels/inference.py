"""What the two inference forms of a model share: how they are called, and what they say about themselves."""

from __future__ import annotations

import contextlib
import copy
import statistics
import sys
import time
from typing import Any, Self

import torch
from torch import nn

from . import backends
from .models.config import ModelConfig
from .models.slowfast import SlowFast, check_clips, check_rois
from .plans.plan import Result


class Inference(nn.Module):
    """Inference form of a model, made by `freeze`; called as the model was.

    kernels: "fused", or "reference" where PyTorch's own operators run. reason: why they do, None with fused kernels.

    Dtype and provider were decided when it was made: autocast and training mode change nothing, and a call inside
    `use_backend` of a provider that is not the one that runs raises RuntimeError. torch.compile leaves it as it is: the
    graph of a larger module breaks before and behind it, and with fullgraph=True torch raises.
    """

    kernels = "fused"
    config: ModelConfig
    dtype: torch.dtype
    device: torch.device

    def __init__(self, config: ModelConfig, runs: str | None, reason: str | None = None) -> None:
        """runs: the only provider that computes, None where there are several."""
        super().__init__()
        self.config, self.reason = config, reason
        self._asked = backends.current()
        self._runs = runs
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Nothing: it is for inference only."""
        return self

    def forward(self, clips: Any, rois: torch.Tensor | None = None) -> Result:
        """What the model's own forward returns in eval mode, without gradients: scores or features in float32, or maps
        in the frozen dtype. The caller owns it."""
        call = _untraced if "torch._dynamo" in sys.modules else _call
        return call(self, clips, rois)

    def _inputs(self, clips: Any, rois: torch.Tensor | None) -> list[torch.Tensor]:
        """The clips, checked."""
        asked = backends.current()
        if asked not in ("auto", self._asked, self._runs):
            raise RuntimeError(
                f"use_backend({asked!r}): this model was frozen under {self._asked!r}, which decided its kernels; "
                f"freeze it again where {asked!r} is asked for"
            )
        check_rois(self.config, rois)
        tensors = check_clips(self.config, clips)
        for name, x in tensors.items():
            if x.device != self.device:
                raise ValueError(
                    f"{name} clip: expected a tensor on {self.device} (the model was frozen for it), got {x.device}"
                )
        return list(tensors.values())

    def _answer(self, clips: list[torch.Tensor], rois: torch.Tensor | None) -> Result:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.config.name!r}, dtype={self.dtype}, device={self.device}, kernels={self.kernels!r}"


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Any:
    """Neither gradients nor autocast."""
    kind = device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.no_grad(), torch.autocast(kind, enabled=False) if casts else contextlib.nullcontext():
        yield


def _call(module: Inference, clips: Any, rois: torch.Tensor | None) -> Result:
    if torch.jit.is_tracing():
        raise RuntimeError("torch.jit.trace: expected a model, got a frozen one, which torch.export takes")
    with undisturbed(module.device):
        return module._answer(module._inputs(clips, rois), rois)


def _untraced(module: Inference, clips: Any, rois: torch.Tensor | None) -> Result:
    """`_call` outside of what torch.compile traces. It makes itself when Dynamo is there and calls come: to import
    that takes seconds."""
    globals()["_untraced"] = torch.compiler.disable(_call, reason="a frozen model is compiled already")
    return _untraced(module, clips, rois)


class Folded(Inference):
    """Inference form of a model on PyTorch's own operators, for devices and dtypes without packed kernels."""

    kernels = "reference"

    def __init__(self, model: SlowFast, dtype: torch.dtype, reason: str) -> None:
        super().__init__(model.config, "reference", reason)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                module.to(dtype)  # batch norms keep their digits until they are folded

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.model.head.proj.weight.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.model.head.proj.weight.device

    def _answer(self, clips: list[torch.Tensor], rois: torch.Tensor | None) -> Result:
        tensors = [x.to(self.dtype) for x in clips]
        with backends.use_backend("reference"):
            out = self.model(tensors if len(tensors) > 1 else tensors[0], rois)
        return out if isinstance(out, list) else out.float()

    def profile(self, clips: Any, rois: torch.Tensor | None = None, *, runs: int = 5) -> list[dict[str, Any]]:
        """Time of the whole call as one entry: there are no separate kernel calls to time."""
        samples = []
        for _ in range(runs + 1):
            start = time.perf_counter()
            self(clips, rois)
            samples.append(time.perf_counter() - start)
        seconds = statistics.median(samples[1:])
        return [{"stage": "model", "op": "model", "seconds": seconds, "flops": 0, "bytes": 0}]
