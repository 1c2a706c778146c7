"""Blocks in eval mode (fused ops, folded batch norm) against the same blocks on torch's own layers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast_kernels import ops
from slowfast_kernels.nn import (
    BasicBlock,
    Bottleneck,
    ConvBN,
    Head,
    Lateral,
    RoIHead,
    Stage,
    Stem,
    fold_batch_norm,
)
from slowfast_kernels.testing import randomise


def on_torch(module: nn.Module) -> nn.Module:
    """A copy that runs on torch's convolutions, with its batch norm on the running statistics."""
    twin = copy.deepcopy(module).train()
    for m in twin.modules():
        if isinstance(m, nn.BatchNorm3d | nn.Dropout):
            m.eval()
    return twin


def assert_same(got: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert got.shape == expected.shape
    assert ((got - expected).norm() / expected.norm()).item() < bound


def clip(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BLOCKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (ConvBN(8, 12, (3, 1, 1)), (2, 8, 4, 7, 6)),
    "conv strided, dilated": (
        ConvBN(8, 12, (1, 3, 3), stride=(1, 2, 2), dilation=(1, 2, 2)),
        (2, 8, 3, 9, 8),
    ),
    "conv without batch norm": (ConvBN(8, 12, norm=False, activation="none"), (2, 8, 3, 5, 5)),
    "stem, one frame": (Stem(3, 16, 1), (2, 3, 4, 33, 30)),
    "stem, five frames": (Stem(3, 8, 5), (1, 3, 6, 32, 32)),
    "stem, gray": (Stem(1, 8, 5), (1, 1, 4, 32, 32)),
    "stem, strided in time": (Stem(3, 8, 5, stride=2, pool_stride=2), (1, 3, 11, 32, 32)),
    "bottleneck, identity": (Bottleneck(32, 8, 32, 3), (2, 32, 4, 6, 7)),
    "bottleneck, projection": (Bottleneck(24, 8, 32, 1), (2, 24, 4, 6, 7)),
    "bottleneck, strided": (Bottleneck(32, 16, 64, 3, stride=2), (2, 32, 3, 7, 8)),
    "bottleneck, dilated": (Bottleneck(32, 16, 64, 3, dilation=2), (1, 32, 3, 7, 8)),
    "basic": (BasicBlock(16, 16, (3, 3)), (2, 16, 4, 6, 7)),
    "basic, strided": (BasicBlock(16, 32, (3, 1), stride=2), (2, 16, 4, 7, 8)),
    "stage": (Stage(20, 8, 32, (3, 1, 3), stride=2), (2, 20, 4, 8, 8)),
    "stage of basic blocks": (Stage(20, 16, 16, (3, 1), stride=2, block="basic"), (2, 20, 4, 8, 8)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_eval_equals_torch(name):
    module, shape = BLOCKS[name]
    module = randomise(copy.deepcopy(module)).eval()
    x = clip(*shape)
    with torch.no_grad():
        assert_same(module(x), on_torch(module)(x))


@pytest.mark.parametrize("name", BLOCKS)
def test_training_uses_batch_statistics_and_reaches_every_parameter(name):
    module, shape = BLOCKS[name]
    module = randomise(copy.deepcopy(module)).train()
    before = {k: v.clone() for k, v in module.state_dict().items() if "running_mean" in k}
    module(clip(*shape)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    after = module.state_dict()
    assert all(not torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", ["bottleneck, strided", "stem, one frame", "conv"])
def test_eval_gradients_equal_torch(name):
    module, shape = BLOCKS[name]
    module = randomise(copy.deepcopy(module)).eval()
    twin, x = on_torch(module), clip(*shape)
    weights = torch.linspace(-1, 1, module(x).numel())
    for m in (module, twin):
        (m(x).flatten() * weights).sum().backward()
    for (key, p), q in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None, key
        assert_same(p.grad, q.grad, 1e-4)


def test_fold_batch_norm_keeps_float32_for_low_precision():
    bn = randomise(nn.BatchNorm3d(6)).eval()
    scale, shift = fold_batch_norm(bn)
    x = clip(2, 6, 2, 3, 3)
    assert_same(x * scale.view(1, -1, 1, 1, 1) + shift.view(1, -1, 1, 1, 1), bn(x))
    assert {t.dtype for t in fold_batch_norm(bn.bfloat16())} == {torch.float32}
    assert {t.dtype for t in fold_batch_norm(bn.double())} == {torch.float64}


def test_fold_batch_norm_needs_statistics():
    with pytest.raises(ValueError, match="expected running statistics"):
        fold_batch_norm(nn.BatchNorm3d(4, track_running_stats=False))


class TestLateral:
    slow, fast = clip(2, 16, 3, 4, 5, seed=2), clip(2, 4, 12, 4, 5, seed=3)

    @pytest.mark.parametrize("kernel", [1, 5, 7])
    @pytest.mark.parametrize("norm, relu", [(True, True), (False, False), (True, False)])
    def test_conv(self, kernel, norm, relu):
        module = randomise(
            Lateral(4, 4, kernel=kernel, norm=norm, activation="relu" if relu else "none")
        ).eval()
        with torch.no_grad():
            got = module(self.slow, self.fast)
            assert_same(got, on_torch(module)(self.slow, self.fast))
        assert torch.equal(got[:, :16], self.slow)
        assert bool((got[:, 16:] < 0).any()) is not relu

    def test_time_sample(self):
        got = Lateral(4, 4, kind="time_sample")(self.slow, self.fast)
        assert torch.equal(got, torch.cat([self.slow, self.fast[:, :, ::4]], dim=1))

    def test_time_to_channel(self):
        """Frame t of the result holds the Fast frames alpha * t ... alpha * t + alpha - 1 as channels."""
        added = Lateral(4, 4, kind="time_to_channel_concat")(self.slow, self.fast)[:, 16:]
        assert added.shape == (2, 16, 3, 4, 5)
        for t in range(3):
            assert_same(added[:, :, t].sum(dim=1), self.fast[:, :, 4 * t : 4 * t + 4].sum(dim=(1, 2)))
        summed = Lateral(4, 4, kind="time_to_channel_sum")(self.slow, self.fast)
        assert_same(summed, self.slow + added)

    def test_none(self):
        module = Lateral(4, 4, kind="none")
        assert torch.equal(module(self.slow, self.fast), self.slow)
        assert not list(module.parameters())

    def test_training(self):
        module = randomise(Lateral(4, 4)).train()
        module(self.slow, self.fast).square().sum().backward()
        assert all(p.grad.abs().max() > 0 for p in module.parameters())


class TestHead:
    slow, fast = clip(2, 12, 2, 4, 5, seed=4), clip(2, 3, 8, 4, 5, seed=5)

    def pooled(self, pool: int | None) -> Tensor:
        """[N, positions, 15] in (slow, fast) order, from the definition."""
        size = (4, 5) if pool is None else (pool, pool)
        rows = [
            torch.cat(
                [
                    x[..., i : i + size[0], j : j + size[1]].mean(dim=(2, 3, 4))
                    for x in (self.slow, self.fast)
                ],
                1,
            )
            for i in range(4 - size[0] + 1)
            for j in range(5 - size[1] + 1)
        ]
        return torch.stack(rows, dim=1)

    @pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
    @pytest.mark.parametrize("pool", [3, 4, None])
    def test_pyslowfast_activates_each_position(self, pool, activation):
        head = randomise(Head(15, 6, pool=pool, activation=activation)).eval()
        act = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda x: x}[activation]
        expected = act(head.proj(self.pooled(pool))).mean(dim=1)
        assert_same(head((self.slow, self.fast)), expected)

    def test_pytorchvideo_averages_logits(self):
        head = randomise(Head(15, 6, semantics="pytorchvideo", activation="none", pool=3)).eval()
        assert_same(head((self.slow, self.fast)), head.proj(self.pooled(3)).mean(dim=1))

    @pytest.mark.parametrize("training", [False, True])
    def test_mmaction2_pools_everything_and_swaps_the_columns(self, training):
        head = randomise(Head(15, 6, semantics="mmaction2", activation="none", dropout=0.0)).train(training)
        swapped = self.pooled(None)[:, 0].roll(3, dims=1)
        assert_same(head((self.slow, self.fast)), head.proj(swapped))

    def test_training_gives_logits(self):
        head = randomise(Head(15, 6, pool=3, dropout=0.0)).train()
        out = head((self.slow, self.fast))
        assert_same(out, head.proj(self.pooled(3)).mean(dim=1))
        out.sum().backward()
        assert head.proj.weight.grad.abs().max() > 0

    def test_dropout_only_in_training(self):
        head = randomise(Head(15, 6, pool=3, dropout=0.9, activation="none"))
        torch.manual_seed(0)
        assert not torch.allclose(head.train()((self.slow, self.fast)), head.eval()((self.slow, self.fast)))

    def test_one_pathway(self):
        head = randomise(Head(12, 6, pool=4)).eval()
        windows = torch.stack([self.slow[..., j : j + 4].mean(dim=(2, 3, 4)) for j in range(2)], dim=1)
        assert_same(head([self.slow]), head.proj(windows).softmax(-1).mean(dim=1))

    @pytest.mark.parametrize("training", [False, True])
    def test_map_below_the_window(self, training):
        with pytest.raises(ValueError, match=r"at least 7x7 cells.*got 4x5"):
            Head(15, 6).train(training)((self.slow, self.fast))


class TestRoIHead:
    slow, fast = clip(2, 12, 2, 9, 8, seed=6), clip(2, 3, 8, 9, 8, seed=7)
    rois = torch.tensor([[0, 10.0, 12, 90, 100], [1, 0, 0, 60, 40], [1, 33.3, 20.1, 120, 140]])

    def head(self, **options) -> RoIHead:
        return randomise(RoIHead(15, 5, **options))

    def test_equals_align_then_max(self):
        head = self.head().eval()
        means = [x.mean(dim=2, keepdim=True) for x in (self.slow, self.fast)]
        bins = [ops.roi_align3d(x, self.rois, (7, 7), 1 / 16, 0, True, "frame") for x in means]
        expected = torch.sigmoid(head.proj(torch.cat([b.amax(dim=(2, 3, 4)) for b in bins], dim=1)))
        assert_same(head((self.slow, self.fast), self.rois), expected)

    @pytest.mark.parametrize(
        "change", [{"aligned": False}, {"temporal": "max"}, {"resolution": 3}, {"scale": 1 / 8}]
    )
    def test_every_option_matters(self, change):
        options: tuple[dict[str, Any], ...] = ({}, change)
        outs = [self.head(**o).eval()((self.slow, self.fast), self.rois) for o in options]
        assert (outs[0] - outs[1]).abs().max() > 1e-3

    def test_one_pathway_and_no_boxes(self):
        head = randomise(RoIHead(12, 5)).eval()
        assert head([self.slow], self.rois).shape == (3, 5)
        assert head([self.slow], self.rois[:0]).shape == (0, 5)

    def test_activation_in_training_too(self):
        """PySlowFast and pytorchvideo train on probabilities, mmaction2 on logits."""
        out = self.head(dropout=0.0).train()((self.slow, self.fast), self.rois)
        assert F.relu(out).equal(out) and bool((out < 1).all())

    def test_mmaction2_drops_bins_before_their_maximum(self):
        """With half the bins dropped the maximum over the rest is never zero; half the features would be."""
        slow, fast = self.slow.abs() + 1, self.fast.abs() + 1
        heads = {
            s: self.head(dropout=0.5, activation="none", semantics=s) for s in ("mmaction2", "pyslowfast")
        }
        seen: dict[str, Tensor] = {}
        for semantics, head in heads.items():
            head.proj.register_forward_pre_hook(lambda _, args, key=semantics: seen.__setitem__(key, args[0]))
            torch.manual_seed(0)
            head.train()((slow, fast), self.rois)
        assert (seen["mmaction2"] > 0).all()
        assert 0.2 < (seen["pyslowfast"] == 0).float().mean() < 0.8

    def test_mmaction2_branch_equals_eval_without_dropout(self):
        head = self.head(semantics="mmaction2", activation="none", dropout=0.5)
        expected = head.eval()((self.slow, self.fast), self.rois)
        head.train().dropout.eval()  # the branch for training, with nothing dropped
        assert_same(head((self.slow, self.fast), self.rois), expected)
