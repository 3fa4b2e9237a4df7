"""Fixtures of several files of tests."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Sums of several threads may differ in their last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
