"""Whether the GPU kernels compute what they should: every call of every op against float64, on poisoned memory.

Also runs the GPU tests where pytest is installed, and the small calls again under compute-sanitizer where that
is installed. A refusal ("this kernel does not take float32") is not a failure; a wrong value, a value that was
not written and a crash are.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from slowfast_kernels import backends, ops, testing
from slowfast_kernels.bench import registry, store
from slowfast_kernels.bench.compare import DeviceLost
from slowfast_kernels.bench.gpu.items import Item
from slowfast_kernels.bench.gpu.machine import GpuMachine, machine_for, moved
from slowfast_kernels.bench.gpu.programs import output, tool
from slowfast_kernels.bench.harness import Setting, first_line
from slowfast_kernels.ops._cases import Args, Case, cases_of, op_names

PROVIDERS = ("triton", "cuda")

#: Relative L2 error of float32 results: the project's limit; of TF32 products, about 3e-4 each.
BOUNDS = {"fp32": 1e-5, "tf32": 2e-3}

#: The same of gradients.
GRADIENTS = {"fp32": 1e-5, "bf16": 2e-2}

#: Ops with a gradient of their own.
DIFFERENTIABLE = ("roi_align3d", "roi_head_pool")

#: Ops whose real calls have too many bins or channels for an interpreter.
SLOW_TO_INTERPRET = ("roi_align3d", "pool_concat_head")

Verdict = dict[str, Any]


def items(machine: GpuMachine) -> list[Item]:
    """The GPU tests, the sanitizer, one item for each op, provider and kind of numbers."""
    setting = machine.setting
    torch.backends.cudnn.benchmark = False  # hundreds of shapes, each computed once
    found = [
        Item("pytest", lambda: [run_pytest(machine)], alone=True),
        Item("sanitizer", lambda: [run_sanitizer(machine)], alone=True),
    ]
    # TF32's exact answer is float32's; a dry run's calls are few.
    kinds = [("bf16", "fp16", "fp32", "tf32")] if machine.dry else [("bf16",), ("fp32", "tf32"), ("fp16",)]
    for dtypes in kinds:
        for provider, op in itertools.product(PROVIDERS, _ops(setting.op)):
            found.append(
                Item(
                    " ".join([op, provider, *(() if machine.dry else dtypes)]),
                    functools.partial(_checked, machine, op, provider, dtypes),
                )
            )
    return found


def _checked(machine: GpuMachine, op: str, provider: str, dtypes: Sequence[str]) -> list[Verdict]:
    return [check_op(machine, op, provider, _cases(machine, op), dtypes)]


def _ops(pattern: str | None) -> list[str]:
    return [name for name in op_names() if registry.matches(name, pattern)]


def _cases(machine: GpuMachine, op: str) -> list[Case]:
    """All calls; with a limit the smallest edge cases and real ones, as many of each."""
    cases = [c for c in cases_of(op) if registry.matches(c.name, machine.setting.case)]
    limit = machine.setting.limit
    if not limit:
        return cases

    def size(case: Case) -> int:
        args, _ = case.args(device="meta", shrink=machine.setting.check_shrink)
        return sum(x.numel() for x in args if isinstance(x, Tensor))

    real, edge = ([c for c in cases if c.real == kind] for kind in (True, False))
    if machine.dry and op in SLOW_TO_INTERPRET:
        real = []
    # Empty calls say little where only a few are made.
    edge = [c for c in edge if not c.name.startswith(("batch 0", "no box"))]
    return [*sorted(real, key=size)[:limit], *sorted(edge, key=size)[:limit]]


# --- one op ------------------------------------------------------------------------------------------------


def check_op(
    machine: GpuMachine,
    op: str,
    provider: str,
    cases: Sequence[Case],
    dtypes: Sequence[str] = ("bf16", "fp16", "fp32", "tf32"),
) -> Verdict:
    """Run the calls on one provider; the record counts them and says what is wrong."""
    reason = backends.unavailable(provider)
    record: Verdict = {"what": f"{op} {provider}", "op": op, "provider": provider, "passed": 0}
    record |= {"refused": {}, "failures": [], "missing": reason, "worst": {}, "not_reached": 0}
    if reason is not None:
        return record
    for case in _mixed(cases):
        if machine.item_late():
            record["not_reached"] += 1
            continue
        exact: Any = None
        for dtype in dtypes:
            args = machine.small(case, dtype)
            if dtype != "tf32" or exact is None:  # the exact answer to TF32 is float32's
                with backends.use_backend("reference"), torch.no_grad():
                    exact = _call(op, testing.to_float64(args))
            # float32 has a bound of its own; elsewhere plain PyTorch's error is the measure
            peer = exact
            if dtype not in BOUNDS:
                with backends.use_backend("reference"), torch.no_grad():
                    peer = _call(op, args)
            what = f"{case.name}, {dtype}"
            with _noted(machine, record, what):
                with (
                    machine.arithmetic(dtype),
                    backends.use_backend(provider),
                    testing.poisoned_memory(),
                    torch.no_grad(),
                ):
                    got = _call(op, args)
                machine.synchronize()
                _check_values(got, exact, peer, dtype, what)
                worst = testing.relative_l2(got, exact)
                record["worst"][dtype] = max(worst, record["worst"].get(dtype, 0.0))
    if op in DIFFERENTIABLE:
        _check_gradient(machine, op, provider, cases, record, [d for d in GRADIENTS if d in dtypes])
    return record


def _mixed(cases: Sequence[Case]) -> list[Case]:
    """Real calls and edge cases in turns: whatever the time allows is a sample of both."""
    kinds = [[c for c in cases if c.real == kind] for kind in (True, False)]
    return [c for pair in itertools.zip_longest(*kinds) for c in pair if c is not None]


def _call(op: str, call: Args) -> list[Tensor]:
    args, kwargs = call
    out = getattr(ops, op)(*args, **kwargs)
    return [out] if isinstance(out, Tensor) else list(out)


@contextlib.contextmanager
def _noted(machine: GpuMachine, record: Verdict, what: str) -> Iterator[None]:
    """A check on poisoned memory; the record says how it ended."""
    machine.poison()
    try:
        yield
    except Exception as error:  # a kernel that does not compile raises whatever its compiler raises
        if not machine.alive():
            raise DeviceLost(f"{record['what']}, {what}: {first_line(error)}") from error
        if isinstance(error, RuntimeError) and "cannot run here" in str(error):
            record["refused"].setdefault(_refusal(error), []).append(what)
        elif isinstance(error, AssertionError):
            record["failures"].append(first_line(error))
        else:
            record["failures"].append(f"{what}: {type(error).__name__}: {first_line(error)}")
    else:
        record["passed"] += 1


def _refusal(error: RuntimeError) -> str:
    """The reason inside "slowfast::op cannot run here (provider: reason)"."""
    text = first_line(error)
    return text.partition("cannot run here (")[2].removesuffix(")") or text


def _check_values(got: list[Tensor], exact: list[Tensor], peer: list[Tensor], dtype: str, what: str) -> None:
    assert len(got) == len(exact), f"{what}: expected {len(exact)} results, got {len(got)}"
    for g, e, p in zip(got, exact, peer, strict=True):
        assert g.shape == e.shape, f"{what}: expected shape {tuple(e.shape)}, got {tuple(g.shape)}"
        if not g.is_floating_point():
            assert torch.equal(g, e), f"{what}: other integers"
        elif g.dtype == torch.float32:
            # Scores are float32 whatever the maps are, and so are the sums they come from.
            testing.assert_close(g, e, bound=BOUNDS.get(dtype, BOUNDS["fp32"]), what=what)
        else:
            testing.assert_no_worse(g, p, e, what=what)


def _check_gradient(
    machine: GpuMachine, op: str, provider: str, cases: Sequence[Case], record: Verdict, dtypes: Sequence[str]
) -> None:
    """Gradients of the feature maps against float64, and the same bits twice."""
    for case in [c for c in cases if c.real][:2] + [c for c in cases if c.edge][:2]:
        for dtype in dtypes:
            if machine.item_late():
                record["not_reached"] += 1
                continue
            what = f"{case.name}, gradient, {dtype}"
            args = machine.small(case, dtype)
            wide = _gradients(op, testing.to_float64(args), "reference")
            with _noted(machine, record, what):
                with machine.arithmetic(dtype), testing.poisoned_memory():
                    got, again = (_gradients(op, args, provider) for _ in range(2))
                machine.synchronize()
                for g, h, e in zip(got, again, wide, strict=True):
                    testing.assert_gradient(g, e, GRADIENTS[dtype], what=what)
                    assert torch.equal(g, h), f"{what}: not the same bits twice"


def _gradients(op: str, call: Args, provider: str) -> list[Tensor]:
    """Gradients of the 5-D arguments under a fixed random upstream gradient."""
    (args, kwargs), leaves = testing.with_gradients(call)
    with backends.use_backend(provider):
        outputs = [y for y in _call(op, (args, kwargs)) if y.is_floating_point()]
        generator = torch.Generator().manual_seed(7)
        upstream = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in outputs]
        torch.autograd.backward(outputs, upstream)
    return [leaf.grad for leaf in leaves if leaf.dim() == 5 and leaf.grad is not None]


# --- pytest and compute-sanitizer ----------------------------------------------------------------------------


def run_pytest(machine: GpuMachine) -> Verdict:
    """The tests marked ``gpu``, in a process of their own, as far as the part's time allows."""
    record: Verdict = {"what": "pytest -m gpu", "passed": 0, "failures": [], "missing": None}
    tests = store.ROOT / machine.setting.tests
    if importlib.util.find_spec("pytest") is None:
        return record | {"missing": "pytest is not installed: the checks above stand alone"}
    if not tests.exists():
        return record | {"missing": f"no tests beside this package ({tests})"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", "--color=no"]
    command += ["--continue-on-collection-errors", str(tests)]
    code, text = output(machine, command, "pytest.txt", cwd=store.ROOT)
    record["passed"] = len(re.findall(r" PASSED\b", text))
    lines = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if code is None:
        lines += re.findall(r"^(\S+::.* (?:FAILED|ERROR))\b", text, re.MULTILINE)
        return _stopped(record, lines)
    last = record["summary"] = (text.strip().splitlines() or ["no output"])[-1].strip("= ")
    if code == 5:  # nothing collected
        return record | {"missing": "no test is marked gpu"}
    if code != 0:
        # A package that only some tests need is no fault of the kernels.
        wrong = [line for line in lines if "No module named" not in line]
        absent = sorted(set(re.findall(r"No module named '([\w.]+)'", text)))
        if absent and (not wrong or "ImportError while loading conftest" in text):
            return record | {"missing": f"some tests need {', '.join(absent)}, not installed ({last})"}
        record["failures"] = wrong or [f"pytest ended with {code}: {last}"]
    return record


def _stopped(record: Verdict, failures: list[str]) -> Verdict:
    """The verdict of a process whose time was over."""
    summary = f"stopped when its time was over, {record['passed']} passed by then"
    return record | {"summary": summary, "failures": failures, "missing": None if failures else summary}


def run_sanitizer(machine: GpuMachine) -> Verdict:
    """compute-sanitizer's memcheck over the smallest call of every op, each tensor in memory of its own."""
    record: Verdict = {"what": "compute-sanitizer", "passed": 0, "failures": [], "missing": None}
    sanitizer = tool("compute-sanitizer")
    if sanitizer is None:
        return record | {"missing": "compute-sanitizer is not installed"}
    # Triton's compiler runs as a process of its own, which is not to be watched.
    command = [
        sanitizer,
        "--tool",
        "memcheck",
        "--target-processes",
        "application-only",
        "--print-limit",
        "20",
    ]
    command += ["--error-exitcode", "9", sys.executable, "-m", __spec__.name]
    command += ["--dry-run"] if machine.dry else []
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, text = output(machine, command, "sanitizer.txt", env=environment)
    record["passed"] = text.count("\nchecked ")
    accesses = re.findall(r"^.*(?:Invalid __|Misaligned).*$", text, re.MULTILINE)
    faults = [
        x.strip("= ") for x in accesses + re.findall(r"^(?:Traceback|RuntimeError).*$", text, re.MULTILINE)
    ]
    if code is None:
        return _stopped(record, faults)
    broken = re.search(r"^=+ (.*(?:not supported|Unable to find|LibraryNotLoaded).*)$", text, re.MULTILINE)
    if broken and not accesses:
        return record | {"passed": 0, "missing": f"compute-sanitizer does not work here: {broken.group(1)}"}
    record["summary"] = next((x.strip("= ") for x in text.splitlines() if "ERROR SUMMARY" in x), "no summary")
    if code != 0:
        record["failures"] = faults or [f"ended with {code}: {record['summary']}"]
    return record


def small_calls(machine: GpuMachine) -> int:
    """What the sanitizer watches: the smallest edge call of every op in bf16, on every GPU provider."""
    for op in op_names():
        cases = [c for c in cases_of(op) if c.edge and not c.name.startswith(("batch 0", "no box"))]
        for provider in PROVIDERS:
            if backends.unavailable(provider) is not None:
                continue

            def size(case: Case) -> int:
                return sum(x.numel() for x in pytree.tree_leaves(case.args()) if isinstance(x, Tensor))

            args = moved(min(cases, key=size).args(dtype=torch.bfloat16), machine.device)
            try:
                with backends.use_backend(provider), torch.no_grad():
                    _call(op, args)
                if op in DIFFERENTIABLE:
                    _gradients(op, args, provider)
                machine.synchronize()
            except RuntimeError as error:
                if "cannot run here" not in str(error):
                    raise
                continue
            sys.stdout.write(f"\nchecked {op} {provider}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(small_calls(machine_for(Setting(dry="--dry-run" in sys.argv))))
