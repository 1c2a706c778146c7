"""What a module computes beside its layers: hooks, and forwards of somebody's own."""

import operator
from collections.abc import Callable, Iterable
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import nn

# Packages whose classes do with their layers what those of the same structure do; a forward that another
# package's class puts in the place of one of theirs may do anything.
_LIBRARIES = (
    *("torch", "torchvision", "pytorchvideo", "fvcore", "slowfast", "detectron2", "apex", "fairscale"),
    *("mmaction", "mmcv", "mmdet", "mmengine", "slowfast_kernels"),
)


def altered(module: nn.Module, skip: Iterable[nn.Module] = ()) -> list[str]:
    """What was added to a module's layers and may change its answers, each by name.

    These are forward hooks and pre-hooks, forwards replaced on an instance or a class, and forwards of
    subclasses. Hooks of gradients change no answer. skip: modules that are not looked at, nor what is inside.
    """
    known = {id(inner) for part in skip for inner in part.modules()}
    inside = [(path, part) for path, part in module.named_modules() if id(part) not in known]
    return [what for path, part in inside for what in alterations(path, part)]


def alterations(path: str, part: nn.Module, own_forward: bool = False) -> list[str]:
    """`altered` of one module, without what is inside. own_forward: its class keeps the forward on the instance."""
    where, found = path or type(part).__name__, []
    for hooks, kind in (("_forward_pre_hooks", "pre-hook"), ("_forward_hooks", "hook")):
        found += [f"{where} (a forward {kind}, {_name(hook)})" for hook in getattr(part, hooks).values()]
    if "forward" in vars(part) and not own_forward:
        found.append(f"{where}.forward (replaced on the instance, by {_name(vars(part)['forward'])})")
    elif by := _replaced(type(part)):
        found.append(f"{where}.forward ({by})")
    return found


def _replaced(kind: type) -> str | None:
    """Whose forward a class has in the place of the one that its layers are known by, if so."""
    owners = [base for base in kind.__mro__ if "forward" in vars(base) and base is not nn.Module]
    if not owners:
        return None
    owner, *others = owners
    forward: Any = vars(owner)["forward"]
    if is_of_a_library(forward):
        return None
    if others:
        return f"{owner.__name__} replaces that of {others[0].__name__}"
    if getattr(forward, "__qualname__", "") != f"{owner.__qualname__}.forward":
        return f"replaced on the class {owner.__name__}, by {_name(forward)}"
    return None


def is_of_a_library(function: object) -> bool:
    """Whether one of the libraries (or torch) defines a function."""
    return str(getattr(function, "__module__", None)).split(".")[0] in _LIBRARIES


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def chains_blocks(module: nn.Module) -> bool:
    """Whether a module hands what it gets through its `blocks` in order and does nothing else.

    Known of pytorchvideo's own class; of another's, its forward is called with things that only blocks can take.
    """
    forward: Any = type(module).forward
    if is_of_a_library(forward):
        return True
    passed = [object() for _ in range(4)]
    # each takes one thing and gives the next
    blocks = [{id(x): y}.__getitem__ for x, y in zip(passed, passed[1:], strict=False)]
    stand_in = SimpleNamespace(blocks=[lambda x, block=block: block(id(x)) for block in blocks])
    try:
        return forward(stand_in, passed[0]) is passed[-1]
    except Exception:  # it does something else with them
        return False


def is_sum(function: Callable[..., Any]) -> bool:
    """Whether a function adds two tensors, whatever they are.

    A plain function qualifies that keeps nothing, looks nothing up (but torch.add) and gives the sum of two
    random tensors; or operator.add and torch.add.
    """
    if function is operator.add or function is torch.add:
        return True
    plain = isinstance(function, FunctionType) and not (function.__closure__ or function.__defaults__)
    if not plain or not set(function.__code__.co_names) <= {"torch", "add"}:
        return False
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    try:
        return torch.equal(function(x.clone(), y.clone()), x + y)
    except Exception:  # somebody's function, which wants other arguments
        return False
