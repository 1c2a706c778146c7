"""``accelerate``: another library's live model in, the frozen fused model out, called the same way."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ..freeze import freeze
from ..inference import Inference
from ..models.interop import Counterpart, Trunk, UnrecognisedModule, read_module, read_trunk
from ..models.interop.wrappers import altered_wrappers, opaque, takes_apart, unwrap
from .call import FrozenTrunk, SameCall, WithHead
from .copies import copy_with
from .verify import verify_same


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
    original = unwrap(module)
    if isinstance(original, Inference):
        return module
    try:
        accelerated = _accelerated(module, dtype, output, strict)
    except UnrecognisedModule as error:
        if strict or output is not None:
            raise
        warnings.warn(f"accelerate: left as it is: {error}", UserWarning, stacklevel=2)
        return module
    if verify is not None:
        verify_same(original, accelerated, verify, dtype)
    return accelerated


def _accelerated(module: nn.Module, dtype: torch.dtype | None, output: str | None, strict: bool) -> nn.Module:
    try:
        return _network(module, dtype, output)
    except UnrecognisedModule:
        original = unwrap(module)
        if output is not None or opaque(original) or altered_wrappers(module):
            raise
        replaced = _replacements(original, dtype)
        # around a backbone of mmaction2 nothing more can be recognised
        if not replaced or (strict and id(original._modules.get("backbone")) not in replaced):
            raise
        return copy_with(original, replaced)


def _network(module: nn.Module, dtype: torch.dtype | None, output: str | None) -> nn.Module:
    """The frozen form of a whole network, or of a trunk with the head that it has."""
    try:
        whole = read_module(module)
        if whole.library == "mmaction2" and output is None:
            raise UnrecognisedModule(
                unwrap(module), ["its calls with stage= and mode= (expected the backbone)"]
            )
        return _whole(whole, dtype, output)
    except UnrecognisedModule:
        if output in (None, "maps"):
            with suppress(UnrecognisedModule):  # the whole's says more
                return _trunk(read_trunk(module), dtype, output)
        raise


def _whole(whole: Counterpart, dtype: torch.dtype | None, output: str | None) -> nn.Module:
    frozen = freeze(whole.network.eval(), dtype, output=output)
    if whole.library != "slowfast":
        frozen.register_forward_pre_hook(
            SameCall(whole.every, views=whole.library == "mmaction2"), with_kwargs=True
        )
    return frozen


def _trunk(trunk: Trunk, dtype: torch.dtype | None, output: str | None) -> nn.Module:
    own = next(trunk.network.parameters()).dtype
    frozen = FrozenTrunk(freeze(trunk.network.eval(), dtype, output="maps"), trunk.form, trunk.every, own)
    if trunk.head is None or output == "maps":
        return frozen
    return WithHead(frozen, copy_with(trunk.head, {}))


def _replacements(module: nn.Module, dtype: torch.dtype | None) -> dict[int, nn.Module]:
    """By identity, what takes the place of the networks inside a module."""
    found: dict[int, nn.Module] = {}
    for child in module.children():
        inner = unwrap(child)
        try:
            found[id(child)] = found[id(inner)] = _network(child, dtype, None)
        except UnrecognisedModule:
            if not (opaque(inner) or takes_apart(inner) or altered_wrappers(child)):
                found |= _replacements(inner, dtype)
    return found
