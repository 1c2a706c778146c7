"""Networks as graphs: what a trace finds, what passes do with it, and frozen networks that are none of ours."""

import copy
import pickle
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import slowfast_kernels as sf
from slowfast_kernels import ops
from slowfast_kernels.graph import passes
from slowfast_kernels.graph.trace import trace
from slowfast_kernels.nn import BasicBlock, Bottleneck, ConvBN, Lateral, Stage, Stem
from slowfast_kernels.testing import relative_l2
from test_freeze import needs_cpu

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def trained(module):
    """Statistics and scales that every layer's output depends on."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.0)
            nn.init.normal_(part.bias, 0, 0.1)
    return module.eval()


def exact(module, *args):
    with torch.inference_mode(), sf.use_backend("reference"):
        wide = torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.double(), args)
        return copy.deepcopy(module).double()(*wide)


def agrees(module, *args, dtype=None, bound=1e-5, opaque=None):
    """The frozen form gives what the module gives, twice; its profile, for more to look at."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frozen = sf.freeze(module, dtype)
        if opaque:
            warnings.simplefilter("ignore")
        for _ in range(2):
            got = frozen(*args)
        rows = frozen.profile(*args, runs=1)
    expected = exact(module, *args)
    flat, treespec = torch.utils._pytree.tree_flatten(got)
    wanted, same = torch.utils._pytree.tree_flatten(expected)
    assert treespec == same
    for g, w in zip(flat, wanted, strict=True):
        assert g == w if not isinstance(g, torch.Tensor) else g.shape == w.shape and relative_l2(g, w) < bound
    return rows


def share_of_ours(rows):
    return sum(r["flops"] for r in rows if r["provider"] == "cpu") / sum(r["flops"] for r in rows)


# --- networks that are none of ours --------------------------------------------------------------------------


@needs_cpu
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_three_pathways(dtype, bound):
    """The example's: three frame rates, concatenations, a residual around two blocks, a dictionary in and out."""
    import freeze_your_own as example

    torch.manual_seed(0)
    network = trained(example.ThreeRates())
    rows = agrees(network, example.clips(16, 32), dtype=dtype, bound=bound)
    assert share_of_ours(rows) >= 0.95
    assert not [r for r in rows if r["op"] == "cat"]  # written in place
    assert {r["stage"] for r in rows} >= {
        "fast",
        "middle",
        "slow",
        "to_slow",
        "joined",
        "second",
        "classifier",
    }


class Glue(nn.Module):
    """Everything that counts as glue, in one place."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = Stem(3, 16, 1), ConvBN(16, 24, (1, 3, 3)), ConvBN(16, 24, (3, 1, 1))
        self.block, self.basic, self.pool = Bottleneck(48, 8, 48, 3), BasicBlock(48, 48), nn.MaxPool3d(2)
        self.relu, self.drop, self.linear = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(96, 5)

    def forward(self, x, scale=2.0):
        x = self.stem(x)
        x = torch.cat((self.a(x), self.b(x)), 1)
        first, second = x.chunk(2, dim=1)
        y = torch.cat([second * first, x[:, x.shape[1] // 2 :], first[:, 3:11]], dim=1)
        z = self.relu(self.block(x) + x).mul(scale)
        z = self.pool(self.basic(z))
        every = torch.stack([z.mean((2, 3, 4)), torch.flatten(nn.functional.adaptive_avg_pool3d(z, 1), 1)])
        v = torch.cat([every[0], every[-1]], dim=1)
        return self.linear(self.drop(v)), (y, z[:, :, ::2].contiguous()), {"size": x.shape[2] * 2}


@needs_cpu
def test_glue():
    clip = torch.randn(2, 3, 4, 24, 20)
    rows = agrees(trained(Glue()), clip)
    assert share_of_ours(rows) > 0.95
    assert {r["op"] for r in rows} >= {"mul", "add", "relu", "max_pool", "mean", "linear", "cat"}
    assert not [r for r in rows if r["op"] in ("chunk", "opaque")]  # channels are places, not copies


@needs_cpu
def test_arguments_by_name_and_other_plain_values():
    network, clip = trained(Glue()), torch.randn(1, 3, 4, 24, 20)
    frozen = sf.freeze(network)
    with torch.no_grad():
        for kwargs in ({}, {"scale": 3.0}, {"scale": 2.0}):
            assert relative_l2(frozen(clip, **kwargs)[0], network(clip, **kwargs)[0]) < 1e-5
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        frozen()
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        frozen(clip, size=3)
    assert len(frozen._network.graphs) == 2


class Data(nn.Module):
    """Python that looks at values: it cannot be followed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(16, 16, 1)

    def forward(self, x):
        return self.conv(x) if x.mean() > -1e9 else x


class Partly(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.data, self.block = Stem(3, 16, 1), Data(), Bottleneck(16, 8, 16, 3)
        self.lstm, self.last = nn.LSTM(16, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = self.block(torch.special.expit(self.data(self.stem(x))))
        out, _ = self.lstm(x.mean((3, 4)).transpose(1, 2))
        return self.last(out[:, -1])


@needs_cpu
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_what_cannot_be_followed_runs_as_it_is(dtype, bound):
    network, clip = trained(Partly()), torch.randn(1, 3, 4, 16, 16)
    with pytest.warns(UserWarning, match="3 part.s. run outside of the kernels") as said:
        sf.freeze(network)(clip)
    text = str(said[0].message)
    assert (
        "data: Data: " in text and "special_expit is no glue" in text and "lstm: LSTM is none of our" in text
    )
    rows = agrees(network, clip, dtype=dtype, bound=bound, opaque=True)
    opaque = [r for r in rows if r["op"] == "opaque"]
    assert [r["stage"] for r in opaque] == ["data", "data", "lstm"] and opaque[0]["provider"] == "torch"
    assert [r["op"] for r in rows].count("bottleneck3d") == 1


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Bottleneck(4, 4, 4)

    def forward(self, x):
        return self.block(x) if x.sum() > 0 else {"below": self.block(x)}


@needs_cpu
def test_a_module_that_cannot_be_followed_at_all():
    network = trained(Whole())
    frozen = sf.freeze(network)
    with pytest.warns(UserWarning, match="1 part.s. run outside"):
        above = frozen(torch.rand(1, 4, 2, 4, 4))
    below = frozen(-torch.rand(1, 4, 2, 4, 4))
    assert isinstance(above, torch.Tensor) and list(below) == ["below"]


@needs_cpu
def test_the_users_memory_is_his():
    """Nothing writes into arguments, and results are not written to by the next call."""
    network, clip = trained(Glue()), torch.randn(1, 3, 4, 24, 20)
    frozen, before = sf.freeze(network), clip.clone()
    first = frozen(clip)
    kept = copy.deepcopy(first)
    frozen(torch.randn_like(clip))
    assert torch.equal(clip, before)
    assert torch.equal(first[0], kept[0]) and all(map(torch.equal, first[1], kept[1]))
    first[1][0].add_(1)
    assert torch.equal(frozen(clip)[1][0], kept[1][0])


@needs_cpu
def test_later_changes_of_the_weights_are_not_seen():
    network, clip = trained(Glue()), torch.randn(1, 3, 4, 24, 20)
    frozen = sf.freeze(network)
    expected = frozen(clip)[0]
    nn.init.zeros_(network.linear.weight)
    nn.init.zeros_(network.a.conv.weight)
    assert torch.equal(frozen(clip)[0], expected)
    twin = pickle.loads(pickle.dumps(frozen))
    assert torch.equal(twin(clip)[0], expected)


@needs_cpu
def test_activations_without_a_kernel_run_as_the_reference():
    network = trained(nn.Sequential(ConvBN(3, 8, (1, 3, 3), activation="silu"), ConvBN(8, 8, groups=4)))
    rows = agrees(network, torch.randn(1, 3, 2, 9, 9))
    assert [r["provider"] for r in rows if r["op"] == "conv_bn_act3d"] == ["reference"] * 2


def test_modules_without_our_blocks_are_refused():
    for module in (nn.Linear(2, 2), nn.Sequential(nn.Conv3d(3, 3, 1)), "slowfast"):
        with pytest.raises(TypeError, match="expected a module with blocks of slowfast_kernels.nn"):
            sf.freeze(module)
    with pytest.raises(ValueError, match="output: expected None for a Bottleneck, got 'maps'"):
        sf.freeze(Bottleneck(4, 4, 4), output="maps")


# --- the graph itself ----------------------------------------------------------------------------------------


def graph_of(name, **overrides):
    model = sf.create(name, blocks=(2, 1, 1, 1), **overrides).eval()
    graph = trace(model, model.example_inputs())
    passes.run_all(graph)
    return graph


def test_the_topology_of_slowfast():
    graph = graph_of("slowfast_8x8_r50")
    count = {op: sum(n.op == op for n in graph.nodes) for op in {n.op for n in graph.nodes}}
    assert count == {"stem3d": 2, "bottleneck3d": 10, "lateral_fusion": 4, "cat": 4, "pool_concat_head": 1}
    cats = [n for n in graph.nodes if n.op == "cat"]
    for cat in cats:  # each part is written where it belongs
        assert [part.into for part in cat.args[0]] == [cat, cat]
    lanes = {n.stage: n.lane for n in graph.nodes}
    assert {stage for stage, lane in lanes.items() if lane} == {
        "stem.fast",
        *(f"lateral.{i}" for i in range(4)),
        *(f"res{i}.fast" for i in (2, 3, 4, 5)),
    } - {
        stage for stage in lanes if stage.startswith("lateral")
    }  # a lateral's last node is the concatenation
    assert all(n.lane for n in graph.nodes if n.op == "lateral_fusion")
    chains = [chain for chain in passes.chains(graph) if len(chain) > 1]
    assert {chain[0].stage for chain in chains} == {"res2.slow", "res2.fast"}


def test_boxes_are_free():
    graph = graph_of("slowfast_8x8_r50_ava")
    assert graph.free == {2} and graph.nodes[-1].op == "roi_head_pool"


def test_a_sum_goes_where_the_slow_maps_lie():
    graph = graph_of("slowfast_8x8_r50", lateral="time_to_channel_sum", beta=1 / 4)
    sums = [n for n in graph.nodes if n.op == "lateral_fusion"]
    assert len(sums) == 4 and all(n.over is n.args[1] for n in sums)


class Shared(nn.Module):
    """A map that two concatenations and somebody else read, one of which has it twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = ConvBN(3, 4), ConvBN(4, 4)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        return torch.cat([a, b, a], 1), torch.cat([b, torch.cat([a, x], 1)], 1), b


@needs_cpu
def test_a_map_has_one_place():
    network, clip = trained(Shared()), torch.randn(1, 3, 2, 5, 5)
    graph = trace(network, (clip,))
    passes.run_all(graph)
    a, b, first, inner, second = graph.nodes
    assert a.into is inner and b.into is first and inner.into is second  # and copies for the other places
    rows = agrees(network, clip)
    assert [r["op"] for r in rows].count("cat") == 4


# --- prepared ops ----------------------------------------------------------------------------------------------


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prepared_ops(dtype):
    """Pack once, call many: the same answers as the functions', into memory of the caller's where he likes."""
    torch.manual_seed(0)
    bound = 1e-5 if dtype == torch.float32 else 2e-2

    def conv(cout: int, cin: int, *kernel: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weight = torch.randn(cout, cin, *kernel) / (cin * kernel[0] * kernel[1] * kernel[2]) ** 0.5
        return weight.to(dtype), torch.rand(cout) + 0.5, torch.randn(cout) / 10

    x, fast = torch.randn(2, 64, 4, 10, 9).to(dtype), torch.randn(2, 16, 16, 10, 9).to(dtype)
    a, b, c = conv(64, 64, 3, 1, 1), conv(64, 64, 1, 3, 3), conv(64, 64, 1, 1, 1)
    lateral, stem = conv(32, 16, 7, 1, 1), conv(24, 3, 5, 7, 7)
    clip = torch.randn(1, 3, 4, 30, 32).to(dtype)
    calls = [
        (ops.ConvSpec(b, padding=(0, 1, 1)), (x, x), ops.conv_bn_act3d(x, *b, x, padding=(0, 1, 1))),
        (ops.ConvSpec(a, 2, (1, 0, 0), activation="none"), (x,),
         ops.conv_bn_act3d(x, *a, stride=2, padding=(1, 0, 0), activation="none")),
        (ops.BlockSpec(a, b, c), (x,), ops.bottleneck3d(x, a, b, c)),
        (ops.BlockSpec(a, b, c, c, stride=2), (x,), ops.bottleneck3d(x, a, b, c, c, stride=2)),
        (ops.LateralSpec(lateral, 4), (x, fast), ops.lateral_fusion(x, fast, *lateral, alpha=4)),
        (ops.StemSpec(stem), (clip,), ops.stem3d(clip, *stem)),
    ]  # fmt: skip
    for spec, inputs, expected in calls:
        op = ops.prepare(spec)
        assert (op.provider in ("cpu", "convolutions")) and op.dtype == dtype
        weights = sum(t.numel() for t in spec.tensors if t.dim() == 5) * dtype.itemsize
        assert op.nbytes >= weights
        for _ in range(2):
            assert relative_l2(op(*inputs), expected) < bound
        if not isinstance(spec, ops.LateralSpec):
            out = torch.full_like(expected, torch.nan)
            assert op(*inputs, out=out) is out and relative_l2(out, expected) < bound
        with pytest.raises(ValueError, match="prepared for .* got torch.float64 on cpu"):
            op(*(v.double() for v in inputs))


@needs_cpu
def test_what_cannot_be_prepared_says_why():
    weight = torch.randn(4, 4, 1, 1, 1)
    with pytest.raises(RuntimeError, match="the activation is silu, the C.. kernels have none and relu"):
        ops.prepare(ops.ConvSpec((weight,), activation="silu"))
    with pytest.raises(RuntimeError, match="the maps are float64, the C.. kernels take float32 and bfloat16"):
        ops.prepare(ops.ConvSpec((weight.double(),)))
    with pytest.raises(ValueError, match="scale: expected shape"):
        ops.prepare(ops.ConvSpec((weight, torch.ones(3))))
    with sf.use_backend("cuda"), pytest.raises(RuntimeError, match="cuda: this op has no such provider"):
        ops.prepare(ops.ConvSpec((weight,)))


def test_lateral_of_no_kind_is_nothing():
    module = nn.Sequential(ConvBN(3, 4))
    module.lateral = Lateral(4, 2, kind="none")
    slow, fast = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 4, 3, 3)
    assert module.lateral(slow, fast) is slow
    graph = trace(module.lateral, (slow, fast))
    assert not graph.nodes and graph.output is graph.inputs[0]


def test_stages_are_rows_of_blocks():
    module = nn.Module()
    module.row = Stage(8, 4, 16, (1, 3, 1))
    module.forward = lambda x: None

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.row, self.alone = Stage(8, 4, 16, (1, 3, 1)), Bottleneck(16, 4, 16)

        def forward(self, x):
            return self.alone(self.row(x))

    graph = trace(Holder(), (torch.randn(1, 8, 2, 4, 4),))
    assert [n.stage for n in graph.nodes] == ["row", "row", "row", "alone"]


def test_a_trace_changes_no_mode_and_leaves_other_threads_alone():
    """torch.fx stands between every module of the process and its forward while it follows one."""
    network = trained(Glue()).train()
    network.block.b.bn.eval()  # frozen, as fine-tuning has it
    modes = [m.training for m in network.modules()]
    other, clip = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(1, 3, 4, 24, 20)
    stop: list[bool] = []
    problems: list[BaseException] = []

    def work():
        while not stop:
            try:
                assert other(torch.zeros(2, 3)).shape == (2, 3)
            except BaseException as error:
                problems.append(error)
                return

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(5):
        trace(network, (clip,))
    stop.append(True)
    thread.join()
    assert not problems and [m.training for m in network.modules()] == modes


def test_only_ops_with_weights_are_prepared():
    with pytest.raises(TypeError, match="expected a ConvSpec, .* got tuple"):
        ops.prepare((torch.randn(4, 4, 1, 1, 1),))
