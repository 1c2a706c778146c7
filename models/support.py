"""What this library supports of which library, and what an unsupported network looks like."""

import re
from collections.abc import Mapping, Sequence

from slowfast_kernels.models.checkpoint.detect import describe
from slowfast_kernels.models.families import FAMILIES
from slowfast_kernels.models.presets import PRESETS

LIBRARIES = {
    "pyslowfast": "PySlowFast",
    "pytorchvideo": "pytorchvideo",
    "mmaction2": "mmaction2",
    "slowfast": "slowfast-kernels",
}
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
    kernels = [tuple(shape[2:]) for shape in shapes.values() if len(shape) == 5]
    if kernels.count((3, 3, 3)) > len(kernels) / 2:
        return "R3D or C3D (3x3x3 convolutions)"
    return None


def unsupported(shapes: Mapping[str, Sequence[int]]) -> str:
    """What to tell whoever came with such weights: what they look like, and what is supported."""
    kind = looks_like(shapes)
    return f"looks like {kind}, expected {SUPPORTED}" if kind else f"expected {SUPPORTED}"


# -- the table of supported models --

# Kinds of networks, and a preset that stands for each.
NETWORKS = {kind: preset for family in FAMILIES for kind, preset in family.networks.items()}
THEIRS = tuple(library for library in LIBRARIES if library != "slowfast")


def supported(network: str, library: str) -> bool:
    """Whether a kind of NETWORKS of "pyslowfast", "pytorchvideo" or "mmaction2" is supported.

    That is: its live modules with `accelerate` and `from_module`; its files with `load_checkpoint` and
    `slowfast-kernels run --checkpoint` (which has no boxes); files for it with `slowfast-kernels convert`.
    """
    from slowfast_kernels.models.checkpoint.writing import expressible  # which imports this module

    return expressible(PRESETS[NETWORKS[network]], library)


def models_table() -> str:
    """The supported networks of every library, as a table in Markdown."""
    has = {True: "accelerate, load, convert", False: "-"}
    rows = [[network, *(has[supported(network, library)] for library in THEIRS)] for network in NETWORKS]
    return _markdown(["Network", *(LIBRARIES[library] for library in THEIRS)], rows)


def presets_table() -> str:
    """All presets, as a table in Markdown."""
    rows = []
    for name, config in sorted(PRESETS.items()):
        spec = config.input
        slow = f"{spec.frames // spec.alpha} x {spec.tau * spec.alpha}"
        rows.append([f"`{name}`", LIBRARIES[config.source], describe(config), slow])
    return _markdown(["Preset", "Head and conventions of", "Network", "Frames x stride"], rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
