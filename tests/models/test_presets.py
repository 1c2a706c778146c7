"""Presets, overrides, the networks they build, and what they say about wrong input."""

import json
import re

import pytest
import torch
from torch import nn

from slowfast_kernels.models import ModelConfig, build, configure, create, fast_width, macs, names
from slowfast_kernels.models.presets import ALIASES

ZOO = [
    "slowfast_4x16_r50",
    "slowfast_8x8_r50",
    "slowfast_8x8_r101",
    "slowfast_8x8_r101_50_101",
    "slowfast_8x8_r101_50_50",
    "slowfast_16x8_r101_50_50",
    "slowfast_16x8_r50_charades",
    "slowfast_16x8_r50_ssv2",
    "slow_4x16_r50",
    "slow_8x8_r50",
    "fast_only",
    "i3d_8x8_r50",
    "c2d_8x8_r50",
    "c2d_nopool_8x8_r50",
]


def skeleton(name: str, **overrides) -> nn.Module:
    with torch.device("meta"):
        return create(name, **overrides)


def clips(model: nn.Module, size: int = 64, batch: int = 1) -> list[torch.Tensor] | torch.Tensor:
    """Random input of the model's own frame counts."""
    g = torch.Generator().manual_seed(0)
    config = model.config
    made = [
        torch.randn(batch, config.pathway(p).in_channels, config.frames_of(p), size, size, generator=g)
        for p in config.pathways
    ]
    return made if config.input.call == "pathways" else made[0]


class TestNames:
    def test_the_zoo_is_there(self):
        assert set(ZOO) <= set(names()) and names() == sorted(names())

    @pytest.mark.parametrize("name", names())
    def test_every_preset_builds_and_counts(self, name):
        model = skeleton(name)
        config = model.config
        assert config.name == name
        assert macs(model, config.input.frames, config.input.crop) > 1e9
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    @pytest.mark.parametrize("alias, name", ALIASES.items())
    def test_aliases(self, alias, name):
        assert configure(alias) == configure(name)

    @pytest.mark.parametrize(
        "wrong, hint",
        [("slowfast_8x8_r5O", "slowfast_8x8_r50"), ("slow8x8r50", "slow_8x8_r50"), ("x", "expected one")],
    )
    def test_unknown_name(self, wrong, hint):
        with pytest.raises(ValueError, match=f"unknown model '{wrong}'.*{hint}") as error:
            create(wrong)
        assert "\n" not in str(error.value)


class TestKeys:
    """The state dictionary's keys are the library's own format, and count as the reference libraries' do."""

    @pytest.mark.parametrize(
        "name, entries",
        [
            ("slowfast_8x8_r50", 662),
            ("slowfast_8x8_r101", 1274),
            ("slowfast_8x8_r50_mmaction2", 640 + 2),
            ("slowfast_8x8_r50_steplr_mmaction2", 660 + 2),
        ],
    )
    def test_number(self, name, entries):
        assert len(skeleton(name).state_dict()) == entries

    @pytest.mark.parametrize(
        "name", ["slowfast_8x8_r50", "slow_8x8_r50", "fast_only", "slowfast_8x8_r50_ava"]
    )
    def test_form(self, name):
        bn = r"bn\.(weight|bias|running_mean|running_var|num_batches_tracked)"
        form = re.compile(
            rf"(stem\.(slow|fast)|lateral\.[0-3]|res[2-5]\.(slow|fast)\.\d+\.(a|b|c|shortcut))\.(conv\.weight|{bn})"
            r"|head\.proj\.(weight|bias)"
        )
        model = skeleton(name)
        assert [key for key in model.state_dict() if not form.fullmatch(key)] == []
        assert {key.split(".")[1] for key in model.state_dict() if key.startswith("res")} == set(
            model.config.pathways
        )

    def test_shapes_of_the_paper(self):
        """Table 1 with alpha 8, beta 1/8: widths, temporal kernels, lateral channels."""
        shape = {key: tuple(value.shape) for key, value in skeleton("slowfast_4x16_r50").state_dict().items()}
        assert shape["stem.slow.conv.weight"] == (64, 3, 1, 7, 7)
        assert shape["stem.fast.conv.weight"] == (8, 3, 5, 7, 7)
        assert [shape[f"lateral.{i}.conv.weight"] for i in range(4)] == [
            (2 * c, c, 5, 1, 1) for c in (8, 32, 64, 128)
        ]
        assert [shape[f"res{i}.slow.0.a.conv.weight"] for i in (2, 3, 4, 5)] == [
            (64, 80, 1, 1, 1),
            (128, 320, 1, 1, 1),
            (256, 640, 3, 1, 1),
            (512, 1280, 3, 1, 1),
        ]
        assert [shape[f"res{i}.fast.0.a.conv.weight"] for i in (2, 3, 4, 5)] == [
            (8, 8, 3, 1, 1),
            (16, 32, 3, 1, 1),
            (32, 64, 3, 1, 1),
            (64, 128, 3, 1, 1),
        ]
        assert shape["head.proj.weight"] == (400, 2048 + 256)


class TestPresetFacts:
    """What tells the libraries' and the datasets' models apart."""

    def test_pyslowfast(self):
        config = configure("slowfast_8x8_r50")
        spec, head = config.input, config.head
        assert (spec.frames, spec.alpha, spec.tau, spec.crop, spec.call) == (32, 4, 2, 224, "pathways")
        assert (spec.mean, spec.std, spec.slow_index) == ((0.45,) * 3, (0.225,) * 3, "linspace")
        assert (head.semantics, head.activation, head.pool, head.classes) == ("pyslowfast", "softmax", 7, 400)
        assert head.column_order == ("slow", "fast")
        assert config.lateral.kernel == 7 and configure("slowfast_4x16_r50").lateral.kernel == 5
        assert configure("slowfast_4x16_r50").input.alpha == 8

    def test_temporal_blocks_of_101_layers(self):
        for name, slow, fast in (("", 23, 23), ("_50_101", 6, 23), ("_50_50", 6, 6)):
            config = configure(f"slowfast_8x8_r101{name}")
            assert config.slow.block_kernels(2) == (3,) * slow + (1,) * (23 - slow)
            assert config.fast.block_kernels(2) == (3,) * fast + (1,) * (23 - fast)
            assert config.slow.block_kernels(0) == (1, 1, 1) and config.fast.block_kernels(0) == (3, 3, 3)

    def test_charades_and_ssv2(self):
        for name in ("slowfast_16x8_r50_charades", "slowfast_16x8_r101_50_50"):
            config = configure(name)
            assert (config.head.classes, config.head.activation, config.head.multi_label) == (
                157,
                "sigmoid",
                True,
            )
            assert (config.input.frames, config.input.ensemble, config.input.reverse_channels) == (
                64,
                "max",
                True,
            )
        ssv2 = configure("slowfast_16x8_r50_ssv2")
        assert (ssv2.head.classes, ssv2.head.activation, ssv2.input.views) == (174, "softmax", (1, 1))
        assert ssv2.input.reverse_channels and ssv2.input.frames == 64
        assert ssv2.input.sampling == "segments"
        with pytest.raises(ValueError, match="a clip spans the video"):
            configure("slowfast_16x8_r50_ssv2", views=(2, 1))

    def test_i3d_and_c2d(self):
        i3d, c2d = configure("i3d_8x8_r50").slow, configure("c2d_8x8_r50").slow
        assert i3d.stem_kernel == 5 and c2d.stem_kernel == 1
        assert [i3d.block_kernels(i) for i in range(4)] == [
            (3, 3, 3),
            (3, 1, 3, 1),
            (3, 1, 3, 1, 3, 1),
            (1, 3, 1),
        ]
        assert all(set(c2d.block_kernels(i)) == {1} for i in range(4))
        assert (i3d.pool_after_res2, c2d.pool_after_res2) == (2, 2)
        assert configure("c2d_nopool_8x8_r50").slow.pool_after_res2 == 1

    def test_mmaction2(self):
        config = configure("slowfast_8x8_r101_mmaction2")
        assert not config.lateral.norm and not config.lateral.relu and config.lateral.kernel == 7
        assert config.head.semantics == "mmaction2" and config.head.pool is None
        assert config.head.activation == "none" and config.head.column_order == ("fast", "slow")
        assert config.input.slow_index == "stride"
        assert [round(255 * m, 3) for m in config.input.mean] == [123.675, 116.28, 103.53]
        assert [round(255 * s, 3) for s in config.input.std] == [58.395, 57.12, 57.375]
        mixed = configure("slowfast_4x16_r101_r50_mmaction2")
        assert (mixed.slow.depth, mixed.fast.depth) == (101, 50)

    def test_detection(self):
        for name, aligned, side, dilation, classes, activation in (
            ("slowfast_8x8_r50_ava", True, 7, 2, 80, "sigmoid"),
            ("slow_4x16_r50_ava", False, 7, 2, 80, "sigmoid"),
            ("slowfast_8x8_r50_ava_pytorchvideo", False, 7, 2, 80, "sigmoid"),
            ("slowfast_8x8_r50_ava_mmaction2", True, 8, 1, 81, "none"),
        ):
            config = configure(name)
            roi, head = config.head.roi, config.head
            assert (roi.aligned, roi.resolution, roi.scale, roi.temporal) == (aligned, side, 1 / 16, "mean")
            assert (head.classes, head.activation, head.column_order) == (
                classes,
                activation,
                ("slow", "fast"),
            )
            for path in config.pathways:
                assert config.pathway(path).strides[3] == 1 and config.pathway(path).dilations[3] == dilation
        assert configure("slowfast_8x8_r50_ava_temporal_max_mmaction2").head.roi.temporal == "max"


class TestOverrides:
    @pytest.mark.parametrize(
        "beta, width", [(1 / 4, 16), (1 / 6, 11), (1 / 8, 8), (1 / 12, 6), (1 / 16, 4), (1 / 32, 2)]
    )
    def test_every_beta_of_the_paper(self, beta, width):
        assert fast_width(64, beta) == width
        model = skeleton("slowfast_4x16_r50", beta=beta)
        assert macs(model, 32, 224) > macs(skeleton("slow_4x16_r50"), 4, 224)
        assert model.res5["fast"][0].c.conv.out_channels == 32 * width
        assert model.lateral[3].conv.out_channels == 2 * 16 * width

    def test_beta_that_rounds_runs(self):
        model = create("slowfast_4x16_r50", beta=1 / 6, depth=18, frames=8, crop=32, classes=5).eval()
        with torch.no_grad():
            assert model(clips(model, 32)).shape == (1, 5)

    @pytest.mark.parametrize(
        "kind, added",
        [("conv", 2), ("conv_plain", 2), ("time_to_channel_concat", 8), ("time_sample", 1), ("none", 0)],
    )
    @pytest.mark.parametrize("training", [False, True])
    def test_lateral_kinds(self, kind, added, training):
        model = create("slowfast_4x16_r50", lateral=kind, depth=18, frames=16, crop=32, classes=5).train(
            training
        )
        assert model.res3["slow"][0].a.conv.in_channels == 256 + 32 * added
        assert (model.lateral[0].bn is None) == (kind != "conv")
        assert model(clips(model, 32, batch=2)).shape == (2, 5)

    def test_time_to_channel_sum(self):
        model = create(
            "slowfast_4x16_r50", lateral="time_to_channel_sum", depth=18, frames=16, crop=32
        ).eval()
        with torch.no_grad():
            assert model(clips(model, 32)).shape == (1, 400)
        with pytest.raises(ValueError, match=r"time_to_channel_sum.*4 \* 8.*got 64"):
            create("slowfast_8x8_r50", lateral="time_to_channel_sum")

    @pytest.mark.parametrize("fast_input", ["gray", "time_diff"])
    def test_weak_fast_input(self, fast_input):
        config = configure("slowfast_4x16_r50", fast_input=fast_input)
        assert (config.slow.in_channels, config.fast.in_channels) == (3, 1)
        assert configure("slowfast_4x16_r50", fast_input="rgb") == configure("slowfast_4x16_r50")

    def test_depth(self):
        config = configure("slowfast_8x8_r50", depth=101)
        assert config.fast.block_kernels(2) == (3,) * 23
        mixed = configure("slowfast_8x8_r50", depth=(101, 50), temporal_blocks={"slow": (3, 4, 6, 3)})
        assert (mixed.slow.block_kernels(2).count(3), mixed.fast.block_kernels(2).count(3)) == (6, 6)
        assert configure("slowfast_8x8_r18").slow == configure("slowfast_8x8_r50", depth=18).slow
        assert configure("slowfast_8x8_r50", depth=34).slow.block == "basic"

    def test_basic_blocks(self):
        """mmaction2's depth 18: 512 + 64 features instead of 2048 + 256."""
        model = create("slowfast_4x16_r50", depth=18, block="basic", frames=16, crop=32, classes=5).eval()
        assert model.head.proj.in_features == 512 + 64
        assert model.res4["slow"][0].b.conv.kernel_size == (3, 3, 3)
        with torch.no_grad():
            assert model(clips(model, 32)).shape == (1, 5)
        other = skeleton("slow_8x8_r18", block="basic_transform")
        assert other.head.proj.in_features == 2048 and other.res5["slow"][0].b.conv.kernel_size == (1, 3, 3)

    def test_temporal_blocks_as_pyslowfast_writes_them(self):
        config = configure("slowfast_8x8_r101", temporal_blocks=[[3, 3], [4, 4], [6, 23], [3, 3]])
        assert config == configure(
            "slowfast_8x8_r101", temporal_blocks={"slow": (3, 4, 6, 3), "fast": (3, 4, 23, 3)}
        )
        assert config.slow.block_kernels(2).count(3) == 6 and config.fast.block_kernels(2).count(3) == 23

    def test_temporal_kernels(self):
        i3d = configure("slow_8x8_r50", temporal_kernels=(5, 3, (3, 1), (3, 1), (1, 3)), pool_after_res2=2)
        assert i3d.slow == configure("i3d_8x8_r50").slow
        kernels = {"slow": [1, 1, 1, 3, 3], "fast": [5, 3, 3, 3, 3]}
        assert configure("slowfast_8x8_r50", temporal_kernels=kernels) == configure("slowfast_8x8_r50")

    def test_res5(self):
        config = configure("slowfast_8x8_r50", res5_stride=1, res5_dilation=2)
        assert config.slow.strides == config.fast.strides == (1, 2, 2, 1)
        assert config.slow.dilations == config.fast.dilations == (1, 1, 1, 2)
        assert configure("slowfast_8x8_r50", res5_dilation={"slow": 2}).fast.dilations == (1, 1, 1, 1)

    def test_head(self):
        head = configure("slowfast_8x8_r50", head="mmaction2").head
        assert (head.activation, head.pool, head.column_order) == ("none", None, ("fast", "slow"))
        head = configure("slowfast_8x8_r50_mmaction2", head="pyslowfast").head
        assert (head.activation, head.pool) == ("softmax", 7)
        assert (
            configure("slowfast_8x8_r50", head="pytorchvideo", activation="sigmoid").head.activation
            == "sigmoid"
        )
        roi = configure("slowfast_8x8_r50", roi={"aligned": False}, res5_stride=1, classes=80).head
        assert (roi.activation, roi.pool, roi.roi.aligned) == ("sigmoid", None, False)
        assert configure("slowfast_8x8_r50", roi=True, head="mmaction2").head.activation == "none"
        classifier = configure("slowfast_8x8_r50_ava", roi=None, multi_label=False).head
        assert (classifier.activation, classifier.pool) == ("softmax", 7)
        assert configure("slowfast_8x8_r50_ava", head="mmaction2").head.activation == "none"
        assert configure("slowfast_8x8_r50_ava", head="pytorchvideo").head.activation == "sigmoid"

    def test_lateral_norm_brings_the_relu(self):
        lateral = configure("slowfast_8x8_r50_mmaction2", lateral_norm=True).lateral
        assert lateral.norm and lateral.relu
        assert not configure("slowfast_8x8_r50", lateral_relu=False).lateral.relu

    def test_crop_sets_the_window(self):
        config = configure("slowfast_8x8_r50", crop=160)
        assert (config.head.pool, config.input.crop, config.input.test_crop) == (5, 160, 160)
        assert configure("slowfast_8x8_r50", crop=160, pool=None).head.pool is None

    @pytest.mark.parametrize(
        "name, overrides, message",
        [
            ("slowfast_8x8_r50", {"clases": 5}, "unknown override 'clases': did you mean classes"),
            ("slowfast_8x8_r50", {"lateral": "cat"}, "lateral: expected one of conv, .*got 'cat'"),
            ("slowfast_8x8_r50", {"beta": 8}, r"beta .*expected a number in \(0, 1\].*got 8"),
            ("slowfast_8x8_r50", {"depth": 51}, "depth: expected one of 18, 34, 50, 101, 152, got 51"),
            ("slowfast_8x8_r50", {"frames": 30}, "frames for alpha=4: expected a multiple of 4, got 30"),
            (
                "slowfast_8x8_r50",
                {"fusion_kernel": 4},
                "fusion_kernel: expected an odd number of frames, got 4",
            ),
            (
                "slowfast_8x8_r50",
                {"temporal_blocks": (3, 4, 7, 3)},
                "temporal_blocks of res4: expected 0 to 6",
            ),
            ("slowfast_8x8_r50", {"dropout": 1.5}, "dropout: expected a probability"),
            ("slowfast_8x8_r50", {"fast_input": "flow"}, "fast_input: expected one of rgb, gray, time_diff"),
            (
                "slowfast_8x8_r50",
                {"depth": {"slwo": 50}},
                "unknown pathway in depth 'slwo': did you mean slow",
            ),
            ("slowfast_8x8_r50", {"classes": 0}, "classes: expected a whole number of at least 1, got 0"),
            (
                "slow_8x8_r50",
                {"fusion_kernel": 5},
                "override 'fusion_kernel': expected a model of two pathways",
            ),
            ("slow_8x8_r50", {"alpha": 4}, "alpha with one pathway: expected 1, got 4"),
            ("slow_8x8_r50", {"beta": 1 / 8}, "override 'beta': expected a model of two pathways"),
            ("slow_8x8_r50", {"fast_input": "gray"}, "fast_input of a model without a Fast pathway"),
            ("slow_8x8_r18", {"block": "basic", "res5_dilation": 2}, "dilations: expected dilation 1"),
        ],
    )
    def test_errors_are_one_line(self, name, overrides, message):
        with pytest.raises(ValueError, match=message) as error:
            create(name, **overrides)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """A two-pathway network on 8 frames of 64 pixels."""
    torch.manual_seed(0)
    return create("slowfast_8x8_r50", depth=18, frames=8, crop=64, classes=6, zero_init_final_bn=False)


class TestNetwork:
    def test_scores_sum_to_one_and_input_is_only_read(self, tiny):
        x = clips(tiny, batch=2)
        kept, versions = list(x), [(t, t.clone()) for t in x]
        with torch.no_grad():
            y = tiny.eval()(x)
        assert y.shape == (2, 6)
        assert torch.allclose(y.sum(dim=1), torch.ones(2))
        assert len(x) == 2 and all(a is b for a, b in zip(x, kept, strict=True))
        assert all(torch.equal(t, was) for t, was in versions)

    def test_samples_do_not_mix(self, tiny):
        x = clips(tiny, batch=2)
        with torch.no_grad():
            both, alone = tiny.eval()(x), tiny([t[1:] for t in x])
        assert torch.allclose(both[1:], alone, atol=1e-6)

    def test_eval_equals_torch_layers(self, tiny):
        """Folded and fused against convolution, batch norm, ReLU one after the other."""
        x = clips(tiny)
        for _ in range(2):
            tiny.train()(clips(tiny, batch=2))  # running statistics that are not those of the start
        with torch.no_grad():
            fused = tiny.eval().forward_features(x)
            tiny.train()
            for module in tiny.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval()
            plain = tiny.forward_features(x)
        for a, b in zip(fused, plain, strict=True):
            assert ((a - b).norm() / b.norm()).item() < 1e-5

    def test_slow_hears_the_fast_pathway_and_not_the_reverse(self, tiny):
        slow, fast = clips(tiny)
        with torch.no_grad():
            tiny.eval()
            base = tiny.forward_features([slow, fast])
            other_fast = tiny.forward_features([slow, fast + 1])
            other_slow = tiny.forward_features([slow + 1, fast])
        assert not torch.allclose(base[0], other_fast[0])
        assert torch.equal(base[1], other_slow[1])

    def test_training_step(self, tiny):
        model = tiny.train()
        logits = model(clips(model, batch=2))
        assert bool((logits.sum(dim=1) - 1).abs().max() > 1e-3)  # no softmax while training
        nn.functional.cross_entropy(logits, torch.tensor([1, 4])).backward()
        missing = [
            name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
        ]
        assert missing == []
        model.zero_grad(set_to_none=True)

    def test_larger_and_smaller_frames(self, tiny):
        tiny.eval()
        with torch.no_grad():
            assert tiny(clips(tiny, 96)).shape == (1, 6)
            with pytest.raises(ValueError, match="at least 2x2 cells.*got 1x1"):
                tiny(clips(tiny, 32))

    @pytest.mark.parametrize(
        "change, message",
        [
            (
                lambda s, f: [s, f[:, :, :6]],
                r"fast clip as \[1, 3, 8, 64, 64\] \(alpha=4 .* got \[1, 3, 6, 64, 64\]",
            ),
            (lambda s, f: [s[..., :32], f], r"fast clip as \[1, 3, 8, 64, 32\].* got \[1, 3, 8, 64, 64\]"),
            (lambda s, f: [s], r"expected 2 clip\(s\) \(slow, fast\), got 1"),
            (lambda s, f: s, r"expected 2 clip\(s\) \(slow, fast\), got 1"),
            (lambda s, f: [s[:, :1], f], r"slow clip as \[N, 3, T, H, W\], got \[1, 1, 2, 64, 64\]"),
            (lambda s, f: [s, f[0]], r"fast clip as \[N, 3, T, H, W\], got \[3, 8, 64, 64\]"),
        ],
    )
    def test_wrong_input(self, tiny, change, message):
        with pytest.raises(ValueError, match=message) as error:
            tiny.eval()(change(*clips(tiny)))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["slow_8x8_r18", "fast_only", "i3d_8x8_r50", "c2d_8x8_r50"])
    def test_single_pathway(self, name):
        model = create(name, depth=18, frames=4, crop=32, classes=5).eval()
        x = clips(model, 32)
        with torch.no_grad():
            y = model(x)
            assert torch.equal(y, model([x]))
            (features,) = model.forward_features(x)
        assert y.shape == (1, 5)
        assert features.shape[2] == 4 // model.config.pathway(model.config.pathways[0]).pool_after_res2
        with pytest.raises(ValueError, match="expected no rois"):
            model(x, torch.zeros(1, 5))

    def test_mmaction2_i3d_keeps_an_eighth_of_the_frames(self):
        model = create("i3d_32x2_r50_mmaction2", depth=18, classes=5).eval()
        with torch.no_grad():
            assert model.forward_features(torch.randn(1, 3, 32, 32, 32))[0].shape[2] == 4
        assert model.train().forward_features(torch.randn(2, 3, 32, 32, 32))[0].shape[2] == 4

    def test_detection(self):
        model = create("slowfast_8x8_r50_ava", depth=18, frames=8, classes=7).eval()
        x = clips(model, 64)
        rois = torch.tensor([[0, 3.0, 4, 50, 60], [0, 20, 10, 40, 30]])
        with torch.no_grad():
            assert [tuple(f.shape[-2:]) for f in model.forward_features(x)] == [(4, 4), (4, 4)]
            y = model(x, rois)
        assert y.shape == (2, 7) and bool(((y > 0) & (y < 1)).all())
        with pytest.raises(ValueError, match=r"expected rois \[K, 5\]"):
            model(x)

    def test_low_precision(self, tiny):
        x = clips(tiny)
        with torch.no_grad():
            expected = tiny.eval()(x)
            half = build(tiny.config)
            half.load_state_dict(tiny.state_dict())
            got = half.bfloat16().eval()([t.bfloat16() for t in x])
        assert got.dtype == torch.float32  # scores are, whatever the features' dtype
        assert (got.float() - expected).abs().max() < 0.05


class TestInitialisation:
    def test_as_the_field_does(self):
        torch.manual_seed(0)
        model = create("slow_8x8_r18")
        conv = model.res4["slow"][1].b.conv.weight
        assert conv.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
        assert model.head.proj.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not model.head.proj.bias.any()
        block = model.res3["slow"][0]
        assert not block.c.bn.weight.any() and bool((block.b.bn.weight == 1).all())
        assert bool((block.shortcut.bn.weight == 1).all())

    def test_without_zero_residuals(self):
        model = create("slow_8x8_r18", zero_init_final_bn=False)
        assert bool((model.res3["slow"][0].c.bn.weight == 1).all())
