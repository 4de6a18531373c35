"""The open jobs of a study: as many as its workers need, each told of runs one by one while it lives."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from em_core.errors import Fault
from em_core.journal import JobTry, RunStatus, SweepDir, append_batch
from launchers.base import Launcher
from sweeps.handout import FRUITLESS_ROUNDS
from sweeps.manifest import Manifest
from sweeps.observe import Observer
from sweeps.reconcile import SubmittedJob, View
from sweeps.site import Site
from sweeps.spec import Spec
from sweeps.submit import Links, PlannedJob, local_slots, on_this_machine, run_records, submit

SHORT = 5.0
"""Seconds below which a run is short: then each worker has one more waiting in its job, and never waits for the controller."""
RECENT = 50
"""Attempts from which the usual length of a run is told."""
ON_A_CLUSTER = 8
"""Workers on Slurm where the spec does not say."""


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
    fruitless: int = 0
    tried: int = -1

    def __post_init__(self) -> None:
        rule = self.spec.rules[-1]
        self.rule = on_this_machine(rule, self.spec.execution) if self.launcher.name == "local" else rule
        wanted = self.spec.search.workers if self.spec.search else None
        if self.launcher.name == "local":  # one job has the whole machine
            self.workers = self.slots = wanted or local_slots(self.rule)
        else:
            self.workers = wanted or ON_A_CLUSTER
            self.slots = min(self.rule.slots_per_job, self.workers)

    def jobs(self, view: View) -> list[SubmittedJob]:
        """The living jobs that may be fed: on Slurm also those of an earlier controller, which live on without one."""
        live = [j for j in self.observer.jobs() if j.name in view.live and j.launcher == self.launcher.name]
        return [j for j in live if j.name in self.ours or self.launcher.name != "local"]

    def room(self, view: View, tries: Sequence[JobTry]) -> dict[str, int]:
        """How many runs each started job takes now, by name."""
        newest = {t.job: t for t in tries}  # in order of tries
        started = {job: t for job, t in newest.items() if t.start and t.ended is None}
        each = self.slots + (self.slots if self._short(tries) else 0)
        active = (RunStatus.QUEUED, RunStatus.RUNNING)
        found = {}
        for job in self.jobs(view):
            if job.name in started:
                found[job.name] = max(0, each - sum(view.states.get(r) in active for r in job.runs))
        return found

    def hand_out(self, manifest: Manifest, runs: Iterable[str], room: dict[str, int], view: View) -> None:
        """Give runs to the jobs that have most room, which `room` then has less of."""
        shares: dict[str, list[str]] = {}
        for run in runs:
            job = max(room, key=lambda j: room[j])
            room[job] -= 1
            shares.setdefault(job, []).append(run)
        for job, share in shares.items():
            records = run_records(manifest, [(r, ()) for r in share], view.troubles, Links({}, {}))
            append_batch(self.sweep.assignment(job), records)

    def ensure(self, manifest: Manifest, view: View, wanted: int) -> None:
        """Submit jobs until there are enough for the `wanted` runs, or for all workers. Raises `Fault` where they die unused."""
        enough = math.ceil(min(self.workers, wanted) / self.slots)
        missing = enough - len(self.jobs(view))
        if missing <= 0:
            return
        self.fruitless = self.fruitless + 1 if view.tried == self.tried and not self.jobs(view) else 0
        self.tried = view.tried
        if self.fruitless > FRUITLESS_ROUNDS:
            raise Fault(
                f"the jobs end before any run begins, {self.fruitless} times in a row; `emsweep logs {self.sweep.sweep}` shows "
                "their last words. The same command tries again."
            )
        job = PlannedJob(self.rule, self.slots, (), open=True)
        bad = self.observer.bad_nodes(self.spec.retries.exclude_node_after)
        names = submit(self.sweep, manifest, [job] * missing, self.spec, self.site, self.launcher, exclude_nodes=bad)
        self.ours |= set(names)
        if not names and not self.jobs(view):
            raise Fault("Slurm takes no more jobs of yours now (MaxSubmitJobs); try again later")

    def cancel(self, view: View, runs: Collection[str], reason: str) -> None:
        """Have these runs stopped, wherever they are."""
        for job in self.jobs(view):
            append_batch(
                self.sweep.assignment(job.name), [("cancel", {"run_id": r, "reason": reason}) for r in runs if r in job.runs]
            )

    def close(self, view: View) -> None:
        """Nothing more will come: jobs end when they are done, and those that never began are taken back."""
        started = {t.job for t in self.observer.tries() if t.start}
        for job in self.jobs(view):
            append_batch(self.sweep.assignment(job.name), [("close", {})])
        waiting = [j.id for j in self.jobs(view) if j.name not in started and j.id]
        if self.launcher.name != "local" and waiting:
            self.launcher.cancel(waiting)

    @staticmethod
    def _short(tries: Sequence[JobTry]) -> bool:
        took = [a.end["seconds"] for t in tries for a in t.attempts[-RECENT:] if a.end and a.end.get("seconds")]
        return bool(took) and statistics.median(took[-RECENT:]) < SHORT
