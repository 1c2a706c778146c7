"""Live networks of other libraries -> ours.

A module counts as recognised when all of it is accounted for: its weights by the names of their keys, every
convolution's stride, padding and dilation, every batch norm, activation and pooling by comparison with the
network this library would build. Anything left over is named and refused, since it might change the answers.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slowfast_kernels.models.checkpoint import keys
from slowfast_kernels.models.checkpoint.detect import detect, is_fast_only
from slowfast_kernels.models.checkpoint.errors import MismatchError, some
from slowfast_kernels.models.checkpoint.load import (
    build_with,
    check,
    collect,
    set_norms,
    shapes_of,
    visible_pool,
)
from slowfast_kernels.models.checkpoint.resolve import resolve
from slowfast_kernels.models.checkpoint.stored import Stored, from_pyslowfast
from slowfast_kernels.models.config import RoIConfig
from slowfast_kernels.models.slowfast import SlowFast


class UnrecognisedModule(ValueError):
    """A module that is not, in every part, a network this library can build. parts: what was not
    recognised."""

    def __init__(self, module: nn.Module, parts: Sequence[str]) -> None:
        self.parts = list(parts)
        super().__init__(f"{type(module).__name__} is not recognised: {some(self.parts, 10)}")


@dataclass
class Counterpart:
    """Our network for a module. frames: length of the clips that its head's window fixes, per pathway (empty:
    any length). library: as in `ModelConfig.source`, "pyslowfast" also for its wrappers of pytorchvideo
    networks."""

    network: SlowFast
    library: str
    frames: tuple[int, ...] = ()


def from_module(module: nn.Module) -> SlowFast:
    """A trainable network of this library with the weights and the function of another library's live module.

    module: a SlowFast, Slow, I3D or C2D network of pytorchvideo (with its detection head or without) or
        PySlowFast (its wrappers of pytorchvideo networks too), or a recogniser of mmaction2; also inside
        DataParallel. It is recognised by its structure, not its class.

    Returns a model with copies of the weights, on the module's device, in its dtype and mode (training or
    eval), with the head semantics of that library in eval mode. mmaction2's models take one clip and thin it
    out for the Slow pathway themselves; the counterpart takes both clips, as `config.input.slow_index` says.

    Raises UnrecognisedModule (a ValueError) naming every part that was not recognised.
    """
    return read_module(module).network


def read_module(module: nn.Module) -> Counterpart:
    """`from_module` with what else `accelerate` needs to know."""
    while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        module = module.module
    if isinstance(module, SlowFast):
        return Counterpart(copy.deepcopy(module), module.config.source)
    return _Reader(module).read()


@dataclass
class _Head:
    """What a head's modules say: per pathway the window [T, h, w] of the average (None: the whole map)."""

    windows: list[tuple[int, int, int] | None] = field(default_factory=list)
    activation: str = "none"
    dropout: float = 0.0
    roi: RoIConfig | None = None


class _Reader:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.state = module.state_dict()
        names = keys.read(self.state)
        if names is None:
            raise UnrecognisedModule(module, self._foreign())
        self.names = names
        self.key_of = {ours: key for key, ours in names.ours.items()}
        self.two = names.layout.two
        self.wrapped = names.library == "pytorchvideo" and hasattr(module, "post_act")
        self.library = "pyslowfast" if self.wrapped else names.library
        self.problems: list[str] = []
        self.used: set[int] = set()

    def _foreign(self) -> list[str]:
        kinds = {
            type(m).__name__ for m in self.module.modules() if any(True for _ in m.parameters(recurse=False))
        }
        return [f"weights in {', '.join(sorted(kinds)) or 'no layer at all'} under names of no known library"]

    def read(self) -> Counterpart:
        if self.names.other:
            self.problems += self.names.other
        try:
            found = detect(shapes_of(self.names, self.state), visible_pool(self.names))
        except ValueError as error:
            raise UnrecognisedModule(self.module, [str(error), *self.problems]) from error
        single_fast = not self.two and is_fast_only(next(iter(found.pathways.values())))

        said = Stored("module", input=self._settings())
        for name in ("slow", "fast") if self.two else ("slow",):
            said.pathways[name] = self._pathway(name)
        if self.two:
            said.input["alpha"] = self._alpha()
        head = self._head()
        said.detects = head.roi is not None
        frames = self._frames(head, said)
        pool = self._window(head)
        said.head = {
            "activation": head.activation,
            "multi_label": head.activation == "sigmoid",
            "pool": pool,
            "dropout": head.dropout,
            "roi": head.roi,
        }
        if pool is not None:
            said.input.setdefault("crop", 32 * pool)
        if self.problems:
            raise UnrecognisedModule(self.module, self.problems)

        semantics = self.library
        if semantics == "pytorchvideo" and head.activation != "none" and head.roi is None:
            semantics = "pyslowfast"  # an activation comes at each position there, before the mean
        state = collect(self.names, self.state, "fast" if single_fast else None)
        try:
            config = resolve(
                found, self.library, said, None, {}, detects=said.detects, semantics=semantics
            ).config
            check(type(self.module).__name__, config, state, self.names, found)
        except MismatchError as error:
            wrong = [f"{key} {want} {got}" for key, (want, got) in error.shapes.items()]
            raise UnrecognisedModule(self.module, [*error.missing, *error.unexpected, *wrong]) from error
        except ValueError as error:
            raise UnrecognisedModule(self.module, [str(error)]) from error
        network = build_with(config, {key: value.clone() for key, value in state.items()})
        self._compare(network, single_fast)
        self._leftovers()
        if self.problems:
            raise UnrecognisedModule(self.module, self.problems)
        self._take_over(network, single_fast)
        return Counterpart(network, self.library, frames)

    # -- finding things --

    def _at(self, path: str) -> Any:
        """What is at a dotted path: the module, None where the attribute is None, _ABSENT where there is
        none."""
        here: Any = self.module
        for part in path.split(".") if path else []:
            here = here._modules.get(part, _ABSENT) if part in here._modules else getattr(here, part, _ABSENT)
            if here is None or here is _ABSENT:
                return here
        return here

    def _use(self, found: Any) -> Any:
        if isinstance(found, nn.Module):
            self.used.add(id(found))
        return found

    def _layer(self, ours: str) -> tuple[str, Any]:
        """Path and module of our layer, such as "res2.slow.0.a.conv"."""
        key = self.key_of.get(f"{ours}.weight", "")
        path = key.rsplit(".", 1)[0]
        return path, self._use(self._at(path)) if key else _ABSENT

    def _parent(self, ours: str, up: int = 1) -> str:
        return self._layer(ours)[0].rsplit(".", up)[0]

    def _relu(self, path: str) -> None:
        """A ReLU must be one. (One that is no module cannot be seen, and is taken to be there.)"""
        found = self._use(self._at(path))
        if found is not _ABSENT and not isinstance(found, nn.ReLU):
            self.problems.append(f"{path} (expected ReLU, got {type(found).__name__})")

    # -- parts --

    def _settings(self) -> dict[str, Any]:
        """A PySlowFast network keeps its configuration, which knows crop, colours and views."""
        cfg = getattr(self.module, "cfg", None)
        if self.library != "pyslowfast" or not isinstance(cfg, Mapping):
            return {}
        try:
            known = from_pyslowfast(cfg).input
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            return {}
        known.pop("alpha", None)
        return known

    def _alpha(self) -> int:
        path, conv = self._layer("lateral.0.conv")
        if not isinstance(conv, nn.Conv3d):
            self.problems.append(
                f"{path or 'lateral connections'} (expected a convolution with stride alpha)"
            )
            return 1
        return conv.stride[0]

    def _pathway(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        strides, dilations = [], []
        for stage in (2, 3, 4, 5):
            block = f"res{stage}.{name}.0"
            bottleneck = f"{block}.c.conv.weight" in self.key_of
            strided = self._layer(f"{block}.{'b' if bottleneck else 'a'}.conv")[1]
            spread = self._layer(f"{block}.b.conv")[1]
            strides.append(strided.stride[1] if isinstance(strided, nn.Conv3d) else 1)
            dilations.append(spread.dilation[1] if isinstance(spread, nn.Conv3d) else 1)
        values["strides"], values["dilations"] = tuple(strides), tuple(dilations)
        stem = self._layer(f"stem.{name}.conv")[1]
        values["stem_stride"] = stem.stride[0] if isinstance(stem, nn.Conv3d) else 1
        values["stem_pool_stride"] = self._stem_pool(name)
        pool = self._pool_after_res2(name)
        if pool is not None:
            values["pool_after_res2"] = pool
        self._activations(name)
        return values

    def _stem_pool(self, name: str) -> int:
        up = 2 if self.names.library == "mmaction2" else 1
        parent = self._parent(f"stem.{name}.conv", up)
        names = {"pyslowfast": "pool_layer", "pytorchvideo": "pool", "mmaction2": "maxpool"}
        path = f"{parent}.{names[self.names.library]}"
        pool = self._use(self._at(path))
        if pool is _ABSENT:
            return 1
        usual = isinstance(pool, nn.MaxPool3d) and _three(pool.stride)[1:] == (2, 2)
        if not usual or (_three(pool.kernel_size), _three(pool.padding)) != ((1, 3, 3), (0, 1, 1)):
            self.problems.append(f"{path} (expected a 1x3x3 max-pool with spatial stride 2, got {pool})")
            return 1
        return _three(pool.stride)[0]

    def _pool_after_res2(self, name: str) -> int | None:
        library = self.names.library
        if library == "pytorchvideo":
            if not self.names.layout.pool:
                return 1
            path = f"{'model.' if self._prefixed() else ''}blocks.2"
        elif library == "mmaction2":
            if self.two or not getattr(self._at("backbone"), "with_pool2", True):
                for spare in ("backbone.pool2", "backbone.slow_path.pool2", "backbone.fast_path.pool2"):
                    self._use(self._at(spare))  # there, but not called
                return 1
            path = "backbone.pool2"
        else:
            path = f"pathway{keys.PATHS.index(name)}_pool"
        pool = self._use(self._at(path))
        if pool is _ABSENT:
            return None
        window = _three(pool.kernel_size) if isinstance(pool, nn.MaxPool3d) else ()
        if not window or window[1:] != (1, 1) or _three(pool.stride) != window or any(_three(pool.padding)):
            self.problems.append(f"{path} (expected a max-pool over frames, got {pool})")
            return None
        return window[0]

    def _prefixed(self) -> bool:
        return any(key.startswith("model.blocks.") for key in self.names.ours)

    def _activations(self, name: str) -> None:
        library = self.names.library
        stem = self._parent(f"stem.{name}.conv")
        leaf = {"pyslowfast": "relu", "pytorchvideo": "activation", "mmaction2": "activate"}[library]
        self._relu(f"{stem}.{leaf}")
        blocks = {
            ours.rsplit(".", 3)[0] for ours in self.key_of if ours.startswith("res") and f".{name}." in ours
        }
        for block in sorted(blocks):
            first = self._layer(f"{block}.a.conv")[0]
            if library == "pyslowfast":
                branch, whole = first.rsplit(".", 1)[0], first.rsplit(".", 2)[0]
                paths = [f"{branch}.a_relu", f"{branch}.b_relu", f"{whole}.relu"]
            elif library == "pytorchvideo":
                branch, whole = first.rsplit(".", 1)[0], first.rsplit(".", 2)[0]
                paths = [f"{branch}.act_a", f"{branch}.act_b", f"{whole}.activation"]
                fusion = getattr(self._at(whole), "branch_fusion", None)
                if fusion is not None and getattr(fusion, "__name__", "") != "_trivial_sum":
                    self.problems.append(f"{whole}.branch_fusion (expected the sum, got {fusion})")
            else:
                whole = first.rsplit(".", 2)[0]
                inner = ("conv1", "conv2") if f"{block}.c.conv.weight" in self.key_of else ("conv1",)
                paths = [*(f"{whole}.{conv}.activate" for conv in inner), f"{whole}.relu"]
            for path in paths:
                self._relu(path)
        if name == "slow" and self.two:
            for k in range(4):
                path = self._layer(f"lateral.{k}.conv")[0]
                if not path:
                    continue
                parent, own = path.rsplit(".", 1)[0], {"pyslowfast": "relu", "pytorchvideo": "activation"}
                if library in own:
                    self._relu(f"{parent}.{own[library]}")
                elif f"lateral.{k}.bn.weight" in self.key_of:
                    self._relu(f"{parent}.activate")
                elif isinstance(self._at(f"{parent}.activate"), nn.Module):
                    self.problems.append(f"{parent}.activate (expected none without a batch norm)")

    # -- heads --

    def _head(self) -> _Head:
        self._use(self._layer("head.proj")[1])
        reader: Callable[[], _Head] = {
            "pyslowfast": self._pyslowfast_head,
            "pytorchvideo": self._pytorchvideo_head,
            "mmaction2": self._mmaction2_head,
        }.get(self.names.library, _Head)
        return reader()

    def _dropout(self, path: str) -> float:
        found = self._use(self._at(path))
        return float(found.p) if isinstance(found, nn.Dropout) else 0.0

    def _average(self, path: str) -> tuple[int, int, int] | None:
        """Window of an average pool with stride 1; None for the whole map."""
        pool = self._use(self._at(path))
        if (
            isinstance(pool, nn.AvgPool3d)
            and set(_three(pool.stride)) == {1}
            and not any(_three(pool.padding))
        ):
            return _three(pool.kernel_size)
        if isinstance(pool, nn.AdaptiveAvgPool3d) and set(_three(pool.output_size)) == {1}:
            return None
        got = "nothing" if pool is _ABSENT or pool is None else pool
        self.problems.append(f"{path} (expected an average pool with stride 1, got {got})")
        return None

    def _activation(self, path: str, classes: tuple[int, ...] = (1,)) -> str:
        """classes: dimensions that are the classes at this point of the head."""
        found = self._use(self._at(path))
        if found is None:
            return "none"
        if isinstance(found, nn.Sigmoid):
            return "sigmoid"
        if isinstance(found, nn.Softmax) and found.dim in classes:
            return "softmax"
        if found is _ABSENT:
            self.problems.append(f"{path} (the head's activation, expected a module or None)")
        else:
            self.problems.append(f"{path} (expected softmax over the classes, sigmoid or None, got {found})")
        return "none"

    def _roi(self, path: str, spatial: str, temporal: str) -> RoIConfig | None:
        roi, pool = self._use(self._at(path)), self._use(self._at(spatial))
        kind = type(roi).__name__.lower()
        aligns = hasattr(roi, "spatial_scale") and hasattr(roi, "sampling_ratio")
        size = getattr(roi, "output_size", None)
        height, width = (size, size) if isinstance(size, int) else tuple(size or (0, 0))
        if not aligns or "rotated" in kind or "pool" in kind or height != width or height < 1:
            self.problems.append(
                f"{path} (expected a square RoIAlign, got {roi if roi is not _ABSENT else 'none'})"
            )
            return None
        if not isinstance(pool, nn.MaxPool2d) or _pair(pool.kernel_size) != (height, width):
            self.problems.append(f"{spatial} (expected a {height}x{width} max-pool, got {pool})")
            return None
        return RoIConfig(
            resolution=height,
            scale=float(roi.spatial_scale),
            sampling_ratio=max(0, int(roi.sampling_ratio)),
            aligned=bool(getattr(roi, "aligned", False)),
            temporal=temporal,
        )

    def _pyslowfast_head(self) -> _Head:
        head = _Head(dropout=self._dropout("head.dropout"))
        detects = self._at("head.s0_roi") is not _ABSENT
        head.activation = self._activation("head.act", (1, -1) if detects else (4, -1))
        pathways = range(2 if self.two else 1)
        if not detects:
            head.windows = [self._average(f"head.pathway{p}_avgpool") for p in pathways]
            return head
        head.windows = [self._average(f"head.s{p}_tpool") for p in pathways]
        rois = [self._roi(f"head.s{p}_roi", f"head.s{p}_spool", "mean") for p in pathways]
        if any(roi != rois[0] for roi in rois):
            self.problems.append("head.s1_roi (expected the same RoIAlign in both pathways)")
        head.roi = rois[0]
        return head

    def _pytorchvideo_head(self) -> _Head:
        prefix = "model." if self._prefixed() else ""
        path = self._layer("head.proj")[0].rsplit(".", 1)[0]
        detects = self.names.layout.detects
        head = _Head(dropout=self._dropout(f"{path}.dropout"))
        head.activation = self._activation(f"{path}.activation")
        temporal = "mean"
        if self.two:
            pools = f"{prefix}blocks.5.pool"
            head.windows = [self._average(f"{pools}.{p}") for p in range(2)]
            if isinstance(self._at(f"{path}.pool"), nn.Module):
                self.problems.append(f"{path}.pool (expected no second pool in a network of two pathways)")
        elif detects and isinstance(self._at(f"{path}.pool"), nn.MaxPool3d):
            pool = self._use(self._at(f"{path}.pool"))
            head.windows, temporal = [_three(pool.kernel_size)], "max"
        else:
            head.windows = [self._average(f"{path}.pool")]
        if detects:
            head.roi = self._roi(f"{path}.roi_layer", f"{path}.pool_spatial", temporal)
        output = self._use(self._at(f"{path}.output_pool"))
        if self.wrapped:
            if head.activation != "none" or isinstance(output, nn.Module):
                self.problems.append(f"{path} (expected no activation and no output pool inside the wrapper)")
            head.activation = self._activation("post_act")
        elif output is None and not detects:
            self.problems.append(f"{path}.output_pool (expected the mean over positions, got None)")
        elif isinstance(output, nn.Module) and not isinstance(output, nn.AdaptiveAvgPool3d):
            self.problems.append(f"{path}.output_pool (expected the mean over positions, got {output})")
        return head

    def _mmaction2_head(self) -> _Head:
        if self.names.layout.detects:
            self.problems.append("roi_head (detection models of mmaction2 are read from files only)")
            return _Head()
        window = self._average("cls_head.avg_pool")
        if window is not None:
            self.problems.append(f"cls_head.avg_pool (expected the whole map, got a window of {window})")
        return _Head(windows=[None], dropout=self._dropout("cls_head.dropout"))

    def _window(self, head: _Head) -> int | None:
        """Cells along a side of the head's window, the same for both pathways."""
        sides = {window[1:] if window is not None else None for window in head.windows}
        if head.roi is not None:
            if not sides <= {(1, 1), None}:
                self.problems.append(
                    f"head (expected a pool over frames before RoIAlign, got {head.windows})"
                )
            return None
        if len(sides) != 1:
            self.problems.append(f"head (expected one window for both pathways, got {head.windows})")
            return None
        side = sides.pop()
        if side is not None and side[0] != side[1]:
            self.problems.append(f"head (expected a square window, got {side[0]}x{side[1]})")
        return side[0] if side is not None else None

    def _frames(self, head: _Head, said: Stored) -> tuple[int, ...]:
        """Frames of the clips, where the head's windows fix them."""
        spans = [window[0] for window in head.windows if window is not None]
        if not spans or len(spans) != len(head.windows):
            return ()
        if self.two and spans[0] * said.input["alpha"] != spans[1]:
            alpha = said.input["alpha"]
            self.problems.append(
                f"head (expected windows of T and {alpha} T frames for alpha {alpha}, got {spans})"
            )
            return ()
        frames = [
            span * path["stem_stride"] * path["stem_pool_stride"] * path.get("pool_after_res2", 1)
            for span, path in zip(spans, said.pathways.values(), strict=True)
        ]
        said.input["frames"] = frames[-1]
        if not self.two:
            said.input.setdefault("tau", 64 // frames[0] if frames[0] in (4, 8, 16) else 2)
        return tuple(frames)

    # -- comparing --

    def _layers(self, network: SlowFast, single_fast: bool) -> Iterator[tuple[str, nn.Module, str, Any]]:
        """(our name, our module, its path there, its module there) of all layers with weights."""
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv3d | _BatchNorm):
                read_as = keys.rename_pathway(name, "fast", "slow") if single_fast else name
                yield name, layer, *self._layer(read_as)

    def _compare(self, network: SlowFast, single_fast: bool) -> None:
        for _, ours, path, theirs in self._layers(network, single_fast):
            if isinstance(ours, nn.Conv3d):
                if not isinstance(theirs, nn.Conv3d):
                    self.problems.append(f"{path} (expected Conv3d, got {type(theirs).__name__})")
                    continue
                want = (ours.stride, ours.padding, ours.dilation, ours.groups, ours.padding_mode)
                got = (theirs.stride, theirs.padding, theirs.dilation, theirs.groups, theirs.padding_mode)
                if want != got:
                    what = "stride, padding, dilation, groups, padding mode"
                    self.problems.append(f"{path} (expected {what} {want}, got {got})")
            elif not isinstance(theirs, _BatchNorm) or not theirs.track_running_stats:
                self.problems.append(f"{path} (expected batch norm with running statistics, got {theirs})")

    def _leftovers(self) -> None:
        """Modules that compute something and were not looked at."""
        for path, part in self.module.named_modules():
            idle = isinstance(part, nn.Identity | nn.Dropout) or any(True for _ in part.children())
            is_container = isinstance(part, nn.ModuleList | nn.ModuleDict | nn.Sequential)
            if id(part) not in self.used and not idle and not is_container and not _is_loss(part):
                self.problems.append(f"{path} ({type(part).__name__})")

    def _take_over(self, network: SlowFast, single_fast: bool) -> None:
        """Settings, device, dtype and mode of the module."""
        theirs = [(ours, layer) for ours, _, _, layer in self._layers(network, single_fast)]
        set_norms(network, {ours: (m.eps, m.momentum) for ours, m in theirs if isinstance(m, _BatchNorm)})
        first = next(self.module.parameters())
        network.to(first.device)
        if first.is_floating_point() and first.dtype != torch.float32:
            network.to(first.dtype)
        trained = dict(self.module.named_parameters())
        for name, parameter in network.named_parameters():
            read_as = keys.rename_pathway(name, "fast", "slow") if single_fast else name
            parameter.requires_grad_(trained[self.key_of[read_as]].requires_grad)
        network.train(self.module.training)


_ABSENT = type("_Absent", (), {"__repr__": lambda self: "nothing"})()


def _is_loss(part: nn.Module) -> bool:
    return "loss" in type(part).__name__.lower() or type(part).__name__.endswith("Preprocessor")


def _three(value: Any) -> tuple[int, int, int]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)  # type: ignore[return-value]


def _pair(value: Any) -> tuple[int, int]:
    return (value,) * 2 if isinstance(value, int) else tuple(value)  # type: ignore[return-value]
