"""`accelerate`: what it leaves alone, what it copies, which heads and calls it keeps, what it says."""

import contextlib
import operator
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import live
import numpy
import pytest
import torch
import torch.distributed
import torch.nn.utils.prune
from live import (
    FAST,
    SLOW,
    MmDetector,
    MmPath,
    MmRecognizer,
    MmRecognizer3D,
    MmSlowFast,
    PySlowFastNet,
    randomise,
)
from torch import nn

from slowfast_kernels import accelerate, freeze
from slowfast_kernels.inference import Inference
from slowfast_kernels.models import UnrecognisedModule, create, from_module
from slowfast_kernels.testing import relative_l2

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = 2e-5
CLASSES = 7


def tiny(**changes) -> PySlowFastNet:
    """A network of PySlowFast, as small as they come: clips of 4 and 8 frames of 32 pixels, or more."""
    settings = {"alpha": 2, "kernel": 5, "crop": 32, "classes": CLASSES, "blocks": (1, 1, 1, 1), **changes}
    return randomise(PySlowFastNet(((8, 1, SLOW), (2, 5, FAST)), **settings))


def tiny_ptv(**changes):
    """Its relative of pytorchvideo."""
    pytest.importorskip("pytorchvideo", reason="pytorchvideo is not installed (requirements-nodeps.txt)")
    settings = {
        "model_depth": 18,
        "stem_dim_outs": (8, 1),
        "model_num_class": CLASSES,
        "slowfast_fusion_conv_stride": (2, 1, 1),
        "head_pool_kernel_sizes": ((4, 1, 1), (8, 1, 1)),
        **changes,
    }
    return randomise(live.pytorchvideo()[0].create_slowfast(**settings))


def clips(frames: int = 8, size: int = 32, alpha: int = 2, batch: int = 2, channels: int = 3):
    clip = torch.randn(batch, channels, frames, size, size, generator=torch.Generator().manual_seed(1))
    return [clip[:, :, ::alpha].contiguous(), clip] if alpha else clip


def answer(module: nn.Module, *given):
    """What a module returns in eval mode for arguments that it may write into."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        return module(*(list(x) if isinstance(x, list) else x for x in given))


@contextlib.contextmanager
def silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def check(module: nn.Module, *given, **settings) -> nn.Module:
    """The accelerated module, after it gave the module's answer without a warning."""
    module.eval()
    expected = answer(module, *given)
    with silence():
        fused = accelerate(module, **settings)
    assert any(isinstance(part, Inference) for part in fused.modules())
    got = answer(fused, *given)
    assert got.shape == expected.shape and relative_l2(got, expected) < CLOSE
    return fused


def left_alone(module: nn.Module, *names: str) -> str:
    """The warning with which a module comes back."""
    with pytest.warns(UserWarning, match="left as it is") as caught:
        assert accelerate(module) is module
    message = str(caught[0].message)
    assert all(name in message for name in names), message
    return message


class Around(nn.Module):
    """Somebody's module around a network: after it a layer with dropout, a buffer and settings."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.post, self.dropout = net, nn.Linear(CLASSES, 3), nn.Dropout(0.5)
        self.register_buffer("offset", torch.ones(3))
        self.settings = {"names": ["a", "b", "c"]}

    def forward(self, x):
        return self.post(self.dropout(self.net(x))) + self.offset


# -- the argument is never changed --

DICTIONARIES = ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
                "_state_dict_hooks", "_load_state_dict_pre_hooks")  # fmt: skip


def state_of(module: nn.Module) -> list:
    """Everything of a module: which objects it holds where, and what is in its tensors."""
    state: list = [hash(bytes(torch.get_rng_state()))]
    for name, part in module.named_modules(remove_duplicate=False):
        held = vars(part)
        state.append((name, id(part), type(part), part.training))
        state += [
            (kind, [(k, id(v)) for k, v in held[kind].items()]) for kind in DICTIONARIES if kind in held
        ]
        state.append(
            sorted((k, id(v)) for k, v in held.items() if not k.startswith("__") and k not in DICTIONARIES)
        )
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        state.append((name, id(value), value.requires_grad, value.grad is None))
        if not nn.parameter.is_lazy(value) and type(value.data) is torch.Tensor:
            state.append(
                (value.dtype, hash(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()))
            )
    return state


def with_compiled_child() -> nn.Module:
    return Around(torch.compile(tiny(), backend="eager"))


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def with_hook(net: nn.Module, at: str = "s3") -> nn.Module:
    net.get_submodule(at).register_forward_hook(lambda module, given, out: None)
    return net


def altered(net: nn.Module, path: str, change) -> nn.Module:
    change(net.get_submodule(path))
    return net


def quantised(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})


def traced(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net, (clips(),), check_trace=False)


def in_ddp(net: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net)


def sharded(net: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(net, device_id=torch.device("cpu"))


def sharded_in_place(net: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    return net


def with_lazy_head(net: nn.Module) -> nn.Module:
    net.head.projection = nn.LazyLinear(CLASSES)
    return net


WEIGHT, OLD = nn.utils.parametrizations.weight_norm, torch.nn.utils.weight_norm
ZOO: dict[str, tuple[Callable[[], Any], bool | None]] = {
    "plain": (lambda: tiny(), True),
    "training": (lambda: tiny().train(), True),
    "half": (lambda: tiny().bfloat16(), True),
    "data parallel": (lambda: nn.DataParallel(tiny()), True),
    "ddp": (lambda: in_ddp(tiny()), True),
    "compiled": (lambda: torch.compile(tiny(), backend="eager"), True),
    "compiled ddp": (lambda: torch.compile(in_ddp(tiny()), backend="eager"), True),
    "compiled in place": (lambda: compiled_in_place(tiny()), True),
    "compiled child": (with_compiled_child, True),
    "compiled around": (lambda: torch.compile(with_compiled_child(), backend="eager"), True),
    "parallel child": (lambda: Around(nn.DataParallel(tiny())), True),
    "around": (lambda: Around(tiny()).train(), True),
    "averaged": (lambda: torch.optim.swa_utils.AveragedModel(tiny()), True),
    "ours": (lambda: create("slow_8x8_r50", blocks=(1, 1, 1, 1), classes=CLASSES, crop=32).eval(), True),
    "own head": (lambda: altered(tiny(), "head", lambda m: setattr(m, "projection", nn.Identity())), True),
    "lazy head": (lambda: with_lazy_head(tiny()), True),
    "hook in the head": (lambda: with_hook(tiny(), "head.dropout"), True),
    "weight norm around": (lambda: altered(Around(tiny()), "post", OLD), True),
    "spectral norm around": (lambda: altered(Around(tiny()).train(), "post", nn.utils.spectral_norm), True),
    "parametrised around": (lambda: altered(Around(tiny()), "post", WEIGHT), True),
    "scripted around": (lambda: nn.Sequential(tiny(), torch.jit.script(nn.Linear(CLASSES, 3))).eval(), True),
    "quantised head": (lambda: quantised(tiny()), True),
    "hooked": (lambda: with_hook(tiny()), False),
    "weight norm": (lambda: altered(tiny(), "s3.pathway0_res0.branch2.a", OLD), False),
    "parametrised": (lambda: altered(tiny(), "s3.pathway0_res0.branch2.a", WEIGHT), False),
    "spectral norm": (
        lambda: altered(
            tiny().train(), "s3.pathway0_res0.branch2.a", nn.utils.parametrizations.spectral_norm
        ),
        False,
    ),
    "pruned": (
        lambda: altered(
            tiny(),
            "s3.pathway0_res0.branch2.a",
            lambda m: nn.utils.prune.random_unstructured(m, "weight", 0.5),
        ),
        False,
    ),
    "traced": (lambda: traced(tiny()), False),
    "traced child": (lambda: Around(traced(tiny())), False),
    "sharded": (lambda: sharded(tiny()), False),
    "sharded in place": (lambda: sharded_in_place(tiny()), False),
    "no network": (lambda: nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU()), False),
    "frozen": (lambda: freeze(create("slow_8x8_r50", blocks=(1, 1, 1, 1), classes=5, crop=32)), None),
}


@pytest.fixture(scope="module")
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ZOO)
def test_the_argument_is_as_it_was(name, process_group):
    build, recognised = ZOO[name]
    module = build()
    before = state_of(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fused = accelerate(module)
    assert state_of(module) == before
    if recognised is None:
        assert fused is module and not caught
    elif not recognised:
        assert fused is module and any("left as it is" in str(w.message) for w in caught)
    else:
        assert fused is not module and any(isinstance(part, Inference) for part in fused.modules())
        shared = {id(p) for p in (*module.parameters(), *module.buffers(), *module.modules())}
        assert shared.isdisjoint(map(id, (*fused.parameters(), *fused.buffers(), *fused.modules())))
        if name not in ("lazy head", "half"):  # which cannot be called
            given = clips() if name != "ours" else clips(alpha=0)
            assert relative_l2(answer(fused, given), answer(module.eval(), given)) < CLOSE
            assert not caught


@pytest.mark.parametrize("what", [None, "model.pyth", {"model_state": {}}, torch.zeros(1), lambda x: x])
def test_what_is_no_module(what):
    for function in (accelerate, from_module):
        with pytest.raises(
            TypeError, match=rf"expected a module.*got {type(what).__name__}.*load_checkpoint\(path\)"
        ):
            function(what)


class TestCopies:
    def test_share_nothing(self):
        module = Around(tiny()).train()
        module.post.register_forward_hook(lambda part, given, out: None)
        given, before = clips(), state_of(module)
        fused = accelerate(module)
        expected = answer(fused, given)
        assert not any(part.training for part in fused.modules()) and module.training
        fused.train()
        fused.register_forward_hook(lambda part, given, out: out * 2)
        fused.post.register_forward_hook(lambda part, given, out: out * 2)
        fused.extra, fused.post = nn.Linear(1, 1), nn.Linear(CLASSES, 3)
        fused.offset.zero_()
        fused.settings["names"].append("d")
        assert state_of(module)[1:] == before[1:] and module.settings == {"names": ["a", "b", "c"]}
        fused = accelerate(module)
        module.requires_grad_(False).post.weight.zero_()
        module.net.s1.pathway0_stem.conv.weight.zero_()
        module.register_forward_hook(lambda part, given, out: out * 2)
        assert torch.equal(answer(fused, given), expected)

    def test_networks_are_copied_once(self, monkeypatch):
        module = Around(tiny())
        module.again = module.net  # the same network under another name
        copied = []
        monkeypatch.setattr(nn.Conv3d, "__deepcopy__", lambda conv, memo: copied.append(conv), raising=False)
        fused = accelerate(module)
        assert not copied and fused.again is fused.net

    def test_a_forward_that_belongs_to_the_original(self):
        module: Any = Around(tiny())
        before = module.forward
        module.forward = lambda x: before(x) + 1
        left_alone(module, "Around.forward", "would call the original")

    def test_what_cannot_be_copied(self):
        module: Any = Around(tiny())
        module.stream = (i for i in range(3))
        left_alone(module, "a copy of it", "generator")


# -- what is not in the weights --


class Doubled(PySlowFastNet):
    def forward(self, x, bboxes=None):
        return super().forward(x, bboxes) * 2


class Leaky(nn.ReLU):
    def forward(self, x):
        return nn.functional.leaky_relu(x, 0.1)


class Standardised(nn.Conv3d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def replaced(net: nn.Module, path: str, part: nn.Module) -> nn.Module:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, part)
    return net


def standardised(net: nn.Module) -> nn.Module:
    net.s2.pathway0_res0.branch2.a.__class__ = Standardised
    return net


def patched(net: nn.Module, path: str = "") -> nn.Module:
    part = net.get_submodule(path)
    before = part.forward
    part.forward = lambda x: before(x) + 1
    return net


def hooked(net: nn.Module, path: str = "", pre: bool = False) -> nn.Module:
    part = net.get_submodule(path)
    if pre:
        part.register_forward_pre_hook(lambda module, given: None)
    else:
        part.register_forward_hook(lambda module, given, out: out * 0.5)
    return net


@pytest.mark.parametrize(
    "module, names",
    [
        (lambda: hooked(tiny()), ["PySlowFastNet (a forward hook, hooked."]),
        (lambda: hooked(tiny(), "s4"), ["s4 (a forward hook"]),
        (lambda: hooked(tiny(), "s4", pre=True), ["s4 (a forward pre-hook"]),
        (lambda: patched(tiny()), ["PySlowFastNet.forward (replaced on the instance, by patched."]),
        (lambda: patched(tiny(), "s2.pathway0_res0"), ["s2.pathway0_res0.forward (replaced on the instance"]),
        (lambda: randomise(Doubled(classes=CLASSES)), ["Doubled replaces that of PySlowFastNet"]),
        (lambda: replaced(tiny(), "s2.pathway0_res0.relu", Leaky()), ["relu.forward (Leaky replaces that of ReLU)"]),
        (lambda: standardised(tiny()), ["Standardised replaces that of Conv3d"]),
        (lambda: hooked(nn.DataParallel(tiny())), ["DataParallel (a forward hook"]),
        (lambda: hooked(torch.compile(tiny(), backend="eager")), ["OptimizedModule (a forward hook"]),
    ],
    ids=["hook", "inner hook", "pre-hook", "instance", "inner instance", "subclass", "activation", "convolution",
         "wrapper", "compiled"],
)  # fmt: skip
def test_what_changes_answers_is_refused(module, names):
    module = module()
    left_alone(module, *names)
    with pytest.raises(UnrecognisedModule) as error:
        from_module(module)
    assert all(name in str(error.value) for name in names)


def test_a_forward_replaced_on_the_class(monkeypatch):
    def forward(self, x, bboxes=None):
        return x[0].mean((2, 3, 4))

    monkeypatch.setattr(PySlowFastNet, "forward", forward)
    left_alone(tiny(), "replaced on the class PySlowFastNet")


def test_a_subclass_of_pytorchvideo():
    net = tiny_ptv()
    Net = type(net)
    net.__class__ = type(
        "Scaled", (Net,), {"forward": lambda self, x: Net.forward(self, x) * 2, "__module__": "own"}
    )
    left_alone(net, "Scaled replaces that of Net")


def test_blocks_of_pytorchvideo_in_a_class_of_ones_own():
    class Mean(nn.Module):
        def __init__(self, blocks):
            nn.Module.__init__(self)
            self.blocks = blocks

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x.exp()

    left_alone(Mean(tiny_ptv().blocks), "Mean.forward (expected the blocks in order, and no more)")

    class Chain(nn.Module):
        __init__ = Mean.__init__

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    check(Chain(tiny_ptv().blocks), clips())


def test_a_network_of_pytorchvideo_under_its_usual_name():
    class Probabilities(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = tiny_ptv()

        def forward(self, x):
            return self.model(x).softmax(-1)

    assert type(check(Probabilities(), clips())) is Probabilities
    with pytest.raises(UnrecognisedModule, match=r"got one inside"):
        from_module(Probabilities())


def test_hooks_that_change_no_answer():
    net = tiny()
    net.s4.register_full_backward_hook(lambda *given: None)
    net.register_state_dict_pre_hook(lambda *given: None)
    check(net, clips())


@pytest.mark.parametrize("around", [Around, nn.DataParallel])
def test_hooks_around_a_network_are_kept(around):
    seen = []
    module = around(tiny()) if around is Around else nn.Sequential(nn.DataParallel(tiny()), nn.Identity())

    def hook(part, given, out):
        seen.append(out)
        return out + 1

    list(module.children())[-1].register_forward_hook(hook)
    check(module.eval(), clips())
    assert len(seen) == 2


# -- heads of somebody's own --


class TestHeads:
    @pytest.mark.parametrize(
        "proj",
        [
            lambda proj: nn.Sequential(nn.Dropout(0.5), proj),
            lambda proj: nn.Identity(),
            lambda proj: nn.Sequential(nn.Linear(proj.in_features, 16), nn.GELU(), nn.Linear(16, 4)),
            lambda proj: nn.Linear(proj.in_features, 4, bias=False),
        ],
        ids=["dropout", "identity", "layers", "without bias"],
    )
    @pytest.mark.parametrize("size", [32, 64])
    def test_pytorchvideo(self, proj, size):
        net = tiny_ptv()
        net.blocks[6].proj = proj(net.blocks[6].proj)
        fused = check(net, clips(size=size), strict=True)
        assert [type(part).__name__ for part in fused.head] == ["PoolConcatPathway", "ResNetBasicHead"]
        with pytest.raises(UnrecognisedModule, match=r"blocks\.6\.proj \(expected the classifier"):
            from_module(net)

    def test_softmax_over_another_dimension(self):
        net = tiny_ptv()
        net.blocks[6].activation = nn.Softmax(dim=-1)
        check(net, clips(size=64))

    def test_one_pathway(self):
        net = randomise(live.pytorchvideo()[1].create_resnet(
            stem_dim_out=8, model_depth=50, head_pool_kernel_size=(4, 1, 1), model_num_class=CLASSES))  # fmt: skip
        net.blocks[5].proj = nn.Identity()
        check(net, clips(4, alpha=0), strict=True)

    def test_blocks_without_the_last(self):
        net = tiny_ptv()
        part = nn.Sequential(*net.blocks[:-1])
        check(part, clips(size=64), strict=True)
        check(nn.Sequential(part, nn.Flatten()), clips())
        net.blocks = net.blocks[:-1]
        check(net, clips(size=64), strict=True)
        net.blocks = net.blocks[:5]
        assert [list(x.shape) for x in answer(accelerate(net, strict=True), clips())] == [
            [2, 256, 4, 1, 1],
            [2, 32, 8, 1, 1],
        ]

    @pytest.mark.parametrize("detects", [False, True])
    def test_pyslowfast(self, detects):
        net, boxes = (
            tiny(detects=detects, act="sigmoid"),
            [torch.tensor([[0, 1, 1, 20, 30.0]])] if detects else [],
        )
        net.head.projection = nn.Sequential(nn.Dropout(0.9), net.head.projection)
        fused = check(net, clips(size=64), *boxes)
        if detects:
            assert torch.equal(fused(clips(size=64), bboxes=boxes[0]), fused(clips(size=64), *boxes))

    def test_a_whole_head(self):
        class Longest(nn.Module):
            def forward(self, maps):
                return torch.cat([x.amax((2, 3, 4)) for x in maps], 1)

        net = tiny()
        net.head = Longest()
        check(net, clips(12))  # there is no window that fixes the length of clips

    def test_normalised_features(self):
        class Normalised(live.PyHead):
            l2norm_feats = True

            def forward(self, x):
                x = torch.cat([getattr(self, f"pathway{p}_avgpool")(y) for p, y in enumerate(x)], 1)
                x = nn.functional.normalize(x.permute(0, 2, 3, 4, 1), dim=1)
                return self.act(self.projection(x)).mean((1, 2, 3))

        net = tiny()
        net.head = randomise(Normalised((256, 64), CLASSES, [[4, 1, 1], [8, 1, 1]], "softmax"))
        check(net, clips(size=64))
        del Normalised.forward
        with pytest.raises(UnrecognisedModule, match="l2norm_feats"):
            from_module(net)

    def test_in_a_detection_network(self):
        net = randomise(live.pytorchvideo()[0].create_slowfast_with_roi_head(
            model_depth=18, stem_dim_outs=(8, 1), model_num_class=CLASSES,
            head_pool_kernel_sizes=((2, 1, 1), (8, 1, 1))))  # fmt: skip
        net.detection_head.proj = nn.Sequential(nn.Dropout(0.5), net.detection_head.proj)
        check(net, clips(alpha=4, size=64), torch.tensor([[0, 1, 1, 40, 50.0], [1, 9, 0, 50, 60.0]]))

    def test_in_a_wrapper_of_pyslowfast(self):
        class PTVSlowFast(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model, self.post_act = model, nn.Softmax(dim=1)

            def forward(self, x, bboxes=None):
                return self.post_act(self.model(x)).mean([2, 3, 4])

        wrapper = PTVSlowFast(tiny_ptv(head_output_with_global_average=False))
        fused = check(wrapper, clips(size=64))
        assert isinstance(fused, Inference)
        wrapper.model.blocks[6].proj = nn.Sequential(nn.Dropout(0.5), wrapper.model.blocks[6].proj)
        assert type(check(wrapper, clips(size=64))) is PTVSlowFast

    def test_the_head_trains(self):
        net = tiny()
        net.head.projection = nn.Sequential(nn.Dropout(0.5), net.head.projection)
        fused = accelerate(net).train()
        assert set(dict(fused.named_parameters())) == {"head.projection.1.weight", "head.projection.1.bias"}
        fused(clips()).square().sum().backward()
        assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in fused.parameters())

    def test_in_bfloat16_the_head_keeps_its_type(self):
        net = tiny(act="none")
        net.head.projection = nn.Sequential(net.head.projection)
        out = answer(accelerate(net, torch.bfloat16), clips())
        assert out.dtype == torch.float32 and 1e-6 < relative_l2(out, answer(net, clips())) < 0.1


class TestOutput:
    def test_of_a_whole_network(self):
        net = tiny()
        maps = accelerate(net, output="maps")(clips(size=64))
        features = accelerate(net, output="features")(clips(size=64))
        assert [list(x.shape) for x in maps] == [[2, 256, 4, 2, 2], [2, 64, 8, 2, 2]]
        assert relative_l2(features, torch.cat([x.mean((2, 3, 4)) for x in maps], 1)) < CLOSE
        net.head.projection, net.head.act = nn.Identity(), None
        assert relative_l2(features, answer(net, clips(size=64))) < CLOSE

    def test_of_a_network_with_another_head(self):
        net = tiny()
        net.head.projection = nn.Identity()
        assert len(accelerate(net, output="maps")(clips())) == 2
        with pytest.raises(UnrecognisedModule, match="head.projection"):
            accelerate(net, output="features")

    def test_of_a_larger_module(self):
        with pytest.raises(UnrecognisedModule):
            accelerate(Around(tiny()), output="features")


class TestStrict:
    def test_raises(self):
        for module in (nn.Linear(3, 3), Around(tiny()), hooked(tiny())):
            with pytest.raises(UnrecognisedModule), silence():
                accelerate(module, strict=True)

    def test_takes_what_is_whole(self):
        for module in (tiny(), nn.DataParallel(tiny()), MmRecognizer(MmPath(8))):
            with silence():
                assert accelerate(module, strict=True) is not module


# -- comparing the answers --


class Restless(nn.Module):
    """Counts its calls in a buffer and draws random numbers."""

    calls: torch.Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.noise = net, 0.0
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.net(x) + self.noise * torch.randn(()) + self.noise * self.training


class TestVerify:
    @pytest.mark.parametrize(
        "build", [lambda: tiny(), lambda: Restless(tiny()), lambda: Restless(tiny_ptv())]
    )
    def test_right_answers(self, build):
        module, given = build().train(), clips()
        module.net = torch.compile(module.net, backend="eager") if hasattr(module, "net") else None
        before, copies = state_of(module), list(given)
        accelerate(module, verify=given, strict=not hasattr(module, "calls"))
        assert state_of(module) == before and all(a is b for a, b in zip(given, copies, strict=True))

    def test_several_arguments(self):
        net, boxes = tiny(detects=True, act="sigmoid"), torch.tensor([[0, 1, 1, 20, 30.0]])
        accelerate(net, verify=(clips(size=64), boxes))

    @pytest.mark.parametrize("dtype", [None, torch.bfloat16])
    def test_wrong_answers(self, dtype):
        class Own(nn.Module):  # its forward is the class's own, which cannot be seen
            __init__ = PySlowFastNet.__init__

            def forward(self, x):
                return PySlowFastNet.forward(self, [y / 3 for y in x])

        def made(self: nn.Module) -> None:
            nn.Module.__init__(self)
            vars(self).update(vars(tiny()))

        Own.__init__ = made
        module = Own()
        with pytest.raises(
            RuntimeError, match=r"relative error of at most \de-0\d, got 0\.\d+: something in Own"
        ):
            accelerate(module, dtype, verify=clips())

    def test_bfloat16(self):
        accelerate(tiny(), torch.bfloat16, verify=clips())


# -- calls --


class TestMmaction2:
    @pytest.mark.parametrize("resample, alpha", [(8, 4), (8, 8), (4, 2)])
    def test_frames_taken(self, resample, alpha):
        net = randomise(MmRecognizer(MmSlowFast(alpha, resample_rate=resample)))
        check(net, clips(16, alpha=0, size=64), strict=True)

    def test_all_calls(self):
        net = randomise(MmRecognizer3D(MmSlowFast(4, resample_rate=8)))
        given = torch.stack([clips(16, 64, alpha=0, batch=3)] * 2)
        with silence():
            fused = accelerate(net, strict=True)
        assert type(fused) is MmRecognizer3D
        for settings in ({}, {"stage": "head"}, {"mode": "predict", "data_samples": ["a", "b"]}):
            with torch.no_grad():
                expected, got = net(given, **settings), fused(given, **settings)
            if "mode" in settings:
                assert [name for name, _ in got] == ["a", "b"]
                expected, got = [score for _, score in expected], [score for _, score in got]
            assert type(got) is type(expected)
            pairs = zip(expected, got, strict=True) if isinstance(got, tuple | list) else [(expected, got)]
            assert all(relative_l2(b, a) < CLOSE for a, b in pairs)

    def test_output(self):
        net = randomise(MmRecognizer3D(MmSlowFast(4, resample_rate=8)))
        given = torch.stack([clips(16, 64, alpha=0, batch=3)] * 2)
        scores = accelerate(net, output="scores")
        assert relative_l2(scores(given), answer(partial(net, stage="head"), given)) < CLOSE
        assert accelerate(net, output="features")(given).shape == (6, 640)
        with pytest.raises(TypeError, match="expected clips alone .* got stage"):
            scores(given, stage="head")

    def test_inside_a_larger_module(self):
        check(nn.Sequential(randomise(MmRecognizer(MmPath(8))), nn.Linear(11, 2)), clips(alpha=0, size=64))

    def test_stem_without_pool(self):
        left_alone(MmRecognizer(MmPath(8, with_pool1=False)), "backbone.maxpool")

    def test_several_stages(self):
        net: Any = MmRecognizer(MmPath(8))
        net.backbone.out_indices = (2, 3)
        left_alone(net, "backbone.out_indices")

    def test_without_activation(self):
        net = MmRecognizer(MmPath(8))
        del net.backbone.layer2[0].conv1.activate
        left_alone(net, "layer2.0.conv1.activate (expected ReLU, got nothing)")

    def test_without_lateral_connections(self):
        check(randomise(MmRecognizer(MmSlowFast(4, lateral=False))), clips(16, alpha=0, size=64))

    def test_detector(self):
        net = randomise(MmDetector(MmSlowFast(4)))
        check(net, clips(16, 64, alpha=0), torch.tensor([[0, 5, 10, 60, 50.0], [1, 0, 0, 63, 63.0]]))

    def test_a_pathway_is_not_taken_for_a_network(self):
        net = MmRecognizer(MmSlowFast(4, lateral=False))
        left_alone(hooked(net, "backbone.slow_path.layer1"), "backbone.slow_path.layer1 (a forward hook")


class TestLengths:
    @pytest.mark.parametrize("frames, right", [(3, False), (4, True), (5, True), (6, False)])
    def test_a_window_behind_a_pool(self, frames, right):
        net = randomise(PySlowFastNet(((8, 5, live.I3D),), pool=2, frames=5, crop=32, blocks=(1, 1, 1, 1)))
        if right:
            check(net, [clips(frames, alpha=0)])
        else:
            with pytest.raises(ValueError, match=f"expected clips of 4 frames .* got {frames}"):
                accelerate(net)([clips(frames, alpha=0)])

    def test_the_trainable_counterpart(self):
        net = live.pytorchvideo()[1].create_resnet(
            stem_dim_out=8, head_pool_kernel_size=(4, 2, 2), model_num_class=5
        )
        ours = from_module(randomise(net))
        given = clips(4, 64, alpha=0)
        assert relative_l2(answer(ours, given), answer(net, given)) < CLOSE
        for model in (ours, freeze(ours), accelerate(net)):
            with pytest.raises(ValueError, match="expected clips of 4 frames .* got 8"):
                model(clips(8, 64, alpha=0))

    def test_without_a_window(self):
        check(tiny(window=False), clips(16))


class TestAccepted:
    @pytest.mark.parametrize(
        "fusion", [lambda x, y: x + y, lambda x, y: torch.add(y, x), operator.add, torch.add]
    )
    def test_sums(self, fusion):
        net = tiny_ptv()
        for block in net.modules():
            if hasattr(block, "branch_fusion"):
                block.branch_fusion = fusion
        assert isinstance(check(net, clips()), Inference)

    @pytest.mark.parametrize("kind", ["difference", "closure", "default", "shape"])
    def test_other_fusions(self, kind):
        scale = 1.0
        fusions: dict[str, Callable[..., torch.Tensor]] = {
            "difference": lambda x, y: x - y,
            "closure": lambda x, y: x + scale * y,
            "default": lambda x, y, scale=1: x + y * scale,
            "shape": lambda x, y: x + y if x.shape[1] < 64 else x,
        }
        net = tiny_ptv()
        net.blocks[2].multipathway_blocks[0].res_blocks[0].branch_fusion = fusions[kind]
        left_alone(net, "branch_fusion (expected the sum")

    def test_numbers_of_numpy(self):
        two, one = numpy.int64(4), numpy.int64(1)
        net = tiny_ptv(head_pool_kernel_sizes=((two, one, one), (2 * two, one, one)))
        ours = from_module(net).config
        assert type(ours.input.frames) is int and ours.input.frames == 8
        check(net, clips())

    def test_batch_norms_of_multigrid_training(self):
        net = tiny()
        for parent in list(net.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm3d):
                    setattr(parent, name, live.SubBatchNorm3d(child.num_features))
        assert isinstance(check(net.eval(), clips()), Inference)
        assert from_module(net).res2["slow"][0].a.bn.eps == 1e-3

    def test_the_digits_of_float64(self):
        net = tiny().double()
        for value in net.parameters():
            value.data *= 1 + 1e-10
        given = [x.double() for x in clips()]
        assert relative_l2(answer(from_module(net), given), answer(net, given)) < 1e-12

    def test_one_channel_of_the_fast_pathway(self):
        net = tiny()
        net.s1.pathway1_stem.conv = live.conv(1, 2, (5, 7, 7), (1, 2, 2))
        slow, fast = clips()
        assert isinstance(check(randomise(net), [slow, fast[:, :1].contiguous()]), Inference)


# -- messages --


class TestMessages:
    def test_what_is_supported(self):
        message = left_alone(nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU()))
        assert "SlowFast, Slow, Fast-only, I3D and C2D networks" in message

    def test_expected_against_got(self):
        net = tiny()
        net.s2.pathway0_res0.branch2.b = live.conv(8, 12, (1, 3, 3))
        left_alone(
            net, "s2.pathway0_res0.branch2.b.weight (expected shape [8, 8, 1, 3, 3], got [12, 8, 1, 3, 3])"
        )

    def test_a_short_list(self):
        message = left_alone(tiny_ptv(norm=partial(nn.InstanceNorm3d, affine=True, track_running_stats=True)))
        assert "more" in message and len(message) < 600

    def test_non_local_blocks(self):
        net = tiny()
        net.s3.pathway0_nonlocal1 = nn.Conv3d(32, 32, 1)
        left_alone(net, "s3.pathway0_nonlocal1.weight", "without non-local blocks")

    def test_of_a_head_only_what_there_is(self):
        net = tiny_ptv()
        net.blocks[6].proj = nn.Identity()
        with pytest.raises(UnrecognisedModule) as error:
            from_module(net)
        assert error.value.parts == [
            "blocks.6.proj (expected the classifier, Linear with bias, got Identity)"
        ]

    @pytest.mark.parametrize(
        "module, family",
        [
            ("x3d", "like X3D"),
            ("csn", "like CSN"),
            ("r2plus1d", "like R(2+1)D"),
            ("vision_transformers", "MViT"),
            ("3x3x3", "R3D"),
        ],
    )
    def test_families(self, module, family):
        pytest.importorskip("pytorchvideo", reason="pytorchvideo is not installed (requirements-nodeps.txt)")
        from pytorchvideo.models import csn, r2plus1d, vision_transformers, x3d

        live.pytorchvideo()
        build = {
            "x3d": lambda: x3d.create_x3d(input_clip_length=4, input_crop_size=64, model_num_class=4),
            "csn": lambda: csn.create_csn(model_num_class=4, stem_dim_out=8),
            "r2plus1d": lambda: r2plus1d.create_r2plus1d(model_num_class=4, stem_dim_out=8),
            "vision_transformers": lambda: vision_transformers.create_multiscale_vision_transformers(
                spatial_size=32, temporal_size=4, depth=1, head_num_classes=4
            ),
            "3x3x3": lambda: nn.Sequential(
                nn.Conv3d(3, 8, (3, 7, 7)), *(nn.Conv3d(8, 8, 3) for _ in range(3))
            ),
        }
        left_alone(build[module](), "this looks like", family)
