"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["tests.slurm_fixture", "tests.fault_fixture"]

Emsweep = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure() -> None:
    """A shell that starts pytest in the background has it ignore Ctrl-C, and so would every command that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` is to take minutes on two cores: what takes longest runs in CI."""
    if not {"EMSWEEP_CI", "EMSWEEP_LONG"} & os.environ.keys():
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: CI runs it, and EMSWEEP_LONG=1"))


@pytest.fixture(autouse=True)
def _no_site(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads this user's site file or is taken for a cluster."""
    monkeypatch.delenv("EMSWEEP_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))
    for name in ("EMSWEEP_ROOT", "EMSWEEP_DB", "SLURM_CONF", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def emsweep(tmp_path: Path) -> Emsweep:
    """Run the command line as a person does, in an empty folder; returns the completed process."""

    def call(
        *args: str, check: int | None = None, env: dict[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "sweeps.cli", *args],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check is not None:
            assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return call
