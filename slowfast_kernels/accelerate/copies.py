"""Copies of modules in which some are others."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MethodType
from typing import Any

from torch import Tensor, nn

from ..models.interop import UnrecognisedModule
from ..models.interop.wrappers import altered_wrappers, opaque, unwrap


def copy_with(module: nn.Module, replaced: Mapping[int, nn.Module]) -> nn.Module:
    """A copy of a module in eval mode that shares nothing that changes with it.

    replaced: by identity, the modules that are not copied and what comes in their place, wherever they are. Parts
    that are compiled or in DataParallel come back without. Functions (hooks) are not copied, so what such a function
    has closed over stays the original's. Raises UnrecognisedModule for what cannot be copied.
    """
    memo: dict[int, Any] = dict(replaced)
    outside = _outside(module, replaced)
    if problems := [what for part in outside for what in _bound_to_the_original(part)]:
        raise UnrecognisedModule(module, problems)
    for part in outside:
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # such as torch.nn.utils.weight_norm keeps
                memo[id(value)] = value.detach().clone()
    try:
        for part in reversed(outside):  # inner ones first
            if unwrap(part) is not part and id(part) not in memo:
                memo[id(part)] = copy.deepcopy(unwrap(part), memo)
        clone = copy.deepcopy(module, memo)
    except Exception as error:  # whatever the copying of somebody's attributes raises
        what = f"a copy of it ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        raise UnrecognisedModule(module, [what]) from error
    for part in clone.modules():
        part.training = False  # not by .eval(): a train() of somebody's own may look for what was replaced
    return clone


def _outside(module: nn.Module, replaced: Mapping[int, nn.Module]) -> list[nn.Module]:
    """The module and everything inside that is not replaced, outer ones first, each once."""
    found: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        part = waiting.pop()
        if id(part) in replaced:
            continue
        found.pop(id(part), None)  # reached again: it is further inside
        found[id(part)] = part
        waiting += part.children()
    return list(found.values())


def _bound_to_the_original(part: nn.Module) -> list[str]:
    """What of a module would still call the original from its copy."""
    kind = type(part).__name__
    forward = vars(part).get("forward")
    # a method's module is copied with it
    plain = isinstance(forward, MethodType) and not getattr(forward.__func__, "__closure__", True)
    problems = altered_wrappers(part)
    own = forward is not None and unwrap(part) is part and not opaque(part)  # others keep theirs there, too
    if own and not plain:
        problems.append(f"{kind}.forward (replaced by a function, which would call the original)")
    return problems
