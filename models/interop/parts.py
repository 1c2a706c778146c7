"""Finding a module's layers by our names for them."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slowfast_kernels.models.checkpoint import keys

ABSENT: Any = type("_Absent", (), {"__repr__": lambda self: "nothing"})()


@dataclass(frozen=True)
class Places:
    """Where a library keeps its layers without weights.

    relu: beside the stem's and the lateral convolutions. pool: the stem's, where `up` levels above its convolution are.
    block: ReLUs after the first two convolutions of a block and at its end. forms: how res5's maps go to the head in a
    network of one pathway and of two.
    """

    relu: str
    pool: str
    block: tuple[str, str, str]
    forms: tuple[str, str]
    up: int = 1


PLACES = {
    "pyslowfast": Places(
        "relu", "pool_layer", ("branch2.a_relu", "branch2.b_relu", "relu"), ("list", "list")
    ),
    "pytorchvideo": Places(
        "activation", "pool", ("branch2.act_a", "branch2.act_b", "activation"), ("tensor", "list")
    ),
    "mmaction2": Places(
        "activate", "maxpool", ("conv1.activate", "conv2.activate", "relu"), ("tensor", "tuple"), up=2
    ),
}


class Parts:
    """The layers of a module, the problems with them, and which of them were looked at."""

    def __init__(self, root: nn.Module, names: keys.Names) -> None:
        self.root, self.places = root, PLACES[names.library]
        self.know(names)
        self.problems: list[str] = []
        self._used: set[int] = set()

    def know(self, names: keys.Names) -> None:
        """The names by which layers are found."""
        self.names, self.key_of = names, {ours: key for key, ours in names.ours.items()}

    def expect(self, holds: bool, path: str, what: str, got: object = "") -> bool:
        """Whether something holds; it is a problem at a path if not."""
        if not holds:
            self.problems.append(f"{path} (expected {what}{f', got {got}' if got != '' else ''})")
        return holds

    def at(self, path: str) -> Any:
        """What is at a dotted path: the module, None where the attribute is None, ABSENT where there is none."""
        here: Any = self.root
        for part in path.split(".") if path else []:
            here = here._modules.get(part, ABSENT) if part in here._modules else getattr(here, part, ABSENT)
            if here is None or here is ABSENT:
                return here
        return here

    def use(self, path: str) -> Any:
        """What is `at` a path, accounted for."""
        found = self.at(path)
        if isinstance(found, nn.Module):
            self._used.add(id(found))
        return found

    def knows(self, part: nn.Module) -> bool:
        """Whether a module was accounted for."""
        return id(part) in self._used

    def layer(self, ours: str) -> tuple[str, Any]:
        """Path and module of our layer, such as "res2.slow.0.a.conv"."""
        key = self.key_of.get(f"{ours}.weight", "")
        path = key.rsplit(".", 1)[0]
        if not key:
            return path, ABSENT
        found = self.use(path)
        if self.splits(found):
            self.use(f"{path}.split_bn")
            return path, self.use(f"{path}.bn")
        return path, found

    def parent(self, ours: str, up: int = 1) -> str:
        """Path of what holds our layer, `up` levels above it."""
        return self.layer(ours)[0].rsplit(".", up)[0]

    @property
    def strict(self) -> bool:
        """Whether every ReLU that there is is a module, as in mmaction2. (Another cannot be seen, and is taken to be
        there.)"""
        return self.names.library == "mmaction2"

    def relu(self, path: str) -> None:
        """A ReLU must be one."""
        found = self.use(path)
        if found is ABSENT and not self.strict:
            return
        got = found if found is ABSENT else type(found).__name__
        self.expect(isinstance(found, nn.ReLU), path, "ReLU", got)

    @staticmethod
    def splits(found: object) -> bool:
        """Whether a module is PySlowFast's SubBatchNorm3d: a batch norm for training, on parts of the batch, and
        one for inference, with weights in common."""
        if not isinstance(found, nn.Module):
            return False
        held = dict(found.named_children())
        norms = isinstance(held.get("bn"), _BatchNorm) and isinstance(held.get("split_bn"), _BatchNorm)
        return norms and "weight" in dict(found.named_parameters(recurse=False))


def is_max_pool(found: object) -> bool:
    """Whether a module is a 3-D max-pool without anything unusual."""
    if not isinstance(found, nn.MaxPool3d):
        return False
    return set(three(found.dilation)) == {1} and not found.ceil_mode and not found.return_indices


def three(value: Any) -> tuple[int, int, int]:
    """A size along T, H, W, of one number or three (also numpy's)."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * 3
    return int(values[0]), int(values[1]), int(values[2])


def pair(value: Any) -> tuple[int, int]:
    """As `three`, along H, W."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * 2
    return int(values[0]), int(values[1])
