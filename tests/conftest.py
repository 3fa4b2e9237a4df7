"""Fixtures of several files of tests."""

import pytest
import torch

from incontext.model import compiled


@pytest.fixture(autouse=True, scope="session")
def compiled_folder(tmp_path_factory):
    """What was compiled on this machine before is not used; tests of it compile their own."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_folder", lambda: folder)
        yield folder


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
