"""Plain convolutions of the reference and of training, where PyTorch's own CPU kernels crash or go wrong.

The calls are made in a process of their own: unprotected, several of them write past their memory.
"""

import json
import subprocess
import sys

import pytest

#: dtype, x, weight, stride, padding, dilation: each crashed, gave NaN or was wrong in channels_last_3d memory.
CASES = {
    "stem strided in time": ("float32", [2, 1, 48, 32, 32], [8, 1, 1, 7, 7], [4, 2, 2], [0, 0, 0], [1, 1, 1]),
    "one column": ("float32", [1, 1, 1, 9, 1], [24, 1, 1, 7, 5], [1, 1, 2], [0, 3, 2], [1, 1, 1]),
    "no padding": ("float32", [2, 1, 5, 4, 9], [72, 1, 1, 1, 7], [1, 1, 3], [0, 0, 0], [1, 1, 1]),
    "bfloat16 stem, one frame": (
        "bfloat16",
        [2, 1, 1, 16, 16],
        [8, 1, 5, 7, 7],
        [1, 2, 2],
        [2, 3, 3],
        [1, 1, 1],
    ),
    "columns of padding": ("bfloat16", [2, 16, 3, 9, 1], [24, 16, 1, 7, 1], [1, 1, 3], [8, 6, 7], [2, 1, 3]),
    "result of zeros": ("bfloat16", [1, 2, 17, 1, 1], [72, 2, 1, 5, 1], [1, 2, 2], [0, 3, 9], [1, 1, 3]),
}

SCRIPT = """
import json, sys, torch
import torch.nn.functional as F
from slowfast_kernels import nn, ops, use_backend
from slowfast_kernels.testing import poisoned_memory, relative_l2

def errors(dtype, x, w, stride, padding, dilation, layouts):
    dtype, memory = getattr(torch, dtype), torch.channels_last_3d
    torch.manual_seed(0)
    x, w = torch.randn(x).to(dtype), torch.randn(w).to(dtype)
    wide = [v.double().requires_grad_() for v in (x, w)]
    expected = F.conv3d(*wide, None, stride, padding, dilation)
    grad = torch.randn(expected.shape).to(dtype)
    expected = [expected, *torch.autograd.grad(expected, wide, grad.double())]
    x = x.to(memory_format=memory) if "x" in layouts else x
    w = w.to(memory_format=memory) if "w" in layouts else w

    live = [v.clone(memory_format=torch.preserve_format).requires_grad_() for v in (x, w)]
    with use_backend("reference"):
        y = ops.conv_bn_act3d(*live, stride=stride, padding=padding, dilation=dilation, activation="none")
    found = {"reference": [y, *torch.autograd.grad(y, live, grad)]}

    layer = nn.conv.Conv3d(x.shape[1], w.shape[0], tuple(w.shape[2:]), stride, padding, dilation).to(dtype)
    layer.weight = torch.nn.Parameter(w)
    live[1] = layer.weight
    y = layer(live[0])
    found["layer"] = [y, *(torch.autograd.grad(y, live, grad) if dtype == torch.float32 else [])]
    return {k: [relative_l2(a, b) for a, b in zip(v, expected)] for k, v in found.items()}

cases = json.load(sys.stdin)
with poisoned_memory():
    for name, case in cases.items():
        for layouts in ("x", "w", "xw"):
            print(json.dumps([name, layouts, errors(*case, layouts)]), flush=True)
"""


@pytest.fixture(scope="module")
def errors():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(CASES), capture_output=True, text=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"died of {done.returncode} after {lines[-1:]}: {done.stderr[-500:]}"
    return {(name, layouts): found for name, layouts, found in lines}


@pytest.mark.parametrize("layouts", ["x", "w", "xw"])
@pytest.mark.parametrize("name", CASES)
def test_channels_last_convolutions_and_their_gradients(errors, name, layouts):
    """Results, and gradients by input and weight, of the reference op and of a layer in training."""
    bound = 1e-5 if CASES[name][0] == "float32" else 1e-2
    for who, found in errors[name, layouts].items():
        assert all(error < bound for error in found), f"{who}: {found}"  # nor is a NaN below it
