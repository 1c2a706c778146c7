"""What makes a module a block: the one thing that `freeze` knows of it."""

from typing import Any, ClassVar

from torch import nn


class Block(nn.Module):
    """A module that is one node of a network's graph.

    op: empty for an op with the parameters that `spec` tells; else the module is called as it is, and this is what a
    profile calls it: a head, whose weights stay in float32.
    """

    op: ClassVar[str] = ""

    def spec(self) -> Any:
        """The op's parameters as they are now, a batch norm folded into its convolution."""
        raise NotImplementedError
