"""Modules around modules."""

import sys
from collections.abc import Iterator

from torch import Tensor, nn

from slowfast_kernels.models.interop.code import alterations

_OPAQUE = {
    "ScriptModule": "a traced or scripted module (expected the module that it was made from)",
    "GraphModule": "a graph of torch.fx or torch.export (expected the module that it was made from)",
    "FullyShardedDataParallel": "a sharded module (expected one with whole weights, FSDP.summon_full_params)",
    "FSDPModule": "a sharded module (expected one with whole weights, get_model_state_dict)",
}


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    for wrapper in wrappers(module):
        module = _inside(wrapper)
    return module


def wrappers(module: nn.Module) -> Iterator[nn.Module]:
    """The wrappers that `unwrap` takes off, from the outermost."""
    while is_compiled(module) or isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        yield module
        module = _inside(module)


def altered_wrappers(module: nn.Module) -> list[str]:
    """Hooks and forwards that would be lost with the wrappers of a module."""
    return [what for wrapper in wrappers(module) for what in alterations("", wrapper, is_compiled(wrapper))]


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` returned it. (Asked without importing the compiler.)"""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def opaque(module: nn.Module) -> str | None:
    """Why a module's parts cannot be told, if so."""
    for base in type(module).__mro__:
        if base.__name__ in _OPAQUE and base.__module__.split(".")[0] == "torch":
            return _OPAQUE[base.__name__]
    return None


def unusual_weights(module: nn.Module) -> dict[str, str]:
    """Weights that are no plain tensors (sharded, quantised, or not there yet), and what they are."""
    found = {}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        kind = type(value) if nn.parameter.is_lazy(value) else type(value.data)
        if kind is not Tensor:
            found[name] = kind.__name__
    return found


def takes_apart(module: nn.Module) -> bool:
    """Whether a module calls what is inside its parts, which cannot be replaced one by one then: mmaction2's SlowFast
    does."""
    return {"slow_path", "fast_path"} <= set(module._modules)


def _inside(wrapper: nn.Module) -> nn.Module:
    return vars(wrapper)["_modules"]["_orig_mod" if is_compiled(wrapper) else "module"]
