"""A network of one's own, of this library's blocks, and its frozen form.

Three pathways at three frame rates, as nobody has published them: the two faster ones join the slow one by
concatenation, a residual goes around two blocks, and the classifier is a linear layer. Nothing but `forward` says how
the parts hang together; `freeze` follows it.

    python examples/freeze_your_own.py [--frames 32] [--side 112] [--dtype fp32|bf16]
"""

import argparse

import torch
from torch import Tensor, nn

import slowfast_kernels as sf
from slowfast_kernels.nn import Bottleneck, ConvBN, Stage, Stem


class ThreeRates(nn.Module):
    """Clips of T, T / 2 and T / 8 frames, [N, 3, T, H, W] each, to logits and the joined maps."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fast = nn.Sequential(Stem(3, 8, 5), Stage(8, 8, 32, (3, 3)))
        self.middle = nn.Sequential(Stem(3, 16, 3), Stage(16, 16, 64, (3, 1)))
        self.slow = nn.Sequential(Stem(3, 64, 1), Stage(64, 64, 256, (1, 1)))
        self.to_slow = ConvBN(32, 64, (5, 1, 1), stride=(8, 1, 1))
        self.from_middle = ConvBN(64, 64, (3, 1, 1), stride=(4, 1, 1))
        self.joined = Stage(384, 128, 512, (3, 1), stride=2)
        self.first, self.second = Bottleneck(512, 128, 512, 3), Bottleneck(512, 128, 512)
        self.classifier = nn.Linear(512, classes)

    def forward(self, clips: dict[str, Tensor]) -> dict[str, Tensor]:
        fast = self.fast(clips["fast"])
        middle = self.middle(clips["middle"])
        slow = self.slow(clips["slow"])
        x = torch.cat([slow, self.to_slow(fast), self.from_middle(middle)], dim=1)
        x = self.joined(x)
        x = torch.relu(x + self.second(self.first(x)))
        return {"logits": self.classifier(x.mean(dim=(2, 3, 4))), "maps": x}


def clips(frames: int, side: int) -> dict[str, Tensor]:
    """Random clips of the three rates."""
    rates = {"fast": 1, "middle": 2, "slow": 8}
    return {name: torch.randn(1, 3, frames // rate, side, side) for name, rate in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=32, help="of the fastest pathway, a multiple of 8")
    parser.add_argument("--side", type=int, default=112, help="of the frames, in pixels")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the frozen network")
    args = parser.parse_args()

    torch.manual_seed(0)
    network = ThreeRates().eval()
    frozen = sf.freeze(network, {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype])
    x = clips(args.frames, args.side)
    with torch.inference_mode(), sf.use_backend("reference"):
        expected = network(x)["logits"]
    error = (frozen(x)["logits"] - expected).norm() / expected.norm()
    print(f"relative difference from plain PyTorch: {error:.1e}")

    rows = frozen.profile(x)
    total, flops = sum(r["seconds"] for r in rows), sum(r["flops"] for r in rows)
    ours = sum(r["flops"] for r in rows if r["provider"] == "cpu")
    print(
        f"{total * 1e3:.1f} ms, {flops / total / 1e9:.0f} GFLOP/s, {ours / flops:.1%} of the work in fused kernels"
    )
    for r in sorted(rows, key=lambda r: -r["seconds"])[:8]:
        print(f"  {r['stage']:10} {r['op']:16} {r['provider']:10} {r['seconds'] * 1e3:7.2f} ms")


if __name__ == "__main__":
    main()
