"""What every test may rely on: no network, one thread, no window, none of the caller's DECORLIB_* settings."""

import os

os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

pytest.register_assert_rewrite("rule_cases", "moment_checks", "processes", "problems")

# These take longest, so `make test` begins with them: two processes should end together.
FIRST = ("tests/study/report", "tests/study/sweeps", "tests/test_soak.py")


@pytest.hookimpl(tryfirst=True)  # before xdist, which reads the groups
def pytest_collection_modifyitems(items):
    """No test reaches beyond this machine; kernels, clusters and browsers are spoken to on loopback.

    With xdist a file stays in one process, unless its tests say otherwise by a group of their own.
    """
    for item in items:
        item.add_marker(pytest.mark.allow_hosts(["127.0.0.1", "::1"]))
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch):
    for name in list(os.environ):
        if name.startswith("DECORLIB_") and name not in ("DECORLIB_DATA", "DECORLIB_CACHE"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    import torch

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)
