"""``accelerate``: another library's live model in, the frozen fused model out, called the same way."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .freeze import freeze
from .models.interop import Counterpart, UnrecognisedModule, read_module


def accelerate(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Fused inference form of a SlowFast, Slow, I3D or C2D model of pytorchvideo or PySlowFast.

    Args:
        module: the model, recognised by its structure; also inside DataParallel, or as a part of a larger
            module. It is not changed, and later changes of its weights are not seen.
        dtype: as in `freeze`: torch.float32 or torch.bfloat16 for the C++ kernels; None keeps the module's.

    Returns:
        A module that is called as the given one (a list of two clips, which is left as it is; detection
        models with boxes as the second argument) and returns what it returns in eval mode, in float32,
        without gradients. If only parts of the module are recognised, a copy of it with these parts replaced.
        If nothing is, the module itself: a warning names what was not recognised.
    """
    try:
        return _frozen(read_module(module), dtype)
    except UnrecognisedModule as error:
        replaced = _replace_parts(module, dtype)
        if replaced is not None:
            return replaced
        warnings.warn(f"accelerate: left as it is: {error}", UserWarning, stacklevel=2)
        return module


def _frozen(counterpart: Counterpart, dtype: torch.dtype | None) -> nn.Module:
    frozen = freeze(counterpart.network.eval(), dtype)
    frozen.register_forward_pre_hook(_SameCall(counterpart), with_kwargs=True)
    return frozen


class _SameCall:
    """Takes the call as the other library has it: names of arguments, one clip for two, fixed length of
    clips."""

    def __init__(self, counterpart: Counterpart) -> None:
        spec = counterpart.network.config.input
        self.frames = counterpart.frames
        # mmaction2's models thin the clip out for the Slow pathway themselves
        self.alpha = spec.alpha if counterpart.library == "mmaction2" and spec.call == "pathways" else 0

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        given = dict(zip(("clips", "rois"), args, strict=False))
        for theirs, ours in (("x", "clips"), ("inputs", "clips"), ("bboxes", "rois")):
            if theirs in kwargs:
                kwargs = {(ours if name == theirs else name): value for name, value in kwargs.items()}
        given.update(kwargs)
        clips = given.pop("clips", None)
        if self.alpha and isinstance(clips, Tensor):
            clips = [clips[:, :, :: self.alpha], clips]
        elif not isinstance(clips, Tensor) and clips is not None:
            clips = list(clips)
        self._check_length(clips)
        return (clips,), given

    def _check_length(self, clips: Any) -> None:
        tensors = [clips] if isinstance(clips, Tensor) else clips or []
        for clip, frames in zip(tensors, self.frames, strict=False):
            if clip.ndim == 5 and clip.shape[2] != frames:
                raise ValueError(
                    f"accelerate: expected clips of {' and '.join(map(str, self.frames))} frames (the window "
                    f"of the module's head), got {clip.shape[2]}"
                )


def _replace_parts(module: nn.Module, dtype: torch.dtype | None) -> nn.Module | None:
    """A shallow copy of a module in which every recognised network is its frozen form; None if there is
    none."""
    replaced: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        try:
            replaced[name] = _frozen(read_module(child), dtype)
        except UnrecognisedModule:
            inner = _replace_parts(child, dtype)
            if inner is not None:
                replaced[name] = inner
    if not replaced:
        return None
    clone = copy.copy(module)
    clone._modules = {**module._modules, **replaced}
    return clone
