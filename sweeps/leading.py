"""Who leads a study. One controller at a time asks and tells; the submissions say which, and every one looks before each step.

The kernel's lock keeps a second controller out wherever it reaches. Some network file systems keep it on one host: there the
newest controller leads, and the one before it notices at its next step and stops. Nothing is lost by that: what both have
done is in the journals, and a run that both handed out counts once.
"""

from __future__ import annotations

import os
import secrets
import socket
import time

from em_core.errors import Fault
from em_core.journal import SweepDir, append_batch
from launchers.base import JobState
from launchers.slurm import is_cluster, own_job_id
from sweeps.observe import Observer

PATIENCE = 60.0
"""Seconds to wait for a controller's job that was ended to be known to be over, and for who changes the sweep: a person's
`emsweep cancel` may be waiting for a slow Slurm, and a study is not to stop for that."""


def lead(sweep: SweepDir) -> str:
    """Say that this process leads the study from now on; returns its mark. The caller holds the sweep's lock."""
    mark, job = secrets.token_hex(4), own_job_id()
    who = f"Slurm job {job}" if job else f"process {os.getpid()} on {socket.gethostname()}"
    append_batch(sweep.submissions, [("controller", {"mark": mark, "who": who, "t": time.time()})])
    return mark


def refuse_other(observer: Observer, mark: str) -> None:
    """Raises `Fault` where another controller leads meanwhile, or the study was cancelled. The caller holds the sweep's lock."""
    name, newest = observer.sweep.sweep, observer.newest("controller", "cancelled")
    if newest is None or newest.get("mark") == mark:
        return
    if newest["kind"] == "cancelled":
        raise Fault(f"the study {name} was cancelled; the same command continues")
    raise Fault(f"the study {name} is led by {newest['who']} now, which began later; this one stops")


def refuse_job(observer: Observer) -> None:
    """Raises `Fault` where a job leads the study, or waits for its turn to."""
    if not observer.follow_ups() or is_cluster() is False:  # it was led elsewhere, and its folder came here
        return
    end = time.monotonic() + PATIENCE
    name, own = observer.sweep.sweep, own_job_id()
    while True:
        states = {job: state for job, state in controller_jobs(observer).items() if job != own}
        for job, state in states.items():
            if state in (JobState.PENDING, JobState.RUNNING):
                raise Fault(f"the study {name} is led by Slurm job {job}; `emsweep cancel {name}` ends it and the study's jobs")
        if not states:
            return
        if time.monotonic() > end:
            raise Fault(f"Slurm does not say whether job {next(iter(states))} still leads the study {name}; try again later")
        time.sleep(1.0)


def controller_jobs(observer: Observer) -> dict[str, JobState]:
    """The jobs that were to lead the study and are not known to be over: the newest two, of which one waits for the other."""
    ids = observer.follow_ups()[-2:]
    return {job: s for job, s in observer.launchers["slurm"].states(ids).items() if s is not JobState.GONE} if ids else {}
