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
from launchers.base import Batch, Ended, JobState, Limits


class LocalLauncher:
    """Starts a supervisor per job and holds its stdin: when this process ends, however it ends, so do they."""

    name = "local"

    def __init__(self, sweep: SweepDir) -> None:
        self.sweep = sweep
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, batch: Batch) -> list[str]:
        for job in batch.jobs:
            self._processes[job] = subprocess.Popen(
                [sys.executable, "-m", "launchers.task", str(self.sweep.assignment(job))],
                stdin=subprocess.PIPE,
                # Not a file: what a supervisor has to say last may be that the disk is full.
                stderr=subprocess.PIPE,
                env=os.environ | dict(batch.environment),
                # First on the path of `python -m`, so also where a worker is started anew in mid-sweep.
                cwd=batch.code,
                # Its own group: Ctrl-C in a terminal reaches `emsweep run` alone, which then stops its jobs in order.
                start_new_session=True,
            )
        return list(batch.jobs)

    def limits(self) -> Limits:
        return Limits()

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        return {job: JobState.RUNNING if self._lives(job) else JobState.GONE for job in ids}

    def _lives(self, job: str) -> bool:
        process = self._processes.get(job)
        if process is not None:
            return process.poll() is None
        # A job of an earlier `emsweep run` that was killed: it holds the lock on its journal until it is gone.
        return _is_locked(self.sweep.journal(job, 0))

    def ends(self, ids: Sequence[str]) -> dict[str, list[Ended]]:
        return {}

    def find(self, token: str, jobs: Sequence[str]) -> list[str] | None:
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

    def last_words(self) -> dict[str, str]:
        """What supervisors said that ended because they could not go on (exit code 1), by job."""
        words = {}
        for job, process in self._processes.items():
            if process.poll() == 1 and process.stderr is not None and not process.stderr.closed:
                with process.stderr as said:
                    words[job] = said.read().decode(errors="replace").strip()
        return words


def _is_locked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
