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


def pytest_configure(config):
    """Tests marked slow run where the marks asked for name them, as in `-m slow`."""
    asked = config.option.markexpr
    if "slow" not in asked:
        config.option.markexpr = f"({asked}) and not slow" if asked else "not slow"


LONGEST = (  # from a minute up, on two cores
    "test_families",
    "02_disruption",
    "04_transport",
    "test_faults",
    "test_readme",
    "test_make_evidence",
    "test_sweep",
)


def pytest_collection_modifyitems(items):
    """The longest modules begin first: a worker that had one of them last would run alone for minutes."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
