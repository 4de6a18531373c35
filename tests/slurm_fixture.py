"""The fixtures of tests that need a real Slurm, and the rule that nothing is skipped in CI. `conftest.py` loads it.

    @pytest.mark.slurm
    def test_it(slurm: SlurmCluster) -> None: ...

With pytest-xdist pass `--dist loadgroup`: all tests marked `slurm` then run on one worker, one after the other, on one cluster.
(With another distribution every worker starts a cluster of its own, which works but is slower.)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.cluster import SlurmCluster, unavailable


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running two-node cluster with accounting, shared by the session. Programs find it through `slurm.env()`."""
    if reason := unavailable():
        pytest.skip(reason)
    # Not tmp_path: the names of Slurm's sockets have 107 characters at most.
    with SlurmCluster(Path(tempfile.mkdtemp(prefix="emsweep-slurm-"))) as cluster:
        yield cluster


@pytest.fixture
def on_slurm(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The same cluster, for one test that may break it: this process's environment points at it, and afterwards it is whole
    again, without jobs."""
    wanted = slurm.env()
    for name in os.environ.keys() - wanted.keys():
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    yield slurm
    slurm.reset()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.xdist_group("slurm"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI (EMSWEEP_CI=1) a skipped `slurm` or `browser` test is a failure: there the programs are installed."""
    report = yield
    needed = any(item.get_closest_marker(name) for name in ("slurm", "browser"))
    if report.skipped and needed and os.environ.get("EMSWEEP_CI") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
