"""Fixtures of the tests of models."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Networks as small as these tests' spend their time waiting for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
