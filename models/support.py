"""What this library supports of which library, and what an unsupported network looks like."""

import re
from collections.abc import Mapping, Sequence

SUPPORTED = (
    "SlowFast, Slow, Fast-only, I3D and C2D networks (3-D ResNets of 18 to 152 layers, without non-local "
    "blocks) of PySlowFast, pytorchvideo, mmaction2 and slowfast-kernels"
)

# Keys that only one kind of network has, whatever stands before them; the first that fits is named.
_NAMES = (
    ("X3D", r"conv1_s\.conv\.|stem[._]conv_xy\.|blocks\.0\.conv\.conv_xy\.|head\.(conv|lin)_5\."),
    ("R(2+1)D", r"conv_b\.conv_xy\.|\.conv_s\.weight|layer\d\.\d+\.conv1\.0\.3\."),
    ("TimeSformer", r"temporal_attn\.|transformer_layers\."),
    ("Video Swin", r"relative_position_bias_table"),
    ("UniFormer", r"patch_embed4\.|\.dpe\."),
    (
        "MViT",
        r"attn\.(pool_[qkv]|norm_[qkv]|rel_pos_[hwt])|cls_positional_encoding\.|patch_embed\.patch_model\.",
    ),
    ("a vision transformer (ViT, VideoMAE)", r"attn\.(qkv|q_bias|in_proj_weight)|pos_embed$"),
    ("S3D or the Inception I3D", r"Mixed_[345][a-f]|Conv3d_1a"),
    ("C3D", r"conv5b\."),
)
_DEPTHWISE = re.compile(r"(branch2\.(conv_)?b|conv2(\.\d)?(\.conv)?|conv_dw)\.weight")
_FIRST = re.compile(r"(.*\.)?(stem\.0|conv1|conv1\.conv)\.weight")


def looks_like(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """The kind of network that weights plainly are which this library does not run, else None.

    shapes: of a state dict, by its keys.
    """
    for kind, pattern in _NAMES:
        if any(re.search(pattern, key) for key in shapes):
            return kind
    if any(len(s) == 5 and s[0] > s[1] == 1 for key, s in shapes.items() if _DEPTHWISE.search(key)):
        return "CSN (depthwise 3x3x3 convolutions)"
    first = next((shape for key, shape in shapes.items() if _FIRST.fullmatch(key)), ())
    if len(first) == 4:
        return "a 2-D network (TSN, TSM, an image classifier)"
    if any(re.search(r"layer4\.0\.conv1(\.0)?\.weight", key) for key in shapes):
        return "a 3-D ResNet of torchvision or of another library than those (r3d, mc3)"
    return None


def unsupported(shapes: Mapping[str, Sequence[int]]) -> str:
    """What to tell whoever came with such weights: what they look like, and what is supported."""
    kind = looks_like(shapes)
    return f"looks like {kind}, supported are {SUPPORTED}" if kind else f"supported are {SUPPORTED}"
