"""What the tests of the convolutions' Triton kernels share: calls on the provider's device, results on the CPU."""

import pytest
import torch

from ops import parity
from ops.parity import run, there
from slowfast_kernels.testing import provider_device

__all__ = ["DEVICE", "DTYPES", "check_case", "on_triton", "run", "there"]

on_triton = pytest.mark.parametrize("provider", ["triton"], indirect=True)
DEVICE = provider_device("triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_case(op, case, dtype, reduction):
    """Parity of a case with the reference in float64."""
    parity.check_case(op, case, dtype, "triton", reduction)
