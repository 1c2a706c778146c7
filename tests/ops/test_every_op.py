"""Every op on every provider: each of its cases, and what each provider says to the calls it does not take.

An op is tested here by having cases (slowfast_kernels/ops/<op>/cases.py).
"""

import os
import subprocess
import sys

import pytest
import torch

from ops.parity import SHRINK, bits, call, check, check_gradients, check_threads, expected_of, size_of, there
from slowfast_kernels import ops
from slowfast_kernels.ops._cases import (
    Draw,
    call_of,
    cases_of,
    contracts_of,
    errors_of,
    op_names,
    reduction_of,
    refused_of,
)
from slowfast_kernels.ops._registration import OPS, RecordCalls
from slowfast_kernels.precision import fp32_precision
from slowfast_kernels.testing import PROVIDERS, assert_same_layout, provider_device, with_gradients

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def name_of(value):
    return str(value).removeprefix("torch.")


def providers_of(op):
    """Those of `testing.PROVIDERS` that an op has."""
    return [p for p in PROVIDERS if p.partition(":")[0] in OPS[op].providers]


def taken(op, case, provider, dtype):
    return refused_of(op, provider.partition(":")[0], case.name, dtype) is None


def each(*names, calls):
    """Parametrises a test with calls; the provider comes last, so that what is expected is computed once."""
    ids = ["-".join(map(name_of, values)) for values in calls]
    return pytest.mark.parametrize(", ".join(names), calls, ids=ids, indirect=["provider"])


CASES = [(op, case) for op in op_names() for case in cases_of(op)]


@pytest.fixture(autouse=True)
def exact_float32():
    """tf32 is less exact than this asks for."""
    with fp32_precision("ieee"):
        yield


@each("op", "case", "dtype", "provider", calls=[
    (op, case, dtype, provider)
    for op, case in CASES for dtype in DTYPES for provider in providers_of(op)
    if taken(op, case, provider, dtype)
])  # fmt: skip
def test_parity(op, case, dtype, provider):
    """Against float64, on poisoned memory; the result lies as the fake promises."""
    size = size_of(provider)
    args, kwargs = there(case.args(dtype=dtype, **size))
    with RecordCalls(run=False):
        promised = call(op, args, kwargs)
    got = call(op, args, kwargs)
    for g, p in zip(got, promised, strict=True):
        assert_same_layout(g, p)
        assert g.dtype == p.dtype
    exact, peer = expected_of(op, case.name, dtype, size["most"])
    check([g.cpu() for g in got], exact, peer, reduction_of(op, case), f"{op}, {case}, {provider}")


@each("op", "case", "provider", calls=[
    (op, case, provider)
    for op, case in CASES for provider in providers_of(op)
    if case.edge and case.gradient is not None and taken(op, case, provider, torch.float32)
    and with_gradients(case.args(device="meta", shrink=SHRINK))[1]
    and not (provider == "triton" and op.startswith("roi"))  # of fewer boxes, in those ops' own files
])  # fmt: skip
def test_gradients(op, case, provider):
    """Of every floating-point argument, against autograd through the reference in float64."""
    args, kwargs = there(case.args())
    check_gradients(op, args, kwargs, case.gradient, f"{op}, {case}, {provider}")


@each("op", "case", "provider", calls=[
    (op, case, provider) for op, case in CASES for provider in providers_of(op) if provider.startswith("cpu:")
])  # fmt: skip
def test_threads_do_not_change_the_result(op, case, provider):
    check_threads(op, *case.args(shrink=4))


@each("op", "provider", calls=[
    (op, provider) for op in op_names() for provider in providers_of(op) if provider.startswith("cpu:")
])  # fmt: skip
def test_calls_do_not_change_each_other(op, provider):
    """Nor their inputs: scratch memory and packed weights of other calls are gone."""
    dtype = next(d for d in DTYPES if taken(op, cases_of(op)[0], provider, d))
    some = [c for c in cases_of(op) if c.edge and taken(op, c, provider, dtype) and c.gradient is not None]
    made = [there(case.args(dtype=dtype)) for case in some]
    kept = [there(case.args(dtype=dtype)) for case in some]
    first = [[bits(r.cpu()) for r in call(op, *arguments)] for arguments in made]
    again = [[bits(r.cpu()) for r in call(op, *arguments)] for arguments in reversed(made)][::-1]
    for case, before, after in zip(some, first, again, strict=True):
        assert all(map(torch.equal, before, after)), case.name
    for case, used, fresh in zip(some, made, kept, strict=True):
        pairs = zip(leaves(used), leaves(fresh), strict=True)
        assert all(torch.equal(bits(a.cpu()), bits(b.cpu())) for a, b in pairs), (
            f"{case}: an input was written"
        )


def leaves(tree):
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


@each("op", "dtype", "provider", calls=[
    (op, dtype, provider)
    for op in op_names() for dtype in (*DTYPES, torch.float64) for provider in OPS[op].providers
    if provider != "reference"
])  # fmt: skip
def test_what_is_refused(op, dtype, provider):
    """The sentences of `REFUSED` and no others: kernels that take less than they did, or more, show here."""
    said, expected = {}, {}
    for case in cases_of(op):
        args, kwargs = case.args(dtype=dtype, device=provider_device(provider), shrink=1000, most=2)
        made = call_of(op, args, kwargs)
        if made is None:
            continue
        said[case.name] = OPS[op].providers[provider].refuses(*made[1], made[2])
        expected[case.name] = refused_of(op, provider, case.name, dtype)
        if said[case.name] is not None:
            with pytest.raises(RuntimeError) as caught:
                getattr(ops, op)(*args, **kwargs)
            assert str(caught.value).endswith(f"cannot run here ({provider}: {said[case.name]})")
    assert said == expected


@each("op", "provider", calls=[
    (op, provider) for op in op_names() if any(kind.startswith("ConvAffine") for _, kind in OPS[op].spec.layout)
    for provider in OPS[op].providers if provider != "reference"
])  # fmt: skip
def test_mixed_types_are_refused(op, provider):
    """By the kernels, which the registered ops reach without the checks of the public function (test_arguments.py)."""
    own, other = torch.bfloat16, torch.float32
    contract = list(contracts_of(op).values())[-1](Draw(seed=2, dtype=own, device=provider_device(provider)))
    seen = set()
    for change in ({}, *(change for several in contract.changes.values() for change in several)):
        made = call_of(op, (), contract.base | change)
        registered, inputs, spec = made or (None, (), None)
        if registered is None or registered.providers[provider].refuses(*inputs, spec) is not None:
            continue
        flat = [*inputs, *spec.flat()]
        for i, x in enumerate(flat):
            if i and isinstance(x, torch.Tensor) and x.dim() == 5:
                wrong = registered.split([*flat[:i], x.to(other), *flat[i + 1 :]])
                said = registered.providers[provider].refuses(*wrong)
                assert said and str(own) in said and str(other) in said, (registered.arguments[i], said)
                seen.add((registered.name, registered.arguments[i]))
    every = {(op, a) for a in OPS[op].arguments[1:] if a.startswith(("fast", "residual", "weight"))}
    assert every <= seen


@pytest.mark.parametrize("op, name", [(op, name) for op in op_names() for name in errors_of(op).wrong])
def test_errors(op, name):
    """The message says what was expected and what came."""
    errors = errors_of(op)
    with pytest.raises(ValueError, match=errors.wrong[name][1]):
        getattr(ops, op)(**errors.call(name))


@pytest.mark.parametrize("op", op_names())
def test_errors_are_of_a_call_that_fits(op):
    getattr(ops, op)(**errors_of(op).base)


@pytest.mark.skipif(torch.cuda.is_available(), reason="no provider can be taken away from this machine")
def test_a_provider_that_is_required_must_be_there():
    """SLOWFAST_REQUIRE makes failures of the tests that are skipped otherwise."""
    one = "test_what_is_refused[stem3d-float32-triton]"
    environment = os.environ | {"TRITON_INTERPRET": "0", "SLOWFAST_REQUIRE": "cpu,triton"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{one}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "1 error" in done.stdout and "which SLOWFAST_REQUIRE asks for" in done.stdout, done.stdout
