"""Jobs as tasks of Slurm arrays. submitit submits; our supervisor supervises; squeue and sacct are only witnesses."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_core.errors import Fault
from em_core.journal import SweepDir, disk_faults
from launchers.base import Batch, JobState
from launchers.task import carry_out

QUERY_TIMEOUT = 30
"""Seconds after which a scheduler that does not answer counts as not answering."""
GRACE = 20.0
"""Seconds a job must be missing from the queue, seen twice, before that alone means it is gone."""
LIVE = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED", "RESV_DEL_HOLD"}
STARTED = {"RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


class SlurmLauncher:
    """Submits arrays through submitit; asks for states with one squeue (and one sacct) for all jobs together."""

    name = "slurm"

    def __init__(self, sweep: SweepDir) -> None:
        self.sweep = sweep
        self._missing_since: dict[str, float] = {}

    def submit(self, batch: Batch) -> list[str]:
        import submitit

        parameters = submitit_parameters(batch)
        try:
            executor = submitit.SlurmExecutor(folder=self.sweep.logs / "submitit", max_num_timeout=0)
            executor.update_parameters(**parameters)
            with disk_faults(self.sweep.logs / "submitit"), _environment(batch.environment):
                jobs = executor.map_array(run_job, [str(self.sweep.assignment(job)) for job in batch.jobs])
        except submitit.core.utils.FailedJobError as error:
            raise Fault(f"Slurm refused the jobs: {_last_line(str(error))}") from error
        except (ValueError, RuntimeError) as error:
            raise Fault(f"submitit could not submit: {_last_line(str(error))}") from error
        return [job.job_id for job in jobs]

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        if not ids:
            return {}
        queued = _ask("squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format=%i|%T")
        if queued is None:
            return dict.fromkeys(ids, JobState.UNKNOWN)
        listed = dict(line.split("|", 1) for line in queued if "|" in line)
        now = time.monotonic()
        states: dict[str, JobState] = {}
        missing = []
        for job in ids:
            word = listed.get(job, "").strip()
            if word in LIVE:
                states[job] = JobState.PENDING
            elif word in STARTED:
                states[job] = JobState.RUNNING
            else:
                missing.append(job)
                continue
            self._missing_since.pop(job, None)
        if missing:
            ended = self._ended(missing)
            for job in missing:
                first = self._missing_since.setdefault(job, now)
                gone = job in ended or now - first >= GRACE
                states[job] = JobState.GONE if gone else JobState.UNKNOWN
        return states

    def _ended(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that the accounting knows to have ended; empty where there is no accounting."""
        bases = sorted({job.split("_")[0] for job in ids})
        told = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", "--jobs", ",".join(bases))
        words = dict(line.split("|", 1) for line in told or () if "|" in line)
        return {job for job, word in words.items() if word.split() and word.split()[0] not in LIVE | STARTED}

    def find(self, token: str, jobs: int) -> list[str] | None:
        queued = _ask("squeue", "--noheader", "--array", "--name", token, "--format=%i")
        if queued is None:
            return None
        told = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID", "--name", token) or []
        bases = [re.split(r"[_\[]", line.strip())[0] for line in (*queued, *told) if line.strip()]
        if not bases:
            return []
        return [bases[0]] if jobs == 1 else [f"{bases[0]}_{i}" for i in range(jobs)]

    def cancel(self, ids: Sequence[str]) -> None:
        if ids and _ask("scancel", *ids) is None:
            raise Fault("scancel failed: Slurm does not answer; the jobs may still be queued")


def submitit_parameters(batch: Batch) -> dict[str, Any]:
    """The parameters of `submitit.SlurmExecutor` for a batch: the spec's words translated, `slurm_*` passed through."""
    r = dict(batch.resources)
    extra = {k.removeprefix("slurm_"): v for k, v in r.items() if k.startswith("slurm_")}
    cpus = r["cpus_per_run"] * batch.slots
    # srun from Slurm 22.05 on ignores SLURM_CPUS_PER_TASK, so the step is told itself.
    srun_args = [f"--cpus-per-task={cpus}", *extra.pop("srun_args", ())]
    parameters: dict[str, Any] = {
        "job_name": batch.token,
        "time": r["timeout_min"],
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "srun_args": srun_args,
        # First on the path of `python -m`: whatever happens to the checkout, the job runs the code of its submission.
        "additional_parameters": {"chdir": str(batch.code), **extra.pop("additional_parameters", {})},
    }
    if r.get("mem_gb"):
        parameters["mem"] = f"{max(1, round(r['mem_gb'] * batch.slots * 1024))}MB"
    if r.get("gpus_per_run"):
        parameters["gpus_per_node"] = r["gpus_per_run"] * batch.slots
    setup = [*batch.setup, *extra.pop("setup", ())]
    if setup:
        parameters["setup"] = setup
    return parameters | extra


def run_job(assignment: str) -> int:
    """What submitit calls on the node. Slurm's restart count is the job's try."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job_id = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    return carry_out(assignment, int(os.environ.get("SLURM_RESTART_COUNT", "0")), "slurm", job_id)


def is_cluster() -> bool | None:
    """Whether this machine is part of a Slurm cluster: True, False, or None where one is set up but does not answer."""
    if _ask("sinfo", "--noheader", "--format=%P") is not None:
        return True
    configured = os.environ.get("SLURM_CONF") or any(
        Path(p).exists() for p in ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
    )
    return None if configured else False


class _environment:  # noqa: N801 (reads as a statement)
    """Context: the site's variables (caches, offline flags) are exported into the jobs of one submission."""

    def __init__(self, variables: Any) -> None:
        self.variables = dict(variables)

    def __enter__(self) -> None:
        self.before = {k: os.environ.get(k) for k in self.variables}
        os.environ.update(self.variables)

    def __exit__(self, *_: object) -> None:
        for k, v in self.before.items():
            if v is None:
                os.environ.pop(k, None)
            else:
                os.environ[k] = v


def _ask(*command: str) -> list[str] | None:
    """Lines of a scheduler command's answer, None where it failed: a failed query means unknown, never dead."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
