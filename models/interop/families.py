"""Which other network a module is, for messages."""

from torch import nn

SUPPORTED = "SlowFast, Slow, Fast-only, I3D and C2D ResNets of PySlowFast, pytorchvideo and mmaction2"


def looks_like(module: nn.Module) -> str | None:
    """The family of a network that is none of ours, where its layers tell plainly."""
    parts = list(module.modules())
    kinds = {type(part).__name__.lower() for part in parts}
    convs = [part for part in parts if isinstance(part, nn.Conv3d)]
    if any("attention" in kind for kind in kinds) and any(isinstance(part, nn.LayerNorm) for part in parts):
        return "a video transformer such as MViT"
    if any("nonlocal" in path.replace("_", "").lower() for path, _ in module.named_modules()):
        return "a network with non-local blocks"
    if any(conv.groups == conv.in_channels > 1 for conv in convs):
        squeezed = any("squeeze" in kind or "swish" in kind for kind in kinds)
        return "X3D" if squeezed else "CSN, a channel-separated network"
    if any(conv.groups > 1 for conv in convs):
        return "a ResNeXt, with grouped convolutions"
    if "conv2plus1d" in kinds:
        return "R(2+1)D"
    if convs and sum(tuple(conv.kernel_size) == (3, 3, 3) for conv in convs) > len(convs) / 2:
        return "R3D or C3D, of 3x3x3 convolutions"
    if not convs and any(isinstance(part, nn.Conv2d) for part in parts):
        return "a network of 2-D convolutions"
    return None
