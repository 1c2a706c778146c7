"""Reads a network off a live module: weights, settings of every layer, what is left over."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slowfast_kernels.models.checkpoint import keys, pyslowfast
from slowfast_kernels.models.checkpoint.assemble import build_with, check, collect, read_shapes, set_norms
from slowfast_kernels.models.checkpoint.detect import Found
from slowfast_kernels.models.checkpoint.errors import MismatchError
from slowfast_kernels.models.checkpoint.resolve import resolve
from slowfast_kernels.models.checkpoint.stored import Stored
from slowfast_kernels.models.checkpoint.templates import PATHS
from slowfast_kernels.models.config import ModelConfig
from slowfast_kernels.models.interop.code import altered, chains_blocks, is_of_a_library, is_sum
from slowfast_kernels.models.interop.heads import Head, read_head
from slowfast_kernels.models.interop.parts import ABSENT, PLACES, Parts, is_max_pool, three
from slowfast_kernels.models.interop.results import Counterpart, Trunk, UnrecognisedModule
from slowfast_kernels.models.interop.wrappers import unusual_weights
from slowfast_kernels.models.slowfast import SlowFast


class Reader:
    """Reads a module with its head."""

    def __init__(self, module: nn.Module, root: nn.Module | None = None) -> None:
        """root: what holds the module under the name that its library knows it by, where it comes bare."""
        self.module, self.root = module, root or module
        self.state = _plain_norms(self.root, self.root.state_dict())
        wanted = self._wanted(self.state)
        if unusual := {key: kind for key, kind in unusual_weights(self.root).items() if key in set(wanted)}:
            what = [f"{key} (expected a plain tensor, got {kind})" for key, kind in unusual.items()]
            raise UnrecognisedModule(module, what)
        names = keys.read(wanted)
        if names is None or names.library not in ("pyslowfast", "pytorchvideo", "mmaction2"):
            raise UnrecognisedModule(module, [_foreign(module)])
        self.names, self.two = names, names.layout.two
        self.parts = Parts(self.root, names)
        self.problems = self.parts.problems
        self.wrapped = names.library == "pytorchvideo" and hasattr(self.root, "post_act")
        self.library = "pyslowfast" if self.wrapped else names.library

    def read(self) -> Counterpart:
        """Raises UnrecognisedModule."""
        head = read_head(self.parts, self.wrapped)
        self.problems += [*altered(self.module), *self._taken_otherwise()]
        said, found = self._said()
        said.detects = head.roi is not None
        self._frames(head, said)
        pool = head.cells(self.parts)
        said.head = {
            "activation": head.activation,
            "multi_label": head.activation == "sigmoid",
            "pool": pool,
            "dropout": head.dropout,
            "roi": head.roi,
        }
        if pool is not None:
            said.input.setdefault("crop", 32 * pool)
        semantics = self.library
        if semantics == "pytorchvideo" and head.activation != "none" and head.roi is None:
            semantics = "pyslowfast"  # an activation comes at each position there, before the mean
        return Counterpart(self._build(found, said, semantics), self.library, self._every())

    # -- what there is --

    def _wanted(self, state: Mapping[str, Tensor]) -> list[str]:
        """The keys that are to be accounted for."""
        return list(state)

    def _said(self) -> tuple[Stored, Found]:
        """What the layers before the head say."""
        self.problems += self.names.other
        try:
            self.names, found = read_shapes(self.names, self.state)
        except ValueError as error:
            raise UnrecognisedModule(self.module, [str(error), *self.problems]) from error
        self.parts.know(self.names)
        said = Stored("module", input=self._settings())
        for name in PATHS if self.two else found.paths:
            said.pathways[name] = self._pathway(name)
        if self.two:
            said.input["alpha"] = self._alpha()
        if any(path.in_channels == 1 for path in found.paths.values()):
            said.input["fast_input"] = "gray"  # or another: it says how clips are made, not what is computed
        return said, found

    def _taken_otherwise(self) -> list[str]:
        """pytorchvideo's blocks may be in anybody's class, which does with them what it likes."""
        if self.names.library != "pytorchvideo" or self.wrapped:
            return []
        if self.names.layout.detects:
            known, what = is_of_a_library(type(self.root).forward), "that of pytorchvideo's detection network"
        elif self.names.layout.prefix:
            known, what = False, "a network of pytorchvideo itself, got one inside"
        else:
            known, what = chains_blocks(self.root), "the blocks in order, and no more"
        return [] if known else [f"{type(self.module).__name__}.forward (expected {what})"]

    def _settings(self) -> dict[str, Any]:
        """A PySlowFast network keeps its configuration, which knows crop, colours and views."""
        cfg = getattr(self.module, "cfg", None)
        if self.library != "pyslowfast" or not isinstance(cfg, Mapping):
            return {}
        try:
            known = pyslowfast.stored(cfg).input
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            return {}
        known.pop("alpha", None)
        return known

    def _alpha(self) -> int:
        path, conv = self.parts.layer("lateral.0.conv")
        if isinstance(conv, nn.Conv3d):
            return int(conv.stride[0])
        if self.names.library == "mmaction2" and not path:  # without lateral connections
            return int(getattr(self.parts.at("backbone"), "speed_ratio", 1))
        self.parts.expect(False, path or "lateral connections", "a convolution with stride alpha")
        return 1

    def _pathway(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        strides, dilations = [], []
        for stage in (2, 3, 4, 5):
            block = f"res{stage}.{name}.0"
            bottleneck = f"{block}.c.conv.weight" in self.parts.key_of
            strided = self.parts.layer(f"{block}.{'b' if bottleneck else 'a'}.conv")[1]
            spread = self.parts.layer(f"{block}.b.conv")[1]
            strides.append(int(strided.stride[1]) if isinstance(strided, nn.Conv3d) else 1)
            dilations.append(int(spread.dilation[1]) if isinstance(spread, nn.Conv3d) else 1)
        values["strides"], values["dilations"] = tuple(strides), tuple(dilations)
        stem = self.parts.layer(f"stem.{name}.conv")[1]
        values["stem_stride"] = int(stem.stride[0]) if isinstance(stem, nn.Conv3d) else 1
        values["stem_pool_stride"] = self._stem_pool(name)
        pool = self._pool_after_res2(name)
        if pool is not None:
            values["pool_after_res2"] = pool
        self._activations(name)
        return values

    def _stem_pool(self, name: str) -> int:
        parent = self.parts.parent(f"stem.{name}.conv", self.parts.places.up)
        path = f"{parent}.{self.parts.places.pool}"
        pool = self.parts.use(path)
        if self.names.library == "mmaction2" and not self.two:
            if not getattr(self.parts.at(parent), "with_pool1", True):
                pool = ABSENT  # there, but not called
            outs = tuple(getattr(self.parts.at(parent), "out_indices", (3,)))
            self.parts.expect(outs == (3,), f"{parent}.out_indices", "(3,), the last stage alone", outs)
        if pool is ABSENT and self.names.library != "mmaction2":
            return 1
        usual = is_max_pool(pool) and three(pool.stride)[1:] == (2, 2)
        usual = usual and (three(pool.kernel_size), three(pool.padding)) == ((1, 3, 3), (0, 1, 1))
        self.parts.expect(usual, path, "a 1x3x3 max-pool with spatial stride 2", pool)
        return three(pool.stride)[0] if usual else 1

    def _pool_after_res2(self, name: str) -> int | None:
        path = {
            "pyslowfast": f"pathway{int(self.two and name == 'fast')}_pool",
            "pytorchvideo": f"{self.names.layout.prefix}blocks.2" if self.names.layout.pool else "",
            "mmaction2": "backbone.pool2",
        }[self.names.library]
        if self.names.library == "mmaction2" and (
            self.two or not getattr(self.parts.at("backbone"), "with_pool2", True)
        ):
            for spare in ("backbone.pool2", "backbone.slow_path.pool2", "backbone.fast_path.pool2"):
                self.parts.use(spare)  # there, but not called
            path = ""
        if not path:
            return 1
        pool = self.parts.use(path)
        if pool is ABSENT:
            return None
        window = three(pool.kernel_size) if is_max_pool(pool) else (0, 0, 0)
        usual = window == (window[0], 1, 1) == three(pool.stride) and not any(three(pool.padding))
        return window[0] if self.parts.expect(usual, path, "a max-pool over frames", pool) else None

    def _activations(self, name: str) -> None:
        parts, places = self.parts, self.parts.places
        parts.relu(f"{parts.parent(f'stem.{name}.conv')}.{places.relu}")
        blocks = {
            ours.rsplit(".", 3)[0] for ours in parts.key_of if ours.startswith("res") and f".{name}." in ours
        }
        for block in sorted(blocks):
            path = parts.parent(f"{block}.a.conv", 2)
            one, other, last = places.block
            third = f"{block}.c.conv.weight" in parts.key_of
            for relu in (one, other, last) if third or not parts.strict else (one, last):
                parts.relu(f"{path}.{relu}")
            fusion = getattr(parts.at(path), "branch_fusion", None)
            if self.names.library == "pytorchvideo" and fusion is not None:
                parts.expect(is_sum(fusion), f"{path}.branch_fusion", "the sum", fusion)
        for k in range(4) if name == "slow" and self.two else ():
            conv = parts.layer(f"lateral.{k}.conv")[0]
            if not conv:
                continue
            relu = f"{conv.rsplit('.', 1)[0]}.{places.relu}"
            if f"lateral.{k}.bn.weight" in parts.key_of or not parts.strict:
                parts.relu(relu)
            else:
                parts.expect(not isinstance(parts.at(relu), nn.Module), relu, "none without a batch norm")

    def _frames(self, head: Head, said: Stored) -> None:
        """Frames of the clips, where the head's windows fix them."""
        spans = [window[0] for window in head.windows if window is not None]
        if not spans or len(spans) != len(head.windows):
            return
        alpha = said.input.get("alpha", 1)
        every = (alpha, 1) if self.two else (1,)
        paths = list(zip(spans, every, said.pathways.values(), strict=True))
        fitting = (
            n
            for n in (said.input.get("frames", alpha), *range(alpha, 4096, alpha))
            if n % alpha == 0 and all(_left(n // step, path) == span for span, step, path in paths)
        )
        frames = next(fitting, None)
        if frames is None:
            self.parts.expect(False, "head", f"windows that clips fill for alpha {alpha}", f"{spans} frames")
            return
        said.input |= {"frames": frames, "fixed_frames": True}
        if not self.two:
            said.input.setdefault("tau", 64 // frames if frames in (4, 8, 16) else 2)

    def _every(self) -> tuple[int, ...]:
        """mmaction2's networks of two pathways thin out one clip."""
        if self.library != "mmaction2" or not self.two:
            return ()
        backbone, alpha = self.parts.at("backbone"), self._alpha()
        slow = int(getattr(backbone, "resample_rate", alpha))
        return slow, max(1, slow // int(getattr(backbone, "speed_ratio", alpha)))

    # -- ours --

    def _build(self, found: Found, said: Stored, semantics: str) -> SlowFast:
        """The network, once everything was found to be as it should."""
        if self.problems:
            raise UnrecognisedModule(self.module, self.problems)
        state = collect(self.names, self.state)
        config = self._config(found, said, semantics, state)
        network = build_with(config, {key: value.clone() for key, value in state.items()})
        self._compare(network)
        self._leftovers()
        if self.problems:
            raise UnrecognisedModule(self.module, self.problems)
        self._take_over(network)
        return network

    def _config(self, found: Found, said: Stored, semantics: str, state: dict[str, Tensor]) -> ModelConfig:
        try:
            result = resolve(found, self.library, said, None, {}, detects=said.detects, semantics=semantics)
            check(type(self.module).__name__, result.config, state, self.names, found)
        except MismatchError as error:
            what = [*(f"{key} (missing)" for key in error.missing), *error.unexpected]
            for key, (want, got) in error.shapes.items():
                what.append(f"{key} (expected shape {[*want]}, got {[*got]})")
            raise UnrecognisedModule(self.module, what) from error
        except ValueError as error:
            raise UnrecognisedModule(self.module, [str(error)]) from error
        return result.config

    def _layers(self, network: SlowFast) -> Iterator[tuple[str, nn.Module, str, Any]]:
        """(our name, our module, its path there, its module there) of all layers with weights."""
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv3d | _BatchNorm):
                yield name, layer, *self.parts.layer(name)

    def _compare(self, network: SlowFast) -> None:
        for _, ours, path, theirs in self._layers(network):
            if isinstance(ours, nn.Conv3d):
                kind = type(theirs).__name__
                if not self.parts.expect(isinstance(theirs, nn.Conv3d), path, "Conv3d", kind):
                    continue
                want = (ours.stride, ours.padding, ours.dilation, ours.groups, ours.padding_mode)
                got = (theirs.stride, theirs.padding, theirs.dilation, theirs.groups, theirs.padding_mode)
                what = f"stride, padding, dilation, groups, padding mode {want}"
                self.parts.expect(want == got, path, what, got)
            else:
                norm = isinstance(theirs, _BatchNorm)
                kind = "one without" if norm else type(theirs).__name__
                tracks = norm and theirs.track_running_stats
                self.parts.expect(tracks, path, "batch norm with running statistics", kind)

    def _leftovers(self) -> None:
        """Modules that compute something and were not looked at."""
        for path, part in self.root.named_modules():
            if not self.parts.knows(part) and not self._idle(path, part):
                self.problems.append(f"{path} ({type(part).__name__})")

    def _idle(self, path: str, part: nn.Module) -> bool:
        """Whether a module computes nothing itself in eval mode."""
        kinds = nn.Identity | nn.Dropout | nn.ModuleList | nn.ModuleDict | nn.Sequential
        kind = type(part).__name__
        is_loss = "loss" in kind.lower() or kind.endswith("Preprocessor")
        return isinstance(part, kinds) or is_loss or any(True for _ in part.children())

    def _take_over(self, network: SlowFast) -> None:
        """Settings, device, dtype and mode of the module."""
        theirs = [(ours, layer) for ours, _, _, layer in self._layers(network)]
        set_norms(network, {ours: (m.eps, m.momentum) for ours, m in theirs if isinstance(m, _BatchNorm)})
        first = next(self.module.parameters())
        network.to(first.device)
        if first.is_floating_point() and first.dtype != torch.float32:
            network.to(first.dtype)
        trained = dict(self.root.named_parameters(remove_duplicate=False))
        own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        for name, value in own.items():
            key = self.parts.key_of.get(name)
            if key is not None and value.dtype == torch.float64:  # `collect` kept the digits of float32
                value.data.copy_(self.state[key].reshape(value.shape))
            if key is not None and isinstance(value, nn.Parameter):
                value.requires_grad_(trained[key].requires_grad)
        network.train(self.module.training)


class TrunkReader(Reader):
    """Reads stem to res5 of a module whose head is somebody's own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, _in_its_place(module))
        self.above = self._head()

    def read_trunk(self) -> Trunk:
        """Raises UnrecognisedModule."""
        self.problems += altered(self.module, skip=[self.above] if self.above is not None else [])
        self.problems += self._taken_otherwise()
        said, found = self._said()
        width = sum(path.out_channels(3) for path in found.paths.values())
        placeholder = {"head.proj.weight": torch.zeros(1, width), "head.proj.bias": torch.zeros(1)}
        self.state = {**self.state, **placeholder}
        self.names = replace(self.names, ours={**self.names.ours, **{key: key for key in placeholder}})
        said.head = {"activation": "none", "multi_label": False, "pool": None, "dropout": 0.0, "roi": None}
        said.detects = False
        network = self._build(replace(found, classes=1), said, self.library)
        form = PLACES[self.library].forms[self.two]
        return Trunk(network, self.library, form, self.above, self._every())

    def _wanted(self, state: Mapping[str, Tensor]) -> list[str]:
        """Keys before the head."""
        numbers = [int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\..*res_blocks\.", key))]
        self.last = max(numbers, default=None)  # of pytorchvideo's blocks, the one that is res5
        return [key for key in state if not self._above(key)]

    def _above(self, path: str) -> bool:
        """Whether a key or module belongs to the head."""
        if self.last is None:
            return path.split(".")[0] == "head"
        block = re.match(r"blocks\.(\d+)(\.|$)", path)
        return block is not None and int(block[1]) > self.last

    def _head(self) -> nn.Module | None:
        """The module's head, at the level of the module itself: what is further inside is a part."""
        if self.names.library == "pyslowfast" and isinstance(self.parts.at("head"), nn.Module):
            return self.parts.at("head")
        layout = self.names.layout
        if self.names.library == "pytorchvideo" and not (layout.prefix or layout.detects):
            return nn.Sequential(*list(self.parts.at("blocks"))[(self.last or 0) + 1 :])
        if self.names.library == "mmaction2" and self.root is not self.module:
            return None
        inner = {"mmaction2": "backbone"}.get(self.names.library, "model or head")
        raise UnrecognisedModule(self.module, [f"{inner} (expected at the top)", *self.names.other])

    def _idle(self, path: str, part: nn.Module) -> bool:
        return self._above(path) or super()._idle(path, part)


def _in_its_place(module: nn.Module) -> nn.Module:
    """A bare backbone or Sequential of blocks under the name that its library gives it."""
    names = [name for name, _ in module.named_children()]
    if isinstance(module, nn.Sequential) and names[:1] == ["0"]:
        return nn.ModuleDict({"blocks": module})
    if {"slow_path", "fast_path"} <= set(names) or {"conv1", "layer1", "layer4"} <= set(names):
        return nn.ModuleDict({"backbone": module})
    return module


def _foreign(module: nn.Module) -> str:
    kinds = {type(m).__name__ for m in module.modules() if any(True for _ in m.parameters(recurse=False))}
    return f"weights in {', '.join(sorted(kinds)) or 'no layer at all'} under names of no known library"


def _plain_norms(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names that PySlowFast's SubBatchNorm3d has when it is saved: of one batch norm."""
    plain = dict(state)
    for path, part in module.named_modules():
        if Parts.splits(part):
            for leaf in ("running_mean", "running_var", "num_batches_tracked"):
                if f"{path}.bn.{leaf}" in plain:
                    plain[f"{path}.{leaf}"] = plain.pop(f"{path}.bn.{leaf}")
            plain = {key: value for key, value in plain.items() if not key.startswith(f"{path}.split_bn.")}
    return plain


def _left(frames: int, path: Mapping[str, Any]) -> int:
    """Frames of res5 of a pathway that is fed with `frames`."""
    return -(-frames // (path["stem_stride"] * path["stem_pool_stride"])) // path.get("pool_after_res2", 1)
