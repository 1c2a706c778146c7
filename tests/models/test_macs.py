"""Multiply-adds and parameters against the numbers measured on the reference libraries' own models."""

import pytest
import torch

from slowfast_kernels.models import create, macs


def skeleton(name: str, **overrides) -> torch.nn.Module:
    with torch.device("meta"):
        return create(name, **overrides)


# preset, overrides, frames, GMAC at 224 and 256 (None: not known), parameters in millions
REFERENCE = [
    ("slowfast_4x16_r50", {}, 32, "27.64", "36.10", "34.48"),
    ("slowfast_8x8_r50", {}, 32, "50.31", "65.71", "34.57"),
    ("slowfast_8x8_r50", {"fusion_kernel": 5}, 32, "49.99", "65.30", None),
    ("slowfast_4x16_r50", {"beta": 1 / 4}, 32, "41.04", "53.60", None),
    ("slowfast_4x16_r50", {"beta": 1 / 16}, 32, "23.43", "30.60", None),
    ("slowfast_4x16_r50", {"beta": 1 / 32}, 32, "21.94", "28.66", None),
    ("slowfast_8x8_r101_50_50", {}, 32, "81.55", "106.51", "53.77"),
    ("slowfast_8x8_r101_50_101", {}, 32, "82.42", "107.65", "53.91"),
    ("slowfast_8x8_r101", {}, 32, "96.40", "125.91", "62.83"),
    ("slowfast_16x8_r101_50_50", {}, 64, "163.09", "213.02", None),
    ("slowfast_16x8_r101_50_50_k400", {}, 64, "163.09", "213.02", "53.77"),
    ("slow_4x16_r50", {}, 4, "20.87", "27.26", "32.45"),
    ("slow_8x8_r50", {}, 8, "41.74", "54.52", "32.45"),
    ("slow_16x8_r101_50_50", {}, 16, "142.88", "186.62", None),
    ("fast_only", {}, 32, "5.28", "6.90", "0.62"),
    ("i3d_8x8_r50", {}, 8, "28.41", "37.11", None),
]


@pytest.mark.parametrize("name, overrides, frames, at_224, at_256, parameters", REFERENCE)
def test_reference_numbers(name, overrides, frames, at_224, at_256, parameters):
    model = skeleton(name, **overrides)
    assert f"{macs(model, frames, 224) / 1e9:.2f}" == at_224
    assert f"{macs(model, frames, 256) / 1e9:.2f}" == at_256
    if parameters:
        assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}" == parameters


@pytest.mark.parametrize(
    "overrides, printed",
    [
        ({"lateral": "none"}, "26.2"),
        ({"lateral": "time_sample"}, "26.7"),
        ({"lateral": "conv"}, "27.6"),
        ({"fast_input": "gray"}, "26.1"),
    ],
)
def test_ablations_of_the_paper(overrides, printed):
    """Tables 5a and 5c: 4x16 R50 at 224 pixels."""
    assert f"{macs(skeleton('slowfast_4x16_r50', **overrides), 32, 224) / 1e9 + 1e-9:.1f}" == printed


def test_published_pytorchvideo_number():
    assert f"{macs(skeleton('slowfast_8x8_r50_pytorchvideo'), 32, 256) / 1e9:.2f}" == "65.71"


def test_a_convolution_by_hand():
    """One stage of the smallest model there is: the numbers follow from the layers' definition."""
    model = skeleton("c2d_nopool_8x8_r50", blocks=(1, 1, 1, 1), classes=5)
    positions = 2 * 8 * 8  # frames x cells of res2 at 32 pixels
    stem = 2 * 16 * 16 * 64 * 3 * 49
    res2 = positions * (64 * 64 + 64 * 64 * 9 + 64 * 256 + 64 * 256)

    def stage(cells, width_in, inner):  # strided: conv a sees four times the cells
        return (
            2 * cells * (4 * width_in * inner + 9 * inner * inner + 4 * inner * inner + width_in * 4 * inner)
        )

    res345 = stage(16, 256, 128) + stage(4, 512, 256) + stage(1, 1024, 512)
    model.head.pool = None
    assert macs(model, 2, 32) == stem + res2 + res345 + 2048 * 5


def test_batch_and_frames_scale_linearly():
    model = skeleton("slowfast_8x8_r50", pool=None)
    classifier = 2304 * 400
    convolutions = [macs(model, frames, 64) - classifier for frames in (32, 64)]
    assert convolutions[1] == 2 * convolutions[0]


def test_rectangular_frames():
    model = skeleton("slow_4x16_r50", pool=None)
    assert macs(model, 4, (64, 128)) == macs(model, 4, (128, 64)) > macs(model, 4, 64)


def test_detection_counts_the_backbone_and_one_box():
    detector, classifier = skeleton("slowfast_8x8_r50_ava"), skeleton("slowfast_8x8_r50")
    assert macs(detector, 32, 224) > macs(classifier, 32, 224)  # res5 keeps twice the resolution
    more = skeleton("slowfast_8x8_r50_ava", classes=81)
    assert macs(more, 32, 64) - macs(detector, 32, 64) == 2304


def test_counts_the_model_as_it_is_and_leaves_it_alone():
    model = create("slow_4x16_r50", depth=18).half()
    before = macs(model, 4, 224)
    model.head.proj = torch.nn.Linear(2048, 7).half()
    assert before - macs(model, 4, 224) == 2048 * (400 - 7)
    assert model.training and model.head.proj.weight.device.type == "cpu"
    assert not any(m._forward_hooks for m in model.modules())


def test_errors():
    with pytest.raises(ValueError, match="multiple of alpha=8, got 12"):
        macs(skeleton("slowfast_4x16_r50"), 12, 224)
    with pytest.raises(ValueError, match="at least 7x7 cells"):
        macs(skeleton("slowfast_4x16_r50"), 32, 112)
