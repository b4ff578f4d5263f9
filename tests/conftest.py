import pytest
import torch

import tiny


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models run faster on one thread, and tests in parallel do not fight for the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def klein():
    """A tiny FLUX.2-klein pipeline that takes guidance (two passes per step)."""
    return tiny.klein()
