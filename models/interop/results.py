"""What reading a module gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from slowfast_kernels.models.checkpoint.errors import some
from slowfast_kernels.models.slowfast import SlowFast
from slowfast_kernels.models.support import SUPPORTED, looks_like


class UnrecognisedModule(ValueError):
    """A module that is not, in every part, a network this library can build.

    parts: everything that was not recognised; the message names the first few, what the module looks like
    where its structure tells, and what is supported.
    """

    def __init__(self, module: nn.Module, parts: Sequence[str]) -> None:
        self.parts = list(parts)
        family = looks_like(
            {name: weight.shape for name, weight in module.named_parameters() if not is_lazy(weight)}
        )
        hint = f" (this looks like {family})" if family else ""
        super().__init__(
            f"{type(module).__name__} is not recognised{hint}: {some(self.parts, 3)}. Supported are {SUPPORTED}"
        )


@dataclass
class Counterpart:
    """Our network for a module.

    library: whose module it is, "pyslowfast" also for its wrappers of pytorchvideo networks, "slowfast" for a network
    of ours. every: the frames that each pathway takes of the one clip that the module is called with, every how many
    (empty: clips come as the network takes them).
    """

    network: SlowFast
    library: str
    every: tuple[int, ...] = ()


@dataclass
class Trunk:
    """Our network for what is before a module's head: stem to res5 (its own head is a placeholder).

    head: the module's head, as it is (None: there is none); it is called with `form` of the res5 maps: "list",
    "tuple" (slow, fast) or "tensor". every: as in `Counterpart`.
    """

    network: SlowFast
    library: str
    form: str
    head: nn.Module | None = None
    every: tuple[int, ...] = ()
