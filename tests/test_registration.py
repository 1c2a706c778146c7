"""Every registered op obeys PyTorch's rules for custom ops: schema, fake, autograd, compilation (opcheck)."""

import pytest
import torch
from torch.library import opcheck

from slowfast_kernels import ops
from slowfast_kernels.ops._cases import cases_of, op_names
from slowfast_kernels.ops._registration import LIBRARY, OPS, RecordCalls
from slowfast_kernels.testing import with_gradients

#: One real layer, shrunk to a few pixels, stands for all: opcheck is about tensors' kinds, not sizes.
SMALL = [
    (op, case)
    for op in op_names()
    for real in (False, True)
    for case in [c for c in cases_of(op) if c.real == real][: 1 if real else None]
]


def calls_of(op, case, dtype=torch.float32):
    """Calls of registered ops behind a call of a public function."""
    args, kwargs = case.args(dtype=dtype, shrink=16)
    with RecordCalls() as record:
        getattr(ops, op)(*args, **kwargs)
    return [(name, a) for name, a in record.calls if name in OPS]


def qualified(name):
    return getattr(torch.ops.slowfast, name).default


def live(args):
    """The arguments with every floating-point tensor as a leaf that wants a gradient."""
    return tuple(
        a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    )


@pytest.mark.parametrize("op, case", SMALL, ids=[f"{op}-{case}" for op, case in SMALL])
def test_schema_and_fake(op, case):
    """In bfloat16; float32 is below."""
    for name, args in calls_of(op, case, torch.bfloat16):
        opcheck(qualified(name), args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("op, case", SMALL, ids=[f"{op}-{case}" for op, case in SMALL])
def test_opcheck(op, case):
    """All of opcheck, on arguments that want gradients where the op has them."""
    for name, args in calls_of(op, case):
        opcheck(qualified(name), args if OPS[name].schema.endswith("-> ()") else live(args))


#: Calls with floating-point arguments; the others have no gradient.
DIFFERENTIABLE = [
    (op, case)
    for op, case in SMALL
    if case.gradient is not None and with_gradients(case.args(device="meta", shrink=16))[1]
]


@pytest.mark.parametrize("op, case", DIFFERENTIABLE, ids=[f"{op}-{case}" for op, case in DIFFERENTIABLE])
def test_backward_ops(op, case):
    """Schema and fake of the backward ops that a gradient leads to."""
    for name, args in calls_of(op, case):
        args = live(args)
        assert any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
        out = qualified(name)(*args)
        with RecordCalls() as record:
            first = out if isinstance(out, torch.Tensor) else out[0]
            torch.autograd.backward(first, torch.ones_like(first))
        assert record.calls, f"{name}: no backward op was called"
        for backward, its_args in record.calls:
            opcheck(qualified(backward), its_args, test_utils=("test_schema", "test_faketensor"))


def test_every_registered_op_has_a_case():
    seen = {name for op, case in SMALL for name, _ in calls_of(op, case)}
    # backward ops: see above; what only the contracts reach (in-place forms) is checked there
    missing = {name for name in OPS if name not in seen and not name.endswith(("_bwd", "_out"))}
    assert not missing, f"no case calls {sorted(missing)}"


@pytest.mark.parametrize("op", op_names())
def test_public_functions_are_documented(op):
    text = getattr(ops, op).__doc__ or ""
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text, f"{op}: docstring has no {section!r}"


@pytest.mark.parametrize("op", op_names())
def test_case_names_are_unique_and_some_are_real(op):
    names = [case.name for case in cases_of(op)]
    assert len(names) == len(set(names))
    assert any(case.real for case in cases_of(op)) and any(case.edge for case in cases_of(op))


def test_one_owner_per_dispatch_key():
    """A second kernel on a key replaces the first without a word; the library must not do that to itself."""
    assert LIBRARY.ns == "slowfast"
    for name in OPS:
        for key in ("CPU", "CUDA"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"slowfast::{name}", key), (
                f"{name} on {key}"
            )
