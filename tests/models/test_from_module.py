"""Live models of other libraries: recognised by structure, carried over with their weights, accelerated."""

import copy
import warnings
from typing import Any

import live
import pytest
import torch
from live import I3D, SLOW, MmPath, MmRecognizer, MmSlowFast, PySlowFastNet, randomise
from torch import nn

import slowfast_kernels
from slowfast_kernels import accelerate
from slowfast_kernels.models import SlowFast, UnrecognisedModule, create, from_module
from slowfast_kernels.testing import relative_l2

pytestmark = pytest.mark.usefixtures("one_thread")

BOXES = torch.tensor([[0, 5, 10, 60, 50.0], [1, 0, 0, 63, 63.0], [1, 30, 30, 37, 45.0], [0, 50, 2, 90, 40.0]])


def clips(frames: int, size: int, alpha: int | None = None, batch: int = 2):
    clip = torch.randn(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1))
    return clip if alpha is None else [clip[:, :, ::alpha].contiguous(), clip]


def check(module: nn.Module, given, *boxes, tolerance: float = 2e-5) -> SlowFast:
    """Counterpart and accelerated module answer as the module does, called the same way."""
    randomise(module)
    original = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        # pytorchvideo writes into the caller's list
        expected = module(list(given) if isinstance(given, list) else given, *boxes)
    counterpart = from_module(module)
    assert isinstance(counterpart, SlowFast) and not counterpart.training
    ours = given
    if isinstance(given, torch.Tensor) and counterpart.config.input.call == "pathways":
        ours = [given[:, :, :: counterpart.config.input.alpha], given]
    with torch.no_grad():
        assert relative_l2(counterpart(ours, *boxes), expected) < tolerance
    fused = accelerate(module)
    frozen = [parameter for name, parameter in fused.named_parameters() if not name.startswith("cls_head.")]
    assert fused is not module and not frozen  # of mmaction2's recognisers the head is kept
    before = list(given) if isinstance(given, list) else None
    out = fused(given, *boxes)
    assert out.shape == expected.shape and relative_l2(out, expected) < tolerance
    if before is not None:
        assert len(given) == len(before) and all(a is b for a, b in zip(given, before, strict=True))
    assert all(torch.equal(value, original[key]) for key, value in module.state_dict().items())
    return counterpart


@pytest.fixture(scope="module")
def ptv():
    pytest.importorskip("pytorchvideo", reason="pytorchvideo is not installed (requirements-nodeps.txt)")
    return live.pytorchvideo()


def small_slowfast(ptv, **changes):
    settings = {
        "stem_dim_outs": (16, 2),
        "model_num_class": 11,
        "head_pool_kernel_sizes": ((2, 2, 2), (8, 2, 2)),
        **changes,
    }
    return ptv[0].create_slowfast(**settings)


class TestPytorchvideo:
    @pytest.mark.parametrize("size", [64, 96])  # one position of the head's window, and four
    @pytest.mark.parametrize("depth", [18, 50, 101])
    def test_slowfast(self, ptv, depth, size):
        config = check(small_slowfast(ptv, model_depth=depth), clips(8, size, 4)).config
        assert config.source == config.head.semantics == "pytorchvideo"
        assert (config.input.alpha, config.input.frames, config.input.crop) == (4, 8, 64)
        assert config.slow.stage_blocks[2] == {18: 1, 50: 6, 101: 23}[depth]

    def test_slowfast_alpha_8(self, ptv):
        model = small_slowfast(
            ptv,
            slowfast_fusion_conv_kernel_size=(5, 1, 1),
            slowfast_fusion_conv_stride=(8, 1, 1),
            head_pool_kernel_sizes=((2, 2, 2), (16, 2, 2)),
        )
        config = check(model, clips(16, 64, 8)).config
        assert (config.input.alpha, config.lateral.kernel) == (8, 5)

    def test_slowfast_beta_a_quarter(self, ptv):
        model = small_slowfast(ptv, slowfast_channel_reduction_ratio=(4,), stem_dim_outs=(16, 4))
        assert check(model, clips(8, 64, 4)).config.fast.width == 4

    def test_partial_temporal_blocks(self, ptv):
        some = ((3, 1, 1),) * 2 + ((1, 1, 1),) * 4
        kernels = (((1, 1, 1), (1, 1, 1), some, (3, 1, 1)), ((3, 1, 1), (3, 1, 1), some, (3, 1, 1)))
        config = check(small_slowfast(ptv, stage_conv_a_kernel_sizes=kernels), clips(8, 64, 4)).config
        assert config.slow.block_kernels(2) == (3, 3, 1, 1, 1, 1)

    @pytest.mark.parametrize("activation", [nn.Softmax, nn.Sigmoid])
    def test_activation_comes_before_the_mean_over_positions(self, ptv, activation):
        config = check(small_slowfast(ptv, head_activation=activation), clips(8, 96, 4)).config
        assert config.head.activation == activation.__name__.lower()

    def test_hub_slowfast_at_full_size(self, ptv):
        torch.set_num_threads(2)
        config = check(ptv[2].slowfast.slowfast_r50(), clips(32, 256, 4, batch=1)).config
        assert config.name == "slowfast_8x8_r50_pytorchvideo" and config.input.frames == 32

    @pytest.mark.parametrize("hub", ["slow_r50", "c2d_r50", "i3d_r50"])
    def test_single_pathway(self, ptv, hub):
        frames = 8
        window = (8 if hub == "slow_r50" else 4, 2, 2)
        kept = {"head_pool_kernel_size": window, "stem_dim_out": 16, "model_num_class": 11}
        build = ptv[2].resnet.create_resnet
        made: dict[int, nn.Module] = {}
        ptv[2].resnet.create_resnet = lambda **given: made.setdefault(0, build(**{**given, **kept}))
        try:
            model = getattr(ptv[2].resnet, hub)(model_builder=ptv[2].resnet.create_resnet)
        finally:
            ptv[2].resnet.create_resnet = build
        config = check(model, clips(frames, 96)).config
        assert config.input.call == "clip" and config.input.frames == frames
        assert config.slow.pool_after_res2 == (1 if hub == "slow_r50" else 2)
        assert config.slow.stem_kernel == (5 if hub == "i3d_r50" else 1)

    def test_fast_pathway_alone(self, ptv):
        model = ptv[1].create_resnet(
            stem_dim_out=8,
            stem_conv_kernel_size=(5, 7, 7),
            stage_conv_a_kernel_size=((3, 1, 1),) * 4,
            head_pool_kernel_size=(8, 2, 2),
            model_num_class=11,
        )
        assert check(model, clips(8, 64)).config.pathways == ("fast",)

    def test_slowfast_detection(self, ptv):
        model = ptv[0].create_slowfast_with_roi_head(
            stem_dim_outs=(16, 2), head_pool_kernel_sizes=((2, 1, 1), (8, 1, 1)), model_num_class=12
        )
        config = check(model, clips(8, 96, 4), BOXES).config
        assert config.fast.dilations == (1, 1, 1, 2) and not config.head.roi.aligned
        assert config.head.activation == "sigmoid"
        given = clips(8, 96, 4)
        assert torch.equal(accelerate(model)(x=given, bboxes=BOXES), accelerate(model)(given, BOXES))

    def test_slow_detection(self, ptv):
        model = ptv[1].create_resnet_with_roi_head(stem_dim_out=16, model_num_class=12)
        assert check(model, clips(4, 96), BOXES).config.slow.strides == (1, 2, 2, 1)

    def test_batch_norm_of_another_epsilon(self, ptv):
        model = small_slowfast(ptv)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm3d):
                layer.eps = 1e-2
        assert check(model, clips(8, 64, 4)).res2["slow"][0].a.bn.eps == 1e-2


class TestPySlowFast:
    @pytest.mark.parametrize("size", [64, 96])
    @pytest.mark.parametrize("act", ["softmax", "sigmoid", "none"])
    def test_slowfast(self, act, size):
        config = check(PySlowFastNet(act=act), clips(8, size, 4)).config
        assert config.source == config.head.semantics == "pyslowfast"
        assert (config.head.activation, config.head.pool) == (act, 2)

    def test_partial_temporal_blocks(self):
        net = PySlowFastNet(blocks=(2, 2, 3, 2), temporal=((2, 2, 1, 2), (2, 1, 2, 2)), kernel=5)
        config = check(net, clips(8, 64, 4)).config
        assert config.slow.block_kernels(2) == (3, 1, 1) and config.fast.block_kernels(1) == (3, 1)

    @pytest.mark.parametrize("kernels, stem, pool", [(SLOW, 1, 1), (I3D, 5, 2), (((1,),) * 4, 1, 2)])
    def test_single_pathway(self, kernels, stem, pool):
        net = PySlowFastNet(((16, stem, kernels),), pool=pool, blocks=(2, 3, 2, 2))
        assert check(net, [clips(8, 96)]).config.slow.pool_after_res2 == pool

    def test_no_window(self):
        assert check(PySlowFastNet(window=False), clips(8, 96, 4)).config.head.pool is None

    @pytest.mark.parametrize("aligned", [True, False])
    def test_detection(self, aligned):
        net = PySlowFastNet(detects=True, dilation=2, aligned=aligned, act="sigmoid")
        config = check(net, clips(8, 96, 4), BOXES).config
        assert config.head.roi.aligned == aligned and config.slow.dilations[3] == 2

    def test_single_detection(self):
        net = PySlowFastNet(((16, 1, SLOW),), detects=True, dilation=2, act="sigmoid")
        check(net, [clips(8, 96)], BOXES)


class TestMmaction2:
    @pytest.mark.parametrize("alpha, norm, basic", [(4, False, False), (8, True, False), (4, False, True)])
    def test_slowfast(self, alpha, norm, basic):
        config = check(MmRecognizer(MmSlowFast(alpha, 5, norm, basic)), clips(16, 96)).config
        assert config.head.semantics == "mmaction2" and config.input.slow_index == "stride"
        assert (config.lateral.norm, config.input.alpha) == (norm, alpha)

    def test_i3d(self):
        path = MmPath(16, 5, (1, (1, 0), 1, 0), stem_strides=(2, 2), with_pool2=True)
        assert check(MmRecognizer(path), clips(16, 96)).config.slow.stem_pool_stride == 2

    def test_slow(self):
        assert check(MmRecognizer(MmPath()), clips(4, 96)).config.slow.pool_after_res2 == 1


class TestTakenOver:
    def test_parallel_wrapper(self):
        net = randomise(PySlowFastNet())
        given = clips(8, 64, 4)
        with torch.no_grad():
            expected = net(given)
        assert relative_l2(accelerate(nn.DataParallel(net))(given), expected) < 2e-5

    def test_copies_mode_dtype_and_frozen_parameters(self):
        net = randomise(PySlowFastNet()).train()
        net.s2.requires_grad_(False)
        net.double()
        ours = from_module(net)
        assert ours.training and next(ours.parameters()).dtype == torch.float64
        assert not ours.res2["slow"][0].a.conv.weight.requires_grad
        assert ours.res3["slow"][0].a.conv.weight.requires_grad
        weight = ours.res3["slow"][0].a.conv.weight
        assert torch.equal(weight, net.s3.pathway0_res0.branch2.a.weight)
        assert weight.data_ptr() != net.s3.pathway0_res0.branch2.a.weight.data_ptr()

    def test_trains(self):
        ours = from_module(randomise(PySlowFastNet()).train())
        ours(clips(8, 64, 4)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())

    def test_bfloat16(self):
        net = randomise(PySlowFastNet())
        given = clips(8, 64, 4)
        with torch.no_grad():
            expected = net(given)
        out = accelerate(net, dtype=torch.bfloat16)(given)
        assert out.dtype == torch.float32 and 1e-6 < relative_l2(out, expected) < 0.05

    def test_a_model_of_ours(self):
        model = create("slow_8x8_r50", blocks=(1, 1, 1, 1), classes=5, crop=64).eval()
        given = clips(8, 64)
        with torch.no_grad():
            expected = model(given)
        assert from_module(model) is not model
        assert relative_l2(accelerate(model)(given), expected) < 2e-5

    def test_clips_of_another_length_are_refused(self):
        fused = accelerate(randomise(PySlowFastNet()))
        with pytest.raises(ValueError, match="expected clips of 2 and 8 frames .* got 4"):
            fused(clips(16, 64, 4))


class Relabelled(nn.Module):
    """Somebody's own network around one that is recognised."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.scale = net, nn.Linear(11, 3)

    def forward(self, x):
        return self.scale(self.net(x))


class TestUnrecognised:
    def left_alone(self, module: nn.Module, *names: str) -> None:
        with pytest.raises(UnrecognisedModule) as error:
            from_module(module)
        for name in names:
            assert name in str(error.value)
        with pytest.warns(UserWarning, match="left as it is") as caught:
            assert accelerate(module) is module
        assert all(name in str(caught[0].message) for name in names)

    def test_another_network(self):
        self.left_alone(nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU()), "Sequential", "Conv3d")

    def test_a_layer_too_many(self):
        net = PySlowFastNet()
        net.s3.attention = nn.Linear(4, 4)
        self.left_alone(net, "s3.attention.weight")

    def test_a_layer_without_weights_too_many(self):
        net = PySlowFastNet()
        net.s3.blur = nn.AvgPool3d(3, 1, 1)
        self.left_alone(net, "s3.blur", "AvgPool3d")

    def test_another_activation(self):
        net = PySlowFastNet()
        net.s4.pathway0_res0.branch2.a_relu = nn.SiLU()
        self.left_alone(net, "s4.pathway0_res0.branch2.a_relu", "SiLU")

    def test_another_stride(self):
        net: Any = PySlowFastNet()
        net.s3.pathway0_res0.branch2.a.stride = (1, 2, 2)
        self.left_alone(net, "s3.pathway0_res0.branch2.a", "stride")

    def test_another_padding(self):
        net = PySlowFastNet()
        net.s1_fuse.conv_f2s.padding = (0, 0, 0)
        self.left_alone(net, "s1_fuse.conv_f2s")

    def test_another_pool(self):
        net = PySlowFastNet()
        net.s1.pathway0_stem.pool_layer = nn.AvgPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.left_alone(net, "s1.pathway0_stem.pool_layer")

    def test_a_convolution_with_bias(self):
        net = PySlowFastNet()
        net.s2.pathway0_res0.branch2.c.bias = nn.Parameter(torch.zeros(64))
        self.left_alone(net, "s2.pathway0_res0.branch2.c.bias")

    def test_batch_statistics(self):
        net = PySlowFastNet()
        net.s2.pathway0_res0.branch2.a_bn = nn.BatchNorm3d(16, track_running_stats=False)
        self.left_alone(net, "s2.pathway0_res0.branch2.a_bn")

    def its_head_is_kept(self, module: nn.Module, name: str) -> None:
        with pytest.raises(UnrecognisedModule, match=name):
            from_module(module)
        randomise(module)
        with torch.no_grad():
            assert relative_l2(accelerate(module)(clips(8, 64, 4)), module(clips(8, 64, 4))) < 2e-5

    def test_softmax_over_something_else(self):
        net = PySlowFastNet()
        net.head.act = nn.Softmax(dim=1)
        self.its_head_is_kept(net, "head.act")

    def test_head_without_mean_over_positions(self, ptv):
        self.its_head_is_kept(small_slowfast(ptv, head_output_with_global_average=False), "output_pool")

    def test_sum_of_another_kind(self, ptv):
        model = small_slowfast(ptv)
        model.blocks[2].multipathway_blocks[0].res_blocks[0].branch_fusion = torch.maximum
        self.left_alone(model, "branch_fusion")

    def test_x3d(self, ptv):
        from pytorchvideo.models.x3d import create_x3d

        self.left_alone(create_x3d(input_clip_length=4, input_crop_size=64, model_num_class=4), "Net")

    def test_the_recognised_part_of_a_module_is_replaced(self):
        module = Relabelled(randomise(PySlowFastNet())).eval()
        given = clips(8, 64, 4)
        with torch.no_grad():
            expected = module(given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fused = accelerate(module)
        assert type(fused) is Relabelled and fused is not module
        assert isinstance(module.net, PySlowFastNet) and not isinstance(fused.net, PySlowFastNet)
        with torch.no_grad():
            assert relative_l2(fused(given), expected) < 2e-5

    def test_freeze_points_here(self):
        with pytest.raises(TypeError, match="accelerate"):
            slowfast_kernels.freeze(PySlowFastNet())
