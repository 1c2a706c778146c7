"""Live networks of other libraries -> ours.

A module counts as recognised when all of it is accounted for: its weights by the names of their keys, every
convolution's stride, padding and dilation, every batch norm, activation and pooling by comparison with the
network this library would build, and that no hook and no forward of somebody's own adds to them. Anything
left over is named and refused, since it might change the answers. What a class computes in its own forward
beside its layers cannot be seen: `accelerate(module, verify=...)` compares the answers.
"""

import copy

from torch import nn

from slowfast_kernels.models.interop.code import altered
from slowfast_kernels.models.interop.results import Counterpart, Trunk, UnrecognisedModule
from slowfast_kernels.models.interop.wrappers import altered_wrappers, opaque, unwrap
from slowfast_kernels.models.slowfast import SlowFast

__all__ = ["Counterpart", "Trunk", "UnrecognisedModule", "from_module", "read_module", "read_trunk"]


def from_module(module: nn.Module) -> SlowFast:
    """A trainable network of this library with the weights and the function of another library's live module.

    module: a SlowFast, Slow, I3D or C2D network of pytorchvideo (with its detection head or without) or
        PySlowFast (its wrappers of pytorchvideo networks too), or a recogniser of mmaction2; also compiled by
        torch.compile, or inside DataParallel. It is recognised by its structure, not its class.

    Returns a model with copies of the weights, on the module's device, in its dtype and mode (training or
    eval), with the head semantics of that library in eval mode. mmaction2's models take one clip and thin it
    out themselves; the counterpart takes both clips, as `config.input.slow_index` says. Hooks of gradients are
    not carried over; a batch norm that splits its batch in training (SubBatchNorm3d) becomes an ordinary one.

    Raises UnrecognisedModule (a ValueError) naming what was not recognised, TypeError for what is no module.
    """
    return read_module(module).network


def read_module(module: nn.Module) -> Counterpart:
    """`from_module` with what else `accelerate` needs to know."""
    module = _checked(module)
    if isinstance(module, SlowFast):
        if added := altered(module):
            raise UnrecognisedModule(module, added)
        return Counterpart(copy.deepcopy(module), "slowfast")
    from slowfast_kernels.models.interop.reader import Reader  # with the readers of files, when one is needed

    return Reader(module).read()


def read_trunk(module: nn.Module) -> Trunk:
    """The counterpart of everything before a module's head, which may be anybody's.

    module: as for `from_module`, or a bare backbone of mmaction2, or blocks of pytorchvideo in a Sequential.
    Raises UnrecognisedModule as `from_module` does.
    """
    from slowfast_kernels.models.interop.reader import TrunkReader

    return TrunkReader(_checked(module)).read_trunk()


def _checked(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"expected a module (torch.nn.Module), got {type(module).__name__}; the weights of a file are read by "
            "load_checkpoint(path)"
        )
    inner = unwrap(module)
    problems = altered_wrappers(module)
    if reason := opaque(inner):
        problems.append(reason)
    if problems:
        raise UnrecognisedModule(inner, problems)
    return inner
