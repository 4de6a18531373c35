"""The open jobs of a study: as many as its workers need, each told of runs one by one while it lives."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from em_core.attempts import JobTry
from em_core.errors import Fault
from em_core.journal import Appender, RunStatus, SweepDir, append_batch, encode
from launchers.base import Launcher
from launchers.task import early_signal
from sweeps.handout import FRUITLESS_ROUNDS, more_memory
from sweeps.manifest import Manifest
from sweeps.observe import Observer
from sweeps.reconcile import SubmittedJob, View, troubles
from sweeps.resources import Resources
from sweeps.site import Site
from sweeps.spec import Spec
from sweeps.submit import Links, PlannedJob, local_slots, on_this_machine, run_records, submit

SHORT = 5.0
"""Seconds below which a run is short: then each worker has one more waiting in its job, and never waits for the controller."""
RECENT = 50
"""Attempts from which the usual length of a run is told."""
ON_A_CLUSTER = 8
"""Workers on Slurm where the spec does not say."""
ACTIVE = (RunStatus.QUEUED, RunStatus.RUNNING)


@dataclass
class Feed:
    """Hands runs to jobs. All its methods want the sweep's lock to be held."""

    spec: Spec
    sweep: SweepDir
    site: Site
    launcher: Launcher
    observer: Observer
    workers: int = 0
    slots: int = 0
    ours: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)
    """Jobs whose time is nearly up, or whose memory is too little: they do what they have, and others take their place."""
    refused: float = math.inf
    """Host memory (GB per run) from which on Slurm takes no job of ours."""
    wait_until: float = 0.0
    """When to submit again, after Slurm took fewer jobs than there are to be (seconds on the monotonic clock)."""

    def __post_init__(self) -> None:
        self.rule, self.workers, self.slots = workers_of(self.spec, self.launcher.name)

    def jobs(self, view: View) -> list[SubmittedJob]:
        """The living jobs that may be fed: on Slurm also those of an earlier controller, which live on without one."""
        live = [j for j in view.jobs if j.open and j.name in view.live and j.launcher == self.launcher.name]
        return [j for j in live if j.name in self.ours or self.launcher.name != "local"]

    def room(self, view: View) -> dict[str, int]:
        """How many runs each started job takes now, by name. Those that take no more are closed."""
        started = {t.job: t for t in view.tries if t.start and t.ended is None}  # of a job that waits nobody knows when it begins
        usual = _usual_seconds(view.tries)
        each = self.slots + (self.slots if usual is not None and usual < SHORT else 0)
        least = self._least_memory(view)
        found = {}
        for job in self.jobs(view):
            if job.name in self.leaving:
                continue
            start = started.get(job.name)
            if (job.mem_gb or 0.0) < least or (start and not self._has_time(start, usual or 0.0)):
                self.leaving.add(job.name)
                append_batch(self.sweep.assignment(job.name), [("close", {})])
            elif start:
                found[job.name] = max(0, each - sum(view.states.get(r) in ACTIVE for r in job.runs))
        return found

    def _least_memory(self, view: View) -> float:
        """Host memory (GB per run) that a job must have asked for: twice what was too little for a run, else 0.

        So all jobs grow, and not that of the run alone: its config's other seeds need as much, and who searches comes by its
        like again. A run that fails with all that teaches nothing: what it was given in vain is not asked for again. Nor is
        what Slurm refused: such a run is tried with what there is, until it fails, and the search goes on.
        """
        hopeless = (RunStatus.FAILED, RunStatus.EXCLUDED)
        wanted = more_memory({r for r, s in view.states.items() if s not in hopeless}, view.tries)
        return max((gb for gb in wanted.values() if gb < self.refused), default=0.0)

    def _has_time(self, job: JobTry, usual: float) -> bool:
        """Whether a job may still be given a run before its time limit. Its first it gets however long runs take."""
        if self.launcher.name == "local" or job.start is None:
            return True
        left = job.start["t"] + 60 * self.rule.timeout_min - early_signal(self.rule.timeout_min) - time.time()
        needed = 0.0 if self.spec.execution.save_steps or not job.attempts else usual
        return bool(left > needed)

    def hand_out(self, manifest: Manifest, runs: Iterable[str], room: dict[str, int], view: View) -> None:
        """Give runs to the jobs that have most room, which `room` then has less of."""
        shares: dict[str, list[str]] = {}
        for run in dict.fromkeys(runs):  # two trials of one config want the same runs
            job = max(room, key=lambda j: room[j])
            room[job] -= 1
            shares.setdefault(job, []).append(run)
        for job, share in shares.items():
            # A job that is told of a run again has itself counted what befell it there.
            elsewhere = [a for t in view.tries if t.job != job for a in t.attempts] if view.troubles.keys() & share else []
            met = {r: troubles(a for a in elsewhere if a.run_id == r) for r in share if r in view.troubles}
            records = run_records(manifest, [(r, ()) for r in share], met, Links({}, {}))
            with Appender(self.sweep.assignment(job)) as out:  # not forced to the disk: a run that is lost is given again
                out.write(b"".join(encode(kind, fields) for kind, fields in records))

    def ensure(self, manifest: Manifest, view: View, wanted: int) -> None:
        """Submit jobs until there are enough for the `wanted` runs, or for all workers. Raises `Fault` where they die unused."""
        enough = math.ceil(min(self.workers, wanted) / self.slots)
        living = self.jobs(view)
        missing = enough - sum(j.name not in self.leaving for j in living)
        if missing <= 0 or time.monotonic() < self.wait_until:
            return
        if (unused := self._unused(view)) >= FRUITLESS_ROUNDS * enough:
            if living:  # they do what can be done
                return
            raise Fault(
                f"the jobs end before any run begins, {unused} in a row; `emsweep logs {self.sweep.sweep}` shows their last "
                "words. The same command tries again."
            )
        least, usual = self._least_memory(view), self.rule.mem_gb or 0.0
        job = PlannedJob(self.rule.model_copy(update={"mem_gb": max(least, usual) or None}), self.slots, (), open=True)
        bad = self.observer.bad_nodes(self.spec.retries.exclude_node_after)
        names: list[str] = []
        try:
            names = submit(self.sweep, manifest, [job] * missing, self.spec, self.site, self.launcher, exclude_nodes=bad)
        except Fault:
            if least > usual:
                self.refused = least
                return
            if not living:
                raise
        self.ours |= set(names)
        if not names and not living:
            raise Fault("Slurm takes no more jobs of yours now (MaxSubmitJobs); try again later")
        if len(names) < missing:  # what is there goes on meanwhile
            self.wait_until = time.monotonic() + self.site.poll_seconds

    def _unused(self, view: View) -> int:
        """How many of our newest jobs in a row died before any run began."""
        used = {t.job for t in view.tries if t.attempts or t.ended == "done"}
        over = [j.name for j in view.jobs if j.name in self.ours and j.name not in view.live]
        return next((n for n, job in enumerate(reversed(over)) if job in used), len(over))

    def cancel(self, view: View, runs: Collection[str], reason: str) -> None:
        """Have these runs stopped, wherever they are."""
        for job in self.jobs(view):
            append_batch(
                self.sweep.assignment(job.name), [("cancel", {"run_id": r, "reason": reason}) for r in runs if r in job.runs]
            )

    def close(self, view: View) -> None:
        """Nothing more will come: jobs end when they are done, and those that never began are taken back."""
        started = {t.job for t in view.tries if t.start}
        for job in self.jobs(view):
            append_batch(self.sweep.assignment(job.name), [("close", {})])
        waiting = [j.id for j in self.jobs(view) if j.name not in started and j.id]
        if self.launcher.name != "local" and waiting:
            self.launcher.cancel(waiting)


def workers_of(spec: Spec, launcher: str) -> tuple[Resources, int, int]:
    """(what a run gets, how many are under way at a time, how many of them in one job)."""
    rule, wanted = spec.rules[-1], spec.search.workers if spec.search else None
    if launcher == "local":  # one job has the whole machine
        rule = on_this_machine(rule, spec.execution)
        workers = wanted or local_slots(rule)
        return rule, workers, workers
    workers = wanted or ON_A_CLUSTER
    return rule, workers, min(rule.slots_per_job, workers)


def _usual_seconds(tries: Sequence[JobTry]) -> float | None:
    """How long a run takes, by the last ones of every job; None while none has ended."""
    took = [a.end["seconds"] for t in tries for a in t.attempts[-RECENT:] if a.end and a.end.get("seconds")]
    return statistics.median(took[-RECENT:]) if took else None
