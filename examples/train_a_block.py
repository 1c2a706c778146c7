"""Train through an op: a residual block whose parameters are plain tensors, learned by gradient descent.

    python examples/train_a_block.py
    python examples/train_a_block.py --steps 100

`ops.bottleneck3d` is differentiable in its input, weights, scales and shifts, so a block of your own needs
nothing but parameters. The task is the smallest that needs time: does a bar move to the left or to the right?
A single frame does not tell; the block's 3 x 1 x 1 convolution sees three. (`slowfast_kernels.nn.Bottleneck`
is the same block with batch norms that learn their statistics.)
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_kernels import ops

FRAMES, SIDE, INNER, CHANNELS = 6, 16, 8, 16


class Block(nn.Module):
    """[N, 1, T, H, W] clips to [N, 2] logits: one bottleneck, the mean of its maps, a linear layer."""

    def __init__(self) -> None:
        super().__init__()

        def convolution(*shape: int) -> nn.Parameter:
            return nn.Parameter(nn.init.kaiming_normal_(torch.empty(shape), nonlinearity="relu"))

        def vectors(channels: int) -> nn.ParameterList:
            return nn.ParameterList([torch.ones(channels), torch.zeros(channels)])  # scale, shift

        self.a, self.affine_a = convolution(INNER, 1, 3, 1, 1), vectors(INNER)
        self.b, self.affine_b = convolution(INNER, INNER, 1, 3, 3), vectors(INNER)
        self.c, self.affine_c = convolution(CHANNELS, INNER, 1, 1, 1), vectors(CHANNELS)
        self.shortcut, self.affine_shortcut = convolution(CHANNELS, 1, 1, 1, 1), vectors(CHANNELS)
        self.classifier = nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = ops.bottleneck3d(
            x,
            (self.a, *self.affine_a),
            (self.b, *self.affine_b),
            (self.c, *self.affine_c),
            (self.shortcut, *self.affine_shortcut),
        )
        return self.classifier(y.mean(dim=(2, 3, 4)))


def moving_bars(clips: int) -> tuple[Tensor, Tensor]:
    """Clips of a bar that moves by a pixel a frame, and which way: 0 to the left, 1 to the right."""
    way = torch.randint(0, 2, (clips,))
    start = torch.randint(0, SIDE, (clips,))
    at = (start[:, None] + (2 * way - 1)[:, None] * torch.arange(FRAMES)) % SIDE
    rows = F.one_hot(at, SIDE).float() + 0.1 * torch.randn(clips, FRAMES, SIDE)
    return rows[:, None, :, None, :].expand(-1, -1, -1, SIDE, -1), way


def main(argv: list[str] | None = None) -> list[float]:
    """Returns the loss of every step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=60, help="steps of Adam on 16 clips each (default 60)")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    block = Block()
    optimizer = torch.optim.Adam(block.parameters(), lr=0.02)
    losses = []
    for step in range(args.steps):
        clips, way = moving_bars(16)
        loss = F.cross_entropy(block(clips), way)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0 or step + 1 == args.steps:
            print(f"step {step:3}  loss {losses[-1]:.3f}")
    with torch.no_grad():
        clips, way = moving_bars(200)
        right = (block(clips).argmax(dim=1) == way).float().mean()
    print(f"{100 * right:.0f} % of 200 new clips are right")
    return losses


if __name__ == "__main__":
    main()
