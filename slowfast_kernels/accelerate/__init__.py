"""``accelerate``: another library's live model in, the frozen fused model out, called the same way."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn


def accelerate(
    module: nn.Module,
    dtype: torch.dtype | None = None,
    *,
    output: str | None = None,
    strict: bool = False,
    verify: Any = None,
) -> nn.Module:
    """Fused inference form of a SlowFast, Slow, I3D or C2D model of pytorchvideo, PySlowFast or mmaction2.

    The module is recognised by its structure and never changed; what comes back has weights, modules, hooks and modes
    of its own, and later changes of the module's are not seen. What comes back depends on how much is recognised:

    - the whole network: its frozen form, in which no module of the other library is left;
    - stem to res5, below a head of somebody's own (another classifier, features, ``blocks[:-1]``): a frozen trunk and
      a copy of the head on top, in eval mode, which may be trained. Models of mmaction2 are always taken this way:
      the backbone is frozen and the recogniser (or detector) around it is a copy, so that all its calls work;
    - parts of a larger module: a copy of the module, in eval mode, with these parts replaced;
    - nothing: the module itself comes back, and a warning says what was not recognised.

    Hooks, a forward replaced on an instance or in a subclass, and whatever else may change the answers of what would
    be replaced, count as not recognised; around the replaced part they are kept. Hooks of gradients are ignored.

    Args:
        module: the model; also compiled, or inside DataParallel or DistributedDataParallel (it comes back without:
            wrap the result). Sharded, traced and scripted modules are not recognised.
        dtype: as in `freeze`: torch.float32 or torch.bfloat16 for the C++ kernels; None keeps the module's.
        output: "scores", "features" or "maps", as `HeadConfig` has it, of a module that is recognised as a whole
            ("maps" also under another head); None keeps what the module returns. A model of mmaction2 is then called
            with clips alone, [N, 3, T, H, W] or [N, views, 3, T, H, W].
        strict: raise `UnrecognisedModule` where a warning or the replacement of parts would be the answer.
        verify: the argument, or the tuple of arguments, of one call: both modules run it once in eval mode, and
            their answers are compared. The module's state and mode and torch's random numbers stay as they were.

    Returns:
        A module that is called as the given one (a list of two clips is left as it is; detection models take boxes
        as the second argument) and returns what it returns in eval mode, without gradients for what is frozen; a
        whole network's scores in float32. It raises ValueError for clips of another length than the window of the
        module's head has, where the module would average over time.

    Raises:
        TypeError: it is not a module.
        UnrecognisedModule: with `strict`, or with `output`, for what cannot be returned (a ValueError).
        RuntimeError: the answers differ by more than the dtype explains (`verify`), or `freeze` raises it.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"accelerate: expected a module (torch.nn.Module), got {type(module).__name__}; a checkpoint file is "
            "accelerated by freeze(load_checkpoint(path))"
        )
    # with the readers of other libraries, when there is something to read
    from ..inference import Inference
    from ..models.interop import UnrecognisedModule
    from ..models.interop.wrappers import unwrap
    from .replacing import accelerated
    from .verify import verify_same

    original = unwrap(module)
    if isinstance(original, Inference):
        return module
    try:
        found = accelerated(module, dtype, output, strict)
    except UnrecognisedModule as error:
        if strict or output is not None:
            raise
        warnings.warn(f"accelerate: left as it is: {error}", UserWarning, stacklevel=2)
        return module
    if verify is not None:
        verify_same(original, found, verify, dtype)
    return found
