"""Names of the same tensors in the four libraries.

Ours are stem.{path}.{conv,bn}, lateral.{k}.{conv,bn}, res{2..5}.{path}.{block}.{a,b,c,shortcut}.{conv,bn} and
head.proj. In a network of one pathway it is called "slow" here; `rename_pathway` changes that.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from slowfast_kernels.models.checkpoint import caffe2

PATHS = ("slow", "fast")


@dataclass(frozen=True)
class Layout:
    """What the names of a file depend on beside the tensor.

    two: two pathways. detects: detection head. pool: pytorchvideo's one-pathway networks count a max-pool
    after res2 as a block, which moves all later numbers. prefix: before every key, "model." in files of
    PySlowFast's wrappers of pytorchvideo networks.
    """

    two: bool
    detects: bool = False
    pool: bool = False
    prefix: str = ""


def _path(number: str | None) -> str:
    return PATHS[int(number or 0)]


# -- PySlowFast --

_PYSLOWFAST = (
    (r"s1\.pathway([01])_stem\.(conv|bn)\.(\w+)", lambda p, kind, leaf: f"stem.{_path(p)}.{kind}.{leaf}"),
    (r"s([1-4])_fuse\.conv_f2s\.(\w+)", lambda k, leaf: f"lateral.{int(k) - 1}.conv.{leaf}"),
    (r"s([1-4])_fuse\.bn\.(\w+)", lambda k, leaf: f"lateral.{int(k) - 1}.bn.{leaf}"),
    (
        r"s([2-5])\.pathway([01])_res(\d+)\.branch1(_bn)?\.(\w+)",
        lambda n, p, i, bn, leaf: f"res{n}.{_path(p)}.{i}.shortcut.{'bn' if bn else 'conv'}.{leaf}",
    ),
    (
        r"s([2-5])\.pathway([01])_res(\d+)\.branch2\.([abc])(_bn)?\.(\w+)",
        lambda n, p, i, x, bn, leaf: f"res{n}.{_path(p)}.{i}.{x}.{'bn' if bn else 'conv'}.{leaf}",
    ),
    (r"head\.projection\.(weight|bias)", lambda leaf: f"head.proj.{leaf}"),
)


def _pyslowfast_name(key: str, layout: Layout) -> str:
    part, *rest = key.split(".")
    if part == "head":
        return f"head.projection.{rest[-1]}"
    if part == "lateral":
        k, kind, leaf = rest
        return f"s{int(k) + 1}_fuse.{'conv_f2s' if kind == 'conv' else 'bn'}.{leaf}"
    p = PATHS.index(rest[0]) if layout.two else 0
    if part == "stem":
        return f"s1.pathway{p}_stem.{rest[1]}.{rest[2]}"
    _, i, layer, kind, leaf = rest
    name = "branch1" if layer == "shortcut" else f"branch2.{layer}"
    return f"s{part[3:]}.pathway{p}_res{i}.{name}{'' if kind == 'conv' else '_bn'}.{leaf}"


# -- pytorchvideo --

_BLOCK = r"blocks\.(\d+)\.(?:multipathway_blocks\.([01])\.)?"


def _pytorchvideo_ours(key: str, stage_of: Mapping[int, int]) -> str | None:
    if match := re.fullmatch(r"blocks\.0\.(?:multipathway_blocks\.([01])\.)?(conv|norm)\.(\w+)", key):
        p, kind, leaf = match.groups()
        return f"stem.{_path(p)}.{_ours_kind(kind)}.{leaf}"
    if match := re.fullmatch(r"blocks\.([0-3])\.multipathway_fusion\.(conv_fast_to_slow|norm)\.(\w+)", key):
        k, kind, leaf = match.groups()
        return f"lateral.{k}.{_ours_kind(kind)}.{leaf}"
    if match := re.fullmatch(_BLOCK + r"res_blocks\.(\d+)\.branch1_(conv|norm)\.(\w+)", key):
        b, p, i, kind, leaf = match.groups()
        layer = "shortcut"
    elif match := re.fullmatch(_BLOCK + r"res_blocks\.(\d+)\.branch2\.(conv|norm)_([abc])\.(\w+)", key):
        b, p, i, kind, layer, leaf = match.groups()
    elif match := re.fullmatch(r"(?:blocks\.\d+|detection_head)\.proj\.(weight|bias)", key):
        return f"head.proj.{match[1]}"
    else:
        return None
    if int(b) not in stage_of:
        return None
    return f"res{stage_of[int(b)]}.{_path(p)}.{i}.{layer}.{_ours_kind(kind)}.{leaf}"


def _ours_kind(kind: str) -> str:
    return "bn" if kind == "norm" else "conv"


def _pytorchvideo_stages(keys: Iterable[str]) -> tuple[dict[int, int], bool]:
    """Block number -> stage, and whether a block without weights stands between res2 and res3."""
    found = sorted({int(m[1]) for key in keys if (m := re.match(_BLOCK + r"res_blocks\.", key))})
    pool = bool(found) and found[-1] == 5
    shifted = {1: 2, 3: 3, 4: 4, 5: 5} if pool else {1: 2, 2: 3, 3: 4, 4: 5}
    return shifted, pool


def _pytorchvideo_name(key: str, layout: Layout) -> str:
    part, *rest = key.split(".")
    if part == "head":
        block = 6 if layout.two or layout.pool else 5
        return f"{'detection_head' if layout.detects else f'blocks.{block}'}.proj.{rest[-1]}"
    prefix = "model." if layout.detects else ""
    if part == "lateral":
        k, kind, leaf = rest
        kind = "conv_fast_to_slow" if kind == "conv" else "norm"
        return f"{prefix}blocks.{k}.multipathway_fusion.{kind}.{leaf}"
    path = f"multipathway_blocks.{PATHS.index(rest[0])}." if layout.two else ""
    if part == "stem":
        return f"{prefix}blocks.0.{path}{'conv' if rest[1] == 'conv' else 'norm'}.{rest[2]}"
    _, i, layer, kind, leaf = rest
    stage = int(part[3:])
    block = stage - 1 + (1 if layout.pool and stage > 2 else 0)
    kind = "conv" if kind == "conv" else "norm"
    name = f"branch1_{kind}" if layer == "shortcut" else f"branch2.{kind}_{layer}"
    return f"{prefix}blocks.{block}.{path}res_blocks.{i}.{name}.{leaf}"


# -- mmaction2 --

_BACKBONE = r"backbone\.(?:(slow|fast)_path\.)?"
_MMACTION2 = (
    (_BACKBONE + r"conv1\.(conv|bn)\.(\w+)", lambda p, kind, leaf: f"stem.{p or 'slow'}.{kind}.{leaf}"),
    (
        r"backbone\.slow_path\.(?:conv(1)|layer([1-3]))_lateral\.(conv|bn)\.(\w+)",
        lambda stem, k, kind, leaf: f"lateral.{0 if stem else k}.{kind}.{leaf}",
    ),
    (
        _BACKBONE + r"layer([1-4])\.(\d+)\.(conv[123]|downsample)\.(conv|bn)\.(\w+)",
        lambda p, n, i, layer, kind, leaf: (
            f"res{int(n) + 1}.{p or 'slow'}.{i}."
            f"{'shortcut' if layer == 'downsample' else 'abc'[int(layer[-1]) - 1]}.{kind}.{leaf}"
        ),
    ),
    (r"(?:cls_head|roi_head\.bbox_head)\.fc_cls\.(weight|bias)", lambda leaf: f"head.proj.{leaf}"),
)


def _mmaction2_name(key: str, layout: Layout) -> str:
    part, *rest = key.split(".")
    if part == "head":
        return f"{'roi_head.bbox_head' if layout.detects else 'cls_head'}.fc_cls.{rest[-1]}"
    if part == "lateral":
        k, kind, leaf = rest
        return f"backbone.slow_path.{'conv1' if k == '0' else f'layer{k}'}_lateral.{kind}.{leaf}"
    path = f"{rest[0]}_path." if layout.two else ""
    if part == "stem":
        return f"backbone.{path}conv1.{rest[1]}.{rest[2]}"
    _, i, layer, kind, leaf = rest
    name = "downsample" if layer == "shortcut" else f"conv{'abc'.index(layer) + 1}"
    return f"backbone.{path}layer{int(part[3:]) - 1}.{i}.{name}.{kind}.{leaf}"


# -- together --

_OURS = re.compile(
    r"stem\.(slow|fast)\.(conv|bn)\.\w+|lateral\.[0-3]\.(conv|bn)\.\w+|"
    r"res[2-5]\.(slow|fast)\.\d+\.(a|b|c|shortcut)\.(conv|bn)\.\w+|head\.proj\.(weight|bias)"
)
_NAMES = {
    "pyslowfast": _pyslowfast_name,
    "pytorchvideo": _pytorchvideo_name,
    "mmaction2": _mmaction2_name,
    "caffe2": caffe2.name,
    "slowfast": lambda key, layout: key,
}
_NONLOCAL = re.compile(r"nonlocal|non_local|\.conv_(theta|phi|g|out)\.")
# Buffers of mmaction2's preprocessing and losses: constants that the configuration repeats.
_IGNORED = re.compile(r"data_preprocessor\.|(cls_head|roi_head)\.(\w+\.)?loss")


@dataclass(frozen=True)
class Names:
    """How the keys of a file or module read, library: also "caffe2" and "slowfast". `ours` maps its key ->
    our key; `other` is what maps to nothing."""

    library: str
    layout: Layout
    ours: dict[str, str]
    other: tuple[str, ...]
    nonlocals: tuple[str, ...] = ()

    def theirs(self, key: str) -> str:
        """The file's name for our key, whether the file has it or not."""
        return self.layout.prefix + _NAMES[self.library](key, self.layout)


def name(library: str, key: str, layout: Layout) -> str:
    """The name that `library` ("pyslowfast", "pytorchvideo", "mmaction2", "slowfast") gives to our key."""
    return _NAMES[library](key, layout)


def read(keys: Iterable[str]) -> Names | None:
    """Recognise a library by the keys of its state dict; None if no library's names are among them."""
    keys = [key for key in keys if not _IGNORED.match(key)]
    best: Names | None = None
    for names in (
        _read_table("slowfast", keys),
        _read_table("pyslowfast", keys),
        _read_pytorchvideo(keys),
        _read_table("mmaction2", keys),
        _read_table("caffe2", keys),
    ):
        if names.ours and (best is None or len(names.ours) > len(best.ours)):
            best = names
    # a classifier alone would fit many networks
    return best if best is not None and any(key.startswith("stem.") for key in best.ours.values()) else None


def _names(library: str, layout: Layout, keys: list[str], ours: dict[str, str]) -> Names:
    other = [key for key in keys if key not in ours]
    return Names(library, layout, ours, tuple(other), tuple(key for key in other if _NONLOCAL.search(key)))


def _read_table(library: str, keys: list[str]) -> Names:
    tables = {"pyslowfast": _PYSLOWFAST, "mmaction2": _MMACTION2}
    ours: dict[str, str] = {}
    for key in keys:
        if library in ("slowfast", "caffe2"):
            found = caffe2.to_ours(key) if library == "caffe2" else key if _OURS.fullmatch(key) else None
            if found is not None:
                ours[key] = found
            continue
        for pattern, write in tables[library]:
            if match := re.fullmatch(pattern, key):
                ours[key] = write(*match.groups())
                break
    two = {"slow", "fast"} <= {part for key in ours.values() for part in key.split(".")[1:2]}
    detects = any(key.startswith("roi_head.") for key in keys)
    return _names(library, Layout(two=two, detects=detects), keys, ours)


def _read_pytorchvideo(keys: list[str]) -> Names:
    detects = any(key.startswith("detection_head.") for key in keys)
    prefix = "model." if any(key.startswith("model.blocks.") for key in keys) else ""
    bare = {key: key.removeprefix(prefix) for key in keys}
    stage_of, pool = _pytorchvideo_stages(bare.values())
    ours: dict[str, str] = {}
    for key, short in bare.items():
        found = _pytorchvideo_ours(short, stage_of)
        if found is not None:
            ours[key] = found
    two = any(".multipathway_blocks." in key for key in keys)
    # a detection network's names begin with "model." anyway
    layout = Layout(two=two, detects=detects, pool=pool, prefix="" if detects else prefix)
    return _names("pytorchvideo", layout, keys, ours)


def rename_pathway(key: str, old: str, new: str) -> str:
    """Our key with pathway `old` called `new`."""
    parts = key.split(".")
    if parts[0] != "head" and len(parts) > 1 and parts[1] == old:
        parts[1] = new
    return ".".join(parts)
