"""Fixtures of several files of tests."""

import pytest
import torch


@pytest.fixture
def set_threads():
    """Sets how many threads torch uses, until the test ends."""
    threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread(set_threads):
    """Sums of several threads may differ in their last digits."""
    set_threads(1)
