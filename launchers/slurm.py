"""Jobs as tasks of Slurm arrays. submitit submits; our supervisor supervises; Slurm's answers are only witnesses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_core.errors import Fault
from em_core.journal import SweepDir, disk_faults
from launchers import machines
from launchers.base import Batch, Ended, JobState, Limits
from launchers.scheduler import Witness, ask, limits
from launchers.task import REQUEUE, carry_out, early_signal

WITNESS = Witness()
"""One for all sweeps that this process looks at: they share its answers."""
LEAVE_SECONDS = 60
"""How long the tasks on a job's other machines may outlive the supervisor."""
FOLLOW_UP_MINUTES = 30
"""Time limit of the job that reconciles a sweep."""


class SlurmLauncher:
    """Submits arrays through submitit; asks for states with one squeue (and one sacct) for all jobs together."""

    name = "slurm"

    def __init__(self, sweep: SweepDir) -> None:
        self.sweep = sweep

    def submit(self, batch: Batch) -> list[str]:
        assignments = [str(self.sweep.assignment(job)) for job in batch.jobs]
        return self._submit(run_job, assignments, submitit_parameters(batch), batch.environment)

    def call(self, function: Callable[[str], Any], argument: str, batch: Batch) -> str:
        """Submit one job that calls `function(argument)`, with everything a batch's jobs get; its id."""
        [job] = self._submit(function, [argument], submitit_parameters(batch), batch.environment)
        return job

    def follow(self, name: str, after: Sequence[str], command: Sequence[str], code: Path, parameters: Mapping[str, Any]) -> str:
        """Submit a one-CPU job that runs `command` when all the jobs `after` are over, however they ended; its id.

        What warns it (SIGTERM, and USR2 before its time limit) reaches the command, which may end in order.
        """
        bases = sorted({job.split("_")[0] for job in after}, key=int)
        said = {
            "job_name": name,
            "comment": name,
            "time": FOLLOW_UP_MINUTES,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": 1,
        }
        if bases:
            said["dependency"] = "afterany:" + ":".join(bases)
        said["additional_parameters"] = {"chdir": str(code), "no_requeue": True}  # a job that waits for this one would not go on
        [job] = self._submit(run_command, [list(command)], said | dict(parameters), {})
        return job

    def _submit(
        self, function: Any, arguments: list[Any], parameters: dict[str, Any], environment: Mapping[str, str]
    ) -> list[str]:
        import submitit

        folder = self.sweep.logs / "submitit"
        python = parameters.pop("python", None)
        WITNESS.forget()
        try:
            executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=0, python=python)
            executor.update_parameters(**parameters)
            with disk_faults(folder), _environment(environment):
                return [job.job_id for job in executor.map_array(function, arguments)]
        except submitit.core.utils.FailedJobError as error:
            raise Fault(f"Slurm refused the jobs: {_last_line(str(error))}") from error
        except (ValueError, RuntimeError) as error:
            raise Fault(f"submitit could not submit: {_last_line(str(error))}") from error

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        return WITNESS.states(ids) if ids else {}

    def ends(self, ids: Sequence[str]) -> dict[str, list[Ended]] | None:
        return WITNESS.ends(ids) if ids else {}

    def limits(self) -> Limits:
        return limits(WITNESS)

    def find(self, token: str, jobs: Sequence[str]) -> list[str] | None:
        """The token is in the comment, which only the queue remembers; what ran and left it is in the journals.

        Jobs that are found get their task: submitit leaves it under their ids only once `sbatch` has answered, and they
        wait a minute for it and fail.
        """
        listed = WITNESS.queue()
        if listed is None:
            return None
        bases = {re.split(r"[_\[]", job)[0] for job, row in listed.items() if token in row.comment.split()}
        if not bases:
            return []
        base = min(bases, key=int)
        ids = [base] if len(jobs) == 1 else [f"{base}_{i}" for i in range(len(jobs))]
        for job, id_ in zip(jobs, ids, strict=True):
            self._leave_task(job, id_)
        return ids

    def _leave_task(self, job: str, id_: str) -> None:
        from submitit.core.utils import DelayedSubmission, JobPaths

        paths = JobPaths(self.sweep.logs / "submitit", id_)
        if not paths.submitted_pickle.exists():
            new = paths.submitted_pickle.with_suffix(f".{os.getpid()}")
            with disk_faults(new):
                DelayedSubmission(run_job, str(self.sweep.assignment(job))).dump(new)
                new.replace(paths.submitted_pickle)

    def cancel(self, ids: Sequence[str]) -> None:
        WITNESS.forget()
        if ids and ask("scancel", *ids) is None:
            raise Fault("scancel failed: Slurm does not answer; the jobs may still be queued")


def submitit_parameters(batch: Batch) -> dict[str, Any]:
    """The parameters of `submitit.SlurmExecutor` for a batch: the spec's words translated, `slurm_*` passed through."""
    r = dict(batch.resources)
    extra = {k.removeprefix("slurm_"): v for k, v in r.items() if k.startswith("slurm_")}
    extra.pop("array_parallelism", None)  # shared out over all arrays: batch.parallelism
    cpus = r["cpus_per_run"] * batch.slots
    # srun from Slurm 22.05 on ignores SLURM_CPUS_PER_TASK, so the step is told itself.
    srun_args = [f"--cpus-per-task={cpus}", *extra.pop("srun_args", ())]
    if batch.machines > 1:  # the end of the supervisor, or the death of any task, is the job's
        srun_args += ["--kill-on-bad-exit=1", f"--wait={LEAVE_SECONDS}"]
    parameters: dict[str, Any] = {
        "job_name": batch.name,
        "comment": f"emsweep {batch.name.rsplit(':', 1)[0]} {batch.token}",
        "time": r["timeout_min"],
        "nodes": batch.machines,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "srun_args": srun_args,
        "signal_delay_s": early_signal(r["timeout_min"]),
        "array_parallelism": batch.parallelism or len(batch.jobs),
        # First on the path of `python -m`: whatever happens to the checkout, the job runs the code of its submission.
        "additional_parameters": {
            "chdir": str(batch.code),
            "requeue" if batch.requeue else "no_requeue": True,
            **extra.pop("additional_parameters", {}),
        },
    }
    if r.get("mem_gb"):
        parameters["mem"] = f"{max(1, round(r['mem_gb'] * batch.slots * 1024))}MB"
    if r.get("gpus_per_run"):
        parameters["gpus_per_node"] = r["gpus_per_run"] * batch.slots
    setup = [*batch.setup, *extra.pop("setup", ())]
    if setup:
        parameters["setup"] = setup
    if batch.exclude_nodes:
        parameters["exclude"] = ",".join([*filter(None, [extra.pop("exclude", "")]), *batch.exclude_nodes])
    return parameters | extra


def run_job(assignment: str) -> int:
    """What submitit calls on the node: on each, where a run has several; the first is the supervisor's.

    Slurm's restart count is the job's try.
    What the time limit cut short asks for another try itself; where the site forbids that, `reconcile` hands it out again.
    """
    job, try_ = own_job_id(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if machine := int(os.environ.get("SLURM_PROCID", "0")):
        machines.serve(assignment, try_, machine)
        return 0
    code = carry_out(assignment, try_, "slurm", job)
    if code == REQUEUE and job:
        ask("scontrol", "requeue", job)
    return code


def own_job_id() -> str | None:
    """The Slurm job this process is part of: `12`, or `12_3` in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def run_command(command: list[str]) -> int:
    """What submitit calls for a follow-up job. Raises where the command fails, so that Slurm shows the job as failed.

    Signals are the command's to answer: Slurm sends them to it, too. Ignored they would be for it as well: so a handler.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    return subprocess.run(command, check=True).returncode


def is_cluster() -> bool | None:
    """Whether this machine is part of a Slurm cluster: True, False, or None where one is set up but does not answer."""
    if ask("sinfo", "--noheader", "--format=%P") is not None:
        return True
    configured = os.environ.get("SLURM_CONF") or any(
        Path(p).exists() for p in ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
    )
    return None if configured else False


class _environment:  # noqa: N801 (reads as a statement)
    """Context: the site's variables (caches, offline flags) are exported into the jobs of one submission."""

    def __init__(self, variables: Mapping[str, str]) -> None:
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


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
