"""A module with everything that is recognised in it in its frozen form."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn

from ..freeze import freeze
from ..models.interop import Counterpart, Trunk, UnrecognisedModule, read_module, read_trunk
from ..models.interop.wrappers import altered_wrappers, opaque, takes_apart, unwrap
from .call import FrozenTrunk, SameCall, WithHead
from .copies import copy_with


def accelerated(module: nn.Module, dtype: torch.dtype | None, output: str | None, strict: bool) -> nn.Module:
    """What `accelerate` returns. Raises `UnrecognisedModule` where that is the module itself."""
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
