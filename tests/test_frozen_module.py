"""A frozen model as other code treats a module: trained on, copied, kept, converted, compiled, called from threads."""

import concurrent.futures
import contextvars
import copy
import functools
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slowfast_kernels as sf
from slowfast_kernels import backends
from slowfast_kernels.freeze import Frozen
from test_freeze import needs_cpu
from test_freeze_gpu import DEVICE, needs

ROOT = Path(__file__).parents[1]
FORMS = [pytest.param("fused", marks=needs_cpu), "reference"]
on_each_form = pytest.mark.parametrize("form", FORMS)


@functools.cache
def model(**overrides):
    """One for all tests: freezing does not change it."""
    torch.manual_seed(0)
    small = {
        "crop": 32,
        "blocks": (1, 1, 1, 1),
        "classes": 5,
        "activation": "none",
        "zero_init_final_bn": False,
    }
    net = sf.models.create("slow_4x16_r50", **{**small, **overrides}).eval()
    nn.init.normal_(net.head.proj.weight, 0, 0.5)
    return net


def frozen(form="fused", dtype=None, **overrides):
    with sf.use_backend("auto" if form == "fused" else "reference"):
        made = sf.freeze(model(**overrides), dtype)
    assert made.kernels == form and (made.reason is None) == (form == "fused")
    return made


def clip(batch=1, frames=4, side=32):
    return torch.randn(batch, 3, frames, side, side)


class Larger(nn.Module):
    """A head of somebody's own on a frozen trunk."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.own = trunk, nn.Linear(5, 2)

    def forward(self, x):
        return self.own(torch.relu(self.trunk(x)))


# --- results -----------------------------------------------------------------------------------------------


@on_each_form
@pytest.mark.parametrize("output", ["scores", "features", "maps"])
def test_results_are_ordinary_tensors(form, output):
    f, x = frozen(form, output=output), clip(2)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            out = f(x)
        (first, *_) = out if output == "maps" else [out]
        assert not first.is_inference() and not first.requires_grad
        expected = first.clone()
        first += 1
        head = nn.Linear(first.shape[-1], 2)
        head(first).sum().backward()
        assert head.weight.grad.abs().max() > 0
        again = f(x)
        assert torch.equal(again[0] if output == "maps" else again, expected)


@on_each_form
def test_a_head_is_trained_on_a_frozen_trunk(form):
    larger = Larger(frozen(form)).train()
    larger(clip(2)).sum().backward()
    assert larger.own.weight.grad.abs().max() > 0
    assert not larger.trunk.training and not any(m.training for m in larger.trunk.modules())


@on_each_form
@pytest.mark.parametrize("output", ["scores", "features"])
@pytest.mark.parametrize("roi", [None, True])
def test_autocast_rounds_nothing(form, output, roi):
    f = frozen(form, output=output, roi=roi, activation="none")
    args = (clip(), *([torch.tensor([[0, 2.0, 3.0, 20.0, 30.0]])] if roi else []))
    expected = f(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(f(*args), expected)


# --- backends ----------------------------------------------------------------------------------------------


@needs_cpu
def test_another_backend_around_the_call_is_refused():
    f, x = frozen(), clip()
    expected = f(x)
    for name in ("auto", "cpu"):  # what it was frozen under, and what runs
        with sf.use_backend(name):
            assert torch.equal(f(x), expected)
    for name in ("reference", "triton", "cuda"):
        with (
            sf.use_backend(name),
            pytest.raises(RuntimeError, match=rf"use_backend\('{name}'\): this model was frozen"),
        ):
            f(x)
        with sf.use_backend(name), pytest.raises(RuntimeError, match="freeze it again"):
            f.profile(x, runs=1)


def test_the_reference_is_not_overruled_either():
    f, x = frozen("reference"), clip()
    expected = f(x)
    with sf.use_backend("reference"):
        assert torch.equal(f(x), expected)
    with sf.use_backend("cpu"), pytest.raises(RuntimeError, match="was frozen under 'reference'"):
        f(x)


def test_the_choice_of_a_backend_in_pool_threads():
    """The ways that `use_backend` documents."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool, sf.use_backend("reference"):
        assert pool.submit(backends.current).result() == "auto"  # threads start with no choice
        assert pool.submit(contextvars.copy_context().run, backends.current).result() == "reference"
        contexts = [contextvars.copy_context() for _ in range(4)]
        assert {*pool.map(lambda c: c.run(backends.current), contexts)} == {"reference"}
    assert "copy_context" in sf.use_backend.__doc__ and "SLOWFAST_BACKEND" in sf.use_backend.__doc__


# --- copies, and files -------------------------------------------------------------------------------------


def through_torch_save(f):
    file = io.BytesIO()
    torch.save(f, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda f: pickle.loads(pickle.dumps(f)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("way", COPIES)
@on_each_form
def test_copies_compute_the_same(form, way, called_before):
    f, x = frozen(form, torch.bfloat16), clip(2)
    expected = f(x) if called_before else None
    twin = COPIES[way](f)
    assert torch.equal(twin(x), f(x) if expected is None else expected)
    assert (twin.dtype, twin.device, twin.config, twin.kernels) == (f.dtype, f.device, f.config, f.kernels)


@needs_cpu
def test_copies_share_the_weights_and_nothing_else():
    f = frozen()
    for way in (copy.copy, copy.deepcopy):
        twin = way(f)
        assert twin._network is f._network
        assert twin._plans is not f._plans and twin._lock is not f._lock
    larger = Larger(f)
    twin = copy.deepcopy(larger)
    twin.trunk.register_forward_hook(lambda module, args, out: out + 1)
    x = clip()
    assert torch.equal(twin.trunk(x), larger.trunk(x) + 1)


@needs_cpu
def test_copies_of_every_kind_of_layer():
    for name, overrides in {
        "slowfast_8x8_r50": {"frames": 8, "lateral": "time_to_channel_concat", "roi": True},
        "i3d_8x8_r50": {"frames": 4, "block": "basic"},
    }.items():
        net = sf.models.create(name, **{"crop": 32, "blocks": (1, 1, 1, 1), "classes": 5, **overrides}).eval()
        args: list[Any] = [[clip(1, net.config.frames_of(p)) for p in net.config.pathways]]
        args += [torch.tensor([[0, 2.0, 3.0, 20.0, 30.0]])] if net.config.head.roi else []
        f = sf.freeze(net)
        assert torch.equal(COPIES["pickle"](f)(*args), f(*args))


@needs["triton"]
def test_a_model_for_a_gpu():
    """Its backend and its copies."""
    x = clip(frames=1, side=8).to(DEVICE)
    with sf.use_backend("triton"):
        f = sf.freeze(copy.deepcopy(model()).to(DEVICE))
    expected = f(x)
    assert torch.equal(COPIES["pickle"](f)(x), expected)
    assert copy.deepcopy(f)._network is f._network
    with sf.use_backend("cpu"), pytest.raises(RuntimeError, match="was frozen under 'triton'"):
        f(x)


def answer(f, x, queue):
    queue.put(f(x).tolist())


@needs_cpu
def test_a_process_that_is_spawned_gets_a_model():
    f, x = frozen(), clip()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=answer, args=(f, x, queue))
    process.start()
    assert queue.get(timeout=300) == f(x).tolist()
    process.join()
    assert process.exitcode == 0


@needs_cpu
def test_a_file_of_another_version_or_for_another_machine_says_what_to_keep(monkeypatch):
    data = pickle.dumps(frozen())
    with monkeypatch.context() as m:
        m.setattr(sf, "__version__", "9.9")
        with pytest.raises(
            RuntimeError, match=r"packed by version .*this is 9\.9; keep the model .*save_checkpoint"
        ):
            pickle.loads(data)
    with monkeypatch.context() as m:
        m.setattr(backends, "unavailable", lambda name: "the native CPU library is not built")
        with pytest.raises(
            RuntimeError, match=r"frozen for cpu in torch.float32 cannot be used here: the native"
        ):
            pickle.loads(data)
    file = io.BytesIO()
    torch.save(frozen(), file)
    file.seek(0)
    with pytest.raises(RuntimeError, match="its weights came to meta"):
        torch.load(file, weights_only=False, map_location="meta")


@needs_cpu
def test_an_empty_state_dict_is_not_silent():
    with pytest.warns(UserWarning, match="state_dict: this is a frozen model, .*save_checkpoint"):
        assert not frozen().state_dict()
    larger = Larger(frozen())
    with pytest.warns(UserWarning, match="state_dict: trunk is a frozen model"):
        assert [*larger.state_dict()] == ["own.weight", "own.bias"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(frozen("reference").state_dict()) > 10


# --- conversions -------------------------------------------------------------------------------------------


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_conversions_that_change_nothing(dtype):
    f, x = frozen(dtype=dtype), clip()
    expected = f(x)
    same = {torch.float32: f.float, torch.bfloat16: f.bfloat16}[dtype]
    for done in (
        same(),
        f.cpu(),
        f.to("cpu"),
        f.to(dtype),
        f.to(torch.zeros(1, dtype=dtype)),
        f.share_memory(),
    ):
        assert done is f
    f.to(memory_format=torch.channels_last_3d).eval().train().requires_grad_(False).zero_grad()
    assert torch.equal(f(x), expected)
    assert Larger(f).to("cpu").trunk is f


@needs_cpu
@pytest.mark.parametrize(
    "convert, got",
    [
        (lambda m: m.half(), "cpu and torch.float16"),
        (lambda m: m.double(), "cpu and torch.float64"),
        (lambda m: m.bfloat16(), "cpu and torch.bfloat16"),
        (lambda m: m.to(torch.float16), "cpu and torch.float16"),
        (lambda m: m.to("meta"), "meta and torch.float32"),
        (lambda m: m.to_empty(device="meta"), "meta and torch.float32"),
        (lambda m: m.type(torch.float64), "cpu and torch.float64"),
    ],
    ids=["half", "double", "bfloat16", "to_dtype", "to_meta", "to_empty", "type"],
)
def test_conversions_that_are_refused(convert, got):
    f, x = frozen(), clip()
    expected = f(x)
    for module in (f, nn.Sequential(f)):
        with pytest.raises(
            RuntimeError, match=rf"frozen for cpu in torch.float32, asked for {got}: .*freeze\(model"
        ):
            convert(module)
    assert torch.equal(f(x), expected)


def test_the_reference_is_converted():
    f, x = frozen("reference"), clip()
    expected = f(x)
    y = f.double()(x)
    assert f.dtype == torch.float64 and y.dtype == torch.float32
    assert torch.allclose(y, expected, rtol=1e-4, atol=1e-5)


# --- compilers ---------------------------------------------------------------------------------------------


@pytest.fixture
def dynamo():
    import torch._dynamo

    torch._dynamo.reset()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@on_each_form
@pytest.mark.parametrize("wrap", [lambda f: f, Larger], ids=["alone", "in a larger module"])
def test_compiled_it_runs_as_it_is(form, wrap, dynamo):
    module = wrap(frozen(form))
    compiled = torch.compile(module, backend="eager", dynamic=True)
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for side in range(6, 18):  # more shapes than the limit of recompilations
            if side == 9:
                dynamo.clear()
            x = clip(side=side)
            assert torch.equal(compiled(x), module(x))
    assert not dynamo["frames"] and not dynamo["stats"], dynamo
    assert not [str(w.message) for w in said if "recompile" in str(w.message)]


@needs_cpu
def test_a_full_graph_is_refused_in_words(dynamo):
    with pytest.raises(torch._dynamo.exc.Unsupported, match="a frozen model is compiled already"):
        torch.compile(frozen(), backend="eager", fullgraph=True)(clip())


@needs_cpu
def test_freezing_and_calling_imports_no_compiler():
    program = (
        "import sys, torch, slowfast_kernels as sf\n"
        "f = sf.freeze(sf.models.create('slow_4x16_r50', crop=32, blocks=(1, 1, 1, 1)).eval())\n"
        "f(torch.randn(1, 3, 4, 32, 32))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    assert run(program).splitlines() == ["False"]


@needs_cpu
def test_exported():
    f, x = frozen(), clip()
    program = torch.export.export(f, (x,), strict=False)
    other = clip()
    assert torch.equal(program.module()(other), f(other))
    with pytest.raises(RuntimeError, match="expected a model, got a frozen one, which torch.export takes"):
        torch.jit.trace(f, x)


# --- without kernels ---------------------------------------------------------------------------------------


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installation_without_kernels_says_so_once(tmp_path):
    program = (
        "import warnings, torch, slowfast_kernels as sf\n"
        "m = sf.models.create('slow_4x16_r50', crop=32, blocks=(1, 1, 1, 1)).eval()\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    frozen = [sf.freeze(m), sf.freeze(m)]\n"
        "    sf.accelerate(m)\n"
        "print(len(said), said[0].category.__name__, said[0].message)\n"
        "print(frozen[0].kernels, frozen[0].reason)\n"
        "print(tuple(frozen[0](torch.randn(1, 3, 4, 32, 32)).shape))\n"
    )
    warned, form, shape = run(program, SLOWFAST_LIB_DIR=str(tmp_path)).splitlines()
    why = "the native CPU library is not built (libslowfast_cpu.so is missing)"
    assert warned.startswith("1 UserWarning freeze: no fused kernels, PyTorch's own operators run: " + why)
    assert form == f"reference {why}" and shape == "(1, 400)"


@needs_cpu
def test_a_dtype_without_kernels_warns(monkeypatch):
    monkeypatch.setattr(sys.modules[Frozen.__module__], "_warned", set())
    with pytest.warns(UserWarning, match="dtype is torch.float16, the C.. kernels take float32 and bfloat16"):
        f = sf.freeze(model(), torch.float16)
    assert f.kernels == "reference" and "float16" in f.reason and f.dtype == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.freeze(model(), torch.float16)
        with sf.use_backend("reference"):
            assert sf.freeze(model(), torch.float64).reason == "the reference was asked for"
    with pytest.warns(UserWarning, match="the model is on meta"):
        assert sf.freeze(copy.deepcopy(model()).to("meta")).device.type == "meta"


def test_arguments_of_freeze():
    for dtype in ("bf16", "float32", 32):
        with pytest.raises(
            TypeError, match=rf"dtype: expected a torch.dtype such as torch.bfloat16, got {dtype!r}"
        ):
            sf.freeze(model(), dtype)
    with pytest.raises(
        ValueError, match="expected a floating-point type such as torch.bfloat16, got torch.int8"
    ):
        sf.freeze(model(), torch.int8)
    with pytest.raises(TypeError, match="it is frozen already"):
        sf.freeze(frozen("reference"))
    with pytest.raises(ValueError, match="output: expected one of scores, features, maps, got 'logits'"):
        sf.freeze(model(), output="logits")
    assert isinstance(frozen("reference"), nn.Module) and not isinstance(frozen("reference"), Frozen)
