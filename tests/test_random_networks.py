"""Random networks on random clips: eager, reference and frozen against the reference in float64.

Any combination of the settings of a configuration, small: widths, depths, temporal kernels, strides, dilations, pools,
laterals, heads. Every batch norm has statistics and weights of its own, and the classifier is scaled to logits of
deviation 2. ``pytest --hypothesis-profile=explore`` draws new networks.
"""

import copy
import math
from random import Random

import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st

import slowfast_kernels as sf
from slowfast_kernels import backends
from slowfast_kernels.models import (
    HeadConfig,
    InputSpec,
    LateralConfig,
    ModelConfig,
    PathwayConfig,
    RoIConfig,
    fast_width,
)
from slowfast_kernels.testing import provider_missing, relative_l2, use_provider

ISAS = [p for p in ("cpu:avx2", "cpu:avx512", "cpu:avx512_bf16") if not provider_missing(p)]
pytestmark = pytest.mark.skipif(not ISAS, reason=f"no C++ kernels here: {backends.unavailable('cpu')}")


class Networks:
    """A random configuration, and clips for it, from a seed."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.one_of = lambda *values: self.random.choice(values)
        self.int = self.random.randint

    def pathway(self, width, channels, kind, stem_stride, pools):
        block = (
            self.one_of("bottleneck", "bottleneck", "bottleneck", "basic", "basic_transform")
            if kind is None
            else kind
        )
        dilated = block == "bottleneck" and self.random.random() < 0.3
        return PathwayConfig(
            width=width,
            in_channels=channels,
            block=block,
            blocks=tuple(self.one_of(1, 1, 2) for _ in range(4)),
            stem_kernel=self.one_of(1, 1, 3, 5, 7),
            temporal_kernels=tuple(self.one_of((1,), (1,), (3,), (3, 1), (5,)) for _ in range(4)),
            strides=self.strides,
            dilations=tuple(self.one_of(1, 2, 3) for _ in range(4)) if dilated else (1,) * 4,
            stem_stride=stem_stride,
            stem_pool_stride=pools[0],
            pool_after_res2=pools[1],
        )

    def config(self):
        """A configuration for clips of ``height`` x ``width`` pixels or more and ``frames`` Slow (or only) frames."""
        kind = self.one_of("both", "both", "both", "slow", "fast")
        both, gray = kind == "both", kind != "slow" and self.random.random() < 0.2
        alpha = self.one_of(1, 2, 4, 8, 3) if both else 1
        lateral = LateralConfig(
            kind=self.one_of(
                "conv", "conv", "conv", "time_to_channel_concat", "time_to_channel_sum", "time_sample", "none"
            ),
            kernel=self.one_of(1, 3, 5, 7, 9),
            ratio=self.one_of(1, 2, 3),
            norm=(norm := self.one_of(True, True, False)),
            relu=norm,
        )
        self.strides = self.one_of(
            (1, 2, 2, 2), (1, 2, 2, 2), (1, 2, 2, 1), tuple(self.one_of(1, 2, 3) for _ in range(4))
        )
        stem_stride, pools = self.one_of(1, 1, 1, 2), (self.one_of(1, 1, 2), self.one_of(1, 1, 2))
        block = self.one_of(None, "bottleneck")
        fast = fast_width(width := self.one_of(8, 16, 24, 32), self.one_of(1 / 8, 1 / 4, 1 / 6, 1 / 2))
        if both and lateral.kind == "time_to_channel_sum":
            block, width = "bottleneck", alpha * fast
        self.step = stem_stride * math.prod(pools)
        shared = (block, stem_stride, pools)
        self.frames = (
            self.int(1, 3) * self.step if both else self.one_of(self.step, self.step + self.int(0, 9))
        )
        semantics = self.one_of("pyslowfast", "pytorchvideo", "mmaction2")
        self.height, self.width = (self.one_of(1, self.int(1, 80), self.int(20, 80)) for _ in "hw")
        cells = [self.cells(n) for n in (self.height, self.width)]
        roi = None
        if self.random.random() < 0.25:
            roi = RoIConfig(
                resolution=self.int(1, 7),
                sampling_ratio=self.one_of(0, 0, 2),
                aligned=self.one_of(True, False),
                temporal=self.one_of("mean", "max"),
            )
        head = HeadConfig(
            classes=self.int(2, 20),
            semantics=semantics,
            activation=self.one_of("softmax", "sigmoid", "none"),
            pool=None if roi or semantics == "mmaction2" else self.one_of(None, self.int(1, min(cells))),
            roi=roi,
        )
        return ModelConfig(
            input=InputSpec(
                frames=self.frames * alpha,
                alpha=alpha,
                fast_input="gray" if gray else "rgb",
                call="pathways" if both else "clip",
            ),
            slow=None if kind == "fast" else self.pathway(width, 3, *shared),
            fast=None if kind == "slow" else self.pathway(fast, 1 if gray else 3, *shared),
            lateral=lateral,
            head=head,
        )

    def cells(self, pixels):
        """Extent of res5's map."""
        for stride in (2, 2, *self.strides):
            pixels = -(-pixels // stride)
        return pixels

    def clips(self, config, extra):
        """Clips that the head's window fits in, ``extra`` pixels larger than the smallest ones."""
        n, t = self.one_of(1, 1, 2, 3), self.frames
        generator = torch.Generator().manual_seed(self.int(0, 2**31))
        memory = self.one_of(torch.contiguous_format, torch.channels_last_3d)
        clips = []
        for name in config.pathways:
            frames = t * config.input.alpha if name == "fast" else t
            shape = n, config.pathway(name).in_channels, frames, self.height + extra, self.width + extra
            clips.append(torch.randn(shape, generator=generator).contiguous(memory_format=memory))
        return clips

    def arguments(self, config, extra=0):
        clips = self.clips(config, extra)
        call = (clips if len(clips) == 2 else clips[0],)
        if config.head.roi is None:
            return call
        n, _, _, h, w = clips[0].shape
        rows = []
        for _ in range(self.one_of(0, 1, 5)):
            (x1, x2), (y1, y2) = (sorted(self.random.uniform(-5, e + 5) for _ in "12") for e in (w, h))
            rows.append([self.int(0, n - 1), x1, y1, x2, y2])
        return (*call, torch.tensor(rows).view(-1, 5))


def randomise(model, seed, args):
    """Batch norms with statistics and weights that every output depends on; logits of deviation 2."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(x, low, high):
        x.copy_(low + (high - low) * torch.rand(x.shape, generator=generator))

    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * math.sqrt(2 / max(1, p[0].numel())))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                for x, low, high in ((module.weight, 0.5, 1.5), (module.running_var, 0.5, 2.0)):
                    uniform(x, low, high)
                for x in (module.bias, module.running_mean):
                    uniform(x, -0.3, 0.3)
        head, model.head.activation = model.head.activation, "none"
        logits = reference(model, args)
        model.head.activation = head
        if logits.numel() > 1 and 0 < logits.std() < math.inf:
            for p in model.head.proj.parameters():
                p.mul_(2 / logits.std())


def wide(args):
    return [[x.double() for x in a] if isinstance(a, list) else a.double() for a in args]


def reference(model, args):
    """The plain PyTorch path in float64."""
    with torch.inference_mode(), sf.use_backend("reference"):
        return copy.deepcopy(model).double()(*wide(args))


def autocast(model, args):
    """PyTorch's own bfloat16."""
    with torch.inference_mode(), sf.use_backend("reference"), torch.autocast("cpu", torch.bfloat16):
        return model(*args)


@given(seed=st.integers(0, 2**32 - 1))
def test_a_random_network(seed):
    draw = Networks(seed)
    config = draw.config()
    model = sf.models.build(config).eval()
    first = draw.arguments(config)
    randomise(model, seed, first)
    note(f"{config}")
    isa = draw.one_of(*ISAS)
    with use_provider(isa):
        frozen, low = sf.freeze(model), sf.freeze(model, torch.bfloat16)
        for args in (first, draw.arguments(config, draw.int(0, 9))):
            note(
                f"clips {[list(x.shape) for x in (args[0] if isinstance(args[0], list) else [args[0]])]} on {isa}"
            )
            expected = reference(model, args)
            with torch.inference_mode():
                results = {"eager": model(*args), "frozen": frozen(*args)}
                with sf.use_backend("reference"):
                    results["reference"] = model(*args)
            for name, got in results.items():
                assert relative_l2(got, expected) < 1e-5, name
            error, peer = relative_l2(low(*args), expected), relative_l2(autocast(model, args), expected)
            assert error < 2 * peer + 1e-2, f"frozen in bfloat16: {error:.3g}, PyTorch's autocast {peer:.3g}"
