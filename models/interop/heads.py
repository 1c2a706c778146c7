"""Reads the heads of the three libraries."""

from dataclasses import dataclass, field

from torch import nn

from slowfast_kernels.models.config import RoIConfig
from slowfast_kernels.models.interop.parts import ABSENT, Parts, is_max_pool, pair, three


@dataclass
class Head:
    """What a head's modules say: per pathway the window [T, h, w] of the average (None: the whole map)."""

    windows: list[tuple[int, int, int] | None] = field(default_factory=list)
    activation: str = "none"
    dropout: float = 0.0
    roi: RoIConfig | None = None

    def cells(self, parts: Parts) -> int | None:
        """Cells along a side of the window, the same for both pathways (None: the whole map)."""
        if not self.windows:
            return None  # and a problem has said so
        sides = {window[1:] if window is not None else None for window in self.windows}
        if self.roi is not None:
            parts.expect(sides <= {(1, 1), None}, "head", "a pool over frames before RoIAlign", self.windows)
            return None
        if not parts.expect(len(sides) == 1, "head", "one window for both pathways", self.windows):
            return None
        height, width = sides.pop() or (None, None)
        parts.expect(height == width, "head", "a square window", f"{height}x{width}")
        return height


def read_head(parts: Parts, wrapped: bool) -> Head:
    """The head of a module; what is not as expected joins `parts.problems`.

    wrapped: it is in PySlowFast's wrapper of a pytorchvideo network.
    """
    library = parts.names.library
    if library == "pytorchvideo":
        return _pytorchvideo(parts, wrapped)
    return _pyslowfast(parts) if library == "pyslowfast" else _mmaction2(parts)


def _pyslowfast(parts: Parts) -> Head:
    if not _classifier(parts, "head.projection"):
        return Head()
    head = Head(dropout=_dropout(parts, "head.dropout"))
    detects = parts.at("head.s0_roi") is not ABSENT
    normalised = getattr(parts.at("head"), "l2norm_feats", False)
    parts.expect(not normalised, "head.l2norm_feats", "features that are not normalised")
    head.activation = _activation(parts, "head.act", (1, -1) if detects else (4, -1))
    pathways = range(2 if parts.names.layout.two else 1)
    if not detects:
        head.windows = [_average(parts, f"head.pathway{p}_avgpool") for p in pathways]
        return head
    head.windows = [_average(parts, f"head.s{p}_tpool") for p in pathways]
    rois = [_roi(parts, f"head.s{p}_roi", f"head.s{p}_spool", "mean") for p in pathways]
    head.roi = rois[0]
    parts.expect(rois[-1] == rois[0], "head.s1_roi", "the same RoIAlign in both pathways")
    return head


def _pytorchvideo(parts: Parts, wrapped: bool) -> Head:
    layout = parts.names.layout
    path = f"{layout.prefix}blocks.{6 if layout.two or layout.pool else 5}"
    if layout.detects or parts.at("detection_head") is not ABSENT:
        path = "detection_head"
    if not _classifier(parts, f"{path}.proj"):
        return Head()
    head = Head(dropout=_dropout(parts, f"{path}.dropout"))
    head.activation = _activation(parts, f"{path}.activation")
    temporal = "mean"
    if layout.two:
        pools = f"{layout.prefix}blocks.5"
        head.windows = [_average(parts, f"{pools}.pool.{p}") for p in range(2)]
        second = isinstance(parts.at(f"{path}.pool"), nn.Module)
        parts.expect(not second, f"{path}.pool", "no second pool in a network of two pathways")
        listed = getattr(parts.at(pools), "retain_list", False)
        joined = not listed and getattr(parts.at(pools), "dim", 1) == 1
        parts.expect(joined, pools, "one tensor, concatenated along the channels")
    elif layout.detects and is_max_pool(parts.at(f"{path}.pool")):
        head.windows, temporal = [three(parts.use(f"{path}.pool").kernel_size)], "max"
    else:
        head.windows = [_average(parts, f"{path}.pool")]
    if layout.detects:
        head.roi = _roi(parts, f"{path}.roi_layer", f"{path}.pool_spatial", temporal)
    output = parts.use(f"{path}.output_pool")
    if wrapped:
        bare = head.activation == "none" and not isinstance(output, nn.Module)
        parts.expect(bare, path, "no activation and no output pool inside the wrapper")
        head.activation = _activation(parts, "post_act")
        return head
    mean = _to_one(output) if isinstance(output, nn.Module) else output is not None or layout.detects
    parts.expect(mean, f"{path}.output_pool", "the mean over positions", output)
    return head


def _mmaction2(parts: Parts) -> Head:
    if parts.names.layout.detects:
        parts.problems.append("roi_head (detection models of mmaction2 are read from files only)")
        return Head()
    parts.expect(parts.at("neck") in (ABSENT, None), "neck", "the head after the backbone")
    if not _classifier(parts, "cls_head.fc_cls"):
        return Head()
    window = _average(parts, "cls_head.avg_pool")
    parts.expect(window is None, "cls_head.avg_pool", "the whole map", f"a window of {window}")
    return Head(windows=[None], dropout=_dropout(parts, "cls_head.dropout"))


def _classifier(parts: Parts, path: str) -> bool:
    found = parts.use(path)
    got = type(found).__name__ if isinstance(found, nn.Module) else "nothing"
    if isinstance(found, nn.Linear) and found._parameters.get("bias") is None:
        found, got = None, "one without bias"
    return parts.expect(isinstance(found, nn.Linear), path, "the classifier, Linear with bias", got)


def _dropout(parts: Parts, path: str) -> float:
    found = parts.use(path)
    return float(found.p) if isinstance(found, nn.Dropout) else 0.0


def _average(parts: Parts, path: str) -> tuple[int, int, int] | None:
    """Window of an average pool with stride 1; None for the whole map."""
    pool = parts.use(path)
    if _to_one(pool):
        return None
    plain = isinstance(pool, nn.AvgPool3d) and pool.divisor_override is None
    if plain and set(three(pool.stride)) == {1} and not any(three(pool.padding)):
        return three(pool.kernel_size)
    parts.expect(
        False, path, "an average pool with stride 1", pool if isinstance(pool, nn.Module) else "nothing"
    )
    return None


def _to_one(pool: object) -> bool:
    return isinstance(pool, nn.AdaptiveAvgPool3d) and set(three(pool.output_size)) == {1}


def _activation(parts: Parts, path: str, classes: tuple[int, ...] = (1,)) -> str:
    """classes: dimensions that are the classes at this point of the head."""
    found = parts.use(path)
    if found is None:
        return "none"
    if isinstance(found, nn.Sigmoid):
        return "sigmoid"
    if isinstance(found, nn.Softmax) and found.dim in classes:
        return "softmax"
    parts.expect(False, path, "softmax over the classes, sigmoid or None", found)
    return "none"


def _roi(parts: Parts, path: str, spatial: str, temporal: str) -> RoIConfig | None:
    roi, pool = parts.use(path), parts.use(spatial)
    kind = type(roi).__name__.lower()
    aligns = hasattr(roi, "spatial_scale") and hasattr(roi, "sampling_ratio")
    size = getattr(roi, "output_size", None)
    height, width = pair(size) if size else (0, 0)
    square = aligns and not ("rotated" in kind or "pool" in kind) and height == width >= 1
    if not parts.expect(square, path, "a square RoIAlign", roi if roi is not ABSENT else "none"):
        return None
    pools = isinstance(pool, nn.MaxPool2d) and pair(pool.kernel_size) == (height, width)
    if not parts.expect(pools, spatial, f"a {height}x{width} max-pool", pool):
        return None
    return RoIConfig(
        resolution=height,
        scale=float(roi.spatial_scale),
        sampling_ratio=max(0, int(roi.sampling_ratio)),
        aligned=bool(getattr(roi, "aligned", False)),
        temporal=temporal,
    )
