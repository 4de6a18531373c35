"""Jobs as processes of this machine. Each lives exactly as long as the `emsweep run` that started it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from em_core.journal import SweepDir
from launchers.base import Batch, JobState


class LocalLauncher:
    """Starts a supervisor per job and holds its stdin: when this process ends, however it ends, so do they."""

    name = "local"

    def __init__(self, sweep: SweepDir) -> None:
        self.sweep = sweep
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, batch: Batch) -> list[str]:
        for job in batch.jobs:
            log = self.sweep.supervisor_log(job)
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as out:
                self._processes[job] = subprocess.Popen(
                    [sys.executable, "-m", "launchers.task", str(self.sweep.assignment(job))],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=out,
                    env=os.environ | dict(batch.environment),
                    # Its own group: Ctrl-C in a terminal reaches `emsweep run` alone, which then stops its jobs in order.
                    start_new_session=True,
                )
        return list(batch.jobs)

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        return {job: JobState.RUNNING if self._lives(job) else JobState.GONE for job in ids}

    def _lives(self, job: str) -> bool:
        process = self._processes.get(job)
        if process is not None:
            return process.poll() is None
        # A job of an earlier `emsweep run` that was killed: it holds the lock on its journal until it is gone.
        return _is_locked(self.sweep.journal(job, 0))

    def find(self, token: str, jobs: int) -> list[str] | None:
        return []

    def cancel(self, ids: Sequence[str]) -> None:
        for job in ids:
            process = self._processes.get(job)
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for job in ids:
            process = self._processes.get(job)
            if process is not None:
                process.wait()

    def exit_codes(self) -> dict[str, int | None]:
        """Exit code of every job started here (None: still running)."""
        return {job: process.poll() for job, process in self._processes.items()}


def _is_locked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
